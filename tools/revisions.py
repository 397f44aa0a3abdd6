"""What stands in another revision: of git, or an experiment of DVC. Its outputs come from the DVC cache, or
from the remote where the cache has none.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from stages.settings.errors import Problem
from stages.settings.files import cache, replace_folder


@contextmanager
def files_of(revision: str, wanted: str) -> Iterator["DVCFileSystem"]:  # noqa: F821
    """The files of a revision. Raises Problem where there is no such revision, or where the bytes of what is
    `wanted` of it are nowhere.
    """
    from dvc.api import DVCFileSystem
    from dvc.exceptions import DvcException
    from dvc.scm import RevError

    try:
        yield DVCFileSystem(repo=".", rev=revision)
    except RevError:
        raise Problem(
            f"{revision} is no revision of git and no experiment: `git log --oneline` and `dvc exp list "
            "-A` name them"
        ) from None
    except FileNotFoundError:
        cure = (
            "another machine made them. Start from your own (`dvc repro`, then `git add -A && git commit`), "
            f"or `dvc push` there (an experiment: `dvc exp push origin {revision}`)"
        )
        raise Problem(
            f"the bytes of {wanted} of {revision} are neither in DVC's cache nor on its remote: {cure}"
        ) from None
    except (DvcException, OSError) as error:  # such as no network
        raise Problem(f"{wanted} of {revision}: {' '.join(str(error).split())}") from None


def checkpoints(revision: str) -> dict[str, Path]:
    """The trained checkpoints of a revision, by the names of their folders in models/, each as a folder of
    its own in .cache/experiments, which holds it once however many revisions have it.
    """
    with files_of(revision, "models/") as files:
        found = [Path(name).name for name in files.ls("models", detail=False) if files.isdir(name)]
        names = [name for name in found if name in ("sft", "dpo") or name.startswith(("refine-", "merged-"))]
        if not names:
            raise Problem(f"{revision} has no trained checkpoint: commit dvc.lock after `dvc repro`")
        order = {"sft": 0, "dpo": 1}
        names.sort(key=lambda name: (order.get(name, 2), name))
        return {name: copied(files, name) for name in names}


def copied(files: "DVCFileSystem", name: str) -> Path:  # noqa: F821
    md5 = files.info(f"models/{name}")["md5"].removesuffix(".dir")
    folder = cache("experiments") / md5 / name
    if not folder.exists():
        with replace_folder(folder) as temporary:
            files.get(f"models/{name}/", str(temporary), recursive=True)
    return folder
