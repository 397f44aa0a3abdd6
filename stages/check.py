"""Check params.yaml before anything is fetched or trained → data/checked/<item>, which never changes.

It runs first, and again whenever params.yaml or a file of one's own changes: DVC by itself would say that
"parameters are missing", or delete models/sft before sft can say that its epochs are no number.

python -m stages.check params         the whole file, and that the files it names are there
python -m stages.check preferences    that the preference stage will have pairs
"""

import os
import subprocess
from importlib.util import find_spec
from pathlib import Path

from stages.settings import memory
from stages.settings.errors import Problem, one_line_errors
from stages.settings.files import replace_file
from stages.settings.params import ROLES, Params
from stages.settings.reader import read
from stages.settings.stage import role_argument
from stages.sources.catalog import adapter_of

SFT_ALONE = "`dvc repro evaluate@sft` (or `dvc exp run … evaluate@sft`) is the run without"


def main(item: str) -> None:
    with one_line_errors():
        params = read()
        if item == "params":
            require_git()
            if why := memory.unplanned(params.chosen_model.weights):
                print(f"check: the memory of {params.model} is {why}")
            require_base(params)
            require_engine(params)
            for role in ROLES:
                require_adapters(params, role)
                if role != "preferences":
                    require_files(params, role)
        else:
            if not params.mixture.preferences:
                raise Problem(f"mixtures.{params.data}.preferences is empty: name pairs there; {SFT_ALONE}")
            require_files(params, "preferences", f"; {SFT_ALONE}")
        with replace_file(Path("data/checked") / item) as temporary:
            temporary.write_text("checked\n")


def require_git() -> None:
    """Raise Problem where git refuses to read the repository, as in a container that is root's: DVC would run
    one stage and then end in git's words.
    """
    asked = subprocess.run(["git", "rev-parse"], capture_output=True, text=True)
    if "dubious ownership" in asked.stderr:
        raise Problem(
            "another user owns this folder, and git does not read it: "
            f"git config --global --add safe.directory {Path.cwd()}"
        )


def require_adapters(params: Params, role: str) -> None:
    """Raise Problem where the columns of a dataset, or its adapter, are not those of the role."""
    for name, (source, _) in params.sources(role).items():
        if not source.builtin:
            adapter_of(params.key(role, name), role, source)


def require_files(params: Params, role: str, otherwise: str = "") -> None:
    """Raise Problem where a local file of a role is not there."""
    for name, (source, _) in params.sources(role).items():
        if source.path:
            require_copied(params.key(role, name), Path(source.path))
        if source.path and not Path(source.path).exists():
            key = params.key(role, name)
            cure = adapter_of(key, role, source).cure
            raise Problem(
                f"{key}: {source.path} is not there: {f'{cure} first' if cure else 'put it there'}, or name "
                f"another dataset{otherwise}"
            )


def require_engine(params: Params) -> None:
    """Raise Problem where vLLM is to answer and is not installed, hours before it is asked."""
    asked = params.sample.prompts and params.sample.engine == "vllm"
    if asked and find_spec("vllm") is None:
        raise Problem(
            "sample.engine is 'vllm', which is not installed: pip install vllm, or take sample.engine: "
            "transformers"
        )


def require_base(params: Params) -> None:
    """Raise Problem where a base model that is a folder is not there."""
    key, path = f"models.{params.model}.weights.path", params.chosen_model.weights.path
    if path:
        require_copied(key, Path(path))
        if not Path(path).is_dir():
            raise Problem(f"{key}: {path} is no folder: name the one that holds the model")


def require_copied(key: str, path: Path) -> None:
    """Raise Problem where the workspace has files that a temporary copy of it lacks: DVC copies what git or
    DVC tracks.
    """
    workspace = Path(os.environ.get("DVC_ROOT", "."))
    origin = workspace / path
    files = [origin] if origin.is_file() else sorted(file for file in origin.rglob("*") if file.is_file())
    names = [os.path.relpath(file, workspace) for file in files if not file.name.startswith(".")]
    lost = [name for name in names if not Path(name).exists()]
    if lost:
        raise Problem(
            f"{key}: {', '.join(lost[:5])}{f' and {len(lost) - 5} more' if len(lost) > 5 else ''} of the "
            "workspace is not in this copy of it, as neither git nor DVC knows of it: `git add` or `dvc add` "
            "it, and start the experiment again"
        )


if __name__ == "__main__":
    with one_line_errors():
        main(role_argument("check", __doc__, ["params", "preferences"]))
