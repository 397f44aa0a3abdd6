"""A stage at work: what it may see, what must not change meanwhile, and when it ends.

`with stage("sft") as params:` wraps the work of every stage. It checks the WHOLE of params.yaml, so that a
bad `method` never costs an sft run; gives the stage only what dvc.yaml declares for it, so that an undeclared
read fails at once; notices params, code or files of a person edited while the stage ran, which DVC would
record as if they had been used; and ends with the `dvc` that started it, whose next run would meet it else.
"""

import argparse
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from stages.settings.errors import Problem, one_line_errors
from stages.settings.files import sha256
from stages.settings.params import Params
from stages.settings.reader import fill, load, read, value_of


def declaration(name: str) -> tuple[dict, Any]:
    """The stage's entry in dvc.yaml (of a foreach, its `do`), and what its foreach goes over."""
    entry = load(Path("dvc.yaml"))["stages"][name]
    return entry.get("do", entry), entry.get("foreach", [])


def filled(texts: list[str], name: str, params: Params, item: str) -> list[str]:
    """Keys or paths of a stage in dvc.yaml, with ${…} filled in."""
    each = declaration(name)[1]
    if isinstance(each, dict) and item not in each:
        raise Problem(f"dvc.yaml names no {item!r} under {name}: it has {', '.join(each)}")
    value = each[item] if isinstance(each, dict) else item
    chosen = {"model": params.model, "data": params.data, "method": params.method}
    values = chosen | {"key": item, "item": value}
    return [fill(text, values) for text in texts]


def declared_keys(name: str, params: Params, item: str = "") -> list[str]:
    """The params that dvc.yaml declares for a stage."""
    return filled(declaration(name)[0].get("params", []), name, params, item)


def edited_paths(name: str, params: Params, item: str = "") -> list[Path]:
    """What dvc.yaml declares that a stage reads and no stage writes: code, and files of a person."""
    entries = [entry.get("do", entry) for entry in load(Path("dvc.yaml"))["stages"].values()]
    kinds = ("outs", "metrics", "plots")
    written = [out for entry in entries for kind in kinds for out in entry.get(kind, [])]
    names = [next(iter(out)) if isinstance(out, dict) else out for out in written]
    starts = tuple(path.split("${")[0].rstrip("/") for path in names)
    deps = filled(declaration(name)[0]["deps"], name, params, item)
    return [Path(path) for path in dict.fromkeys(deps) if not path.startswith(starts)]


def only(value: Any, keys: list[str]) -> Any:
    """A copy of a section with nothing but `keys` (dotted); reading anything else raises Problem."""
    if "" in keys:
        return value
    names = list(value) if isinstance(value, dict) else type(value).model_fields
    kept = {}
    for name in names:
        below = [key[len(name) :].lstrip(".") for key in keys if key == name or key.startswith(name + ".")]
        if below:
            kept[name] = only(value[name] if isinstance(value, dict) else getattr(value, name), below)
    return kept if isinstance(value, dict) else type(value).model_construct(**kept)


@contextmanager
def stage(name: str, item: str = "") -> Iterator[Params]:
    """Check params.yaml, yield what the stage may read, and fail if that, its code or a person's files moved
    meanwhile.

    `item` is the stage's item where dvc.yaml has a foreach.
    """
    quiet()
    if name not in ("fetch", "base"):
        os.environ["HF_HUB_OFFLINE"] = "1"
    with one_line_errors(), ending_with_dvc():
        params = read()
        keys, paths = declared_keys(name, params, item), edited_paths(name, params, item)
        before = snapshot(keys, paths)

        def require_unchanged(otherwise: str = "run again") -> None:
            after = snapshot(keys, paths)
            for key in [*before, *after]:
                if before.get(key) != after.get(key):
                    raise Problem(
                        f"{key} changed while stage {name} was running, so its result is not recorded: "
                        f"{otherwise}"
                    )

        yield only(params, keys).guarded(require_unchanged)
        require_unchanged()


@contextmanager
def ending_with_dvc() -> Iterator[None]:
    """Interrupt this process when the `dvc` that started it is gone, be it killed alone. What a person
    started without dvc runs on.
    """
    dvc = next(filter(is_dvc, psutil.Process().parents()), None)
    done = threading.Event()

    def watch() -> None:
        while not done.wait(1):
            if not dvc.is_running() or dvc.status() == psutil.STATUS_ZOMBIE:
                with suppress(OSError):
                    print("error: the dvc that started this stage has ended", file=sys.stderr, flush=True)
                signal.pthread_kill(threading.main_thread().ident, signal.SIGUSR2)
                return

    if not dvc:
        yield
        return
    # Not SIGINT, which a shell has its background jobs ignore.
    before = signal.signal(signal.SIGUSR2, signal.default_int_handler)
    threading.Thread(target=watch, daemon=True).start()
    try:
        yield
    finally:
        done.set()
        signal.signal(signal.SIGUSR2, before)


def is_dvc(process: psutil.Process) -> bool:
    """By its command line: `dvc repro`, `python -m dvc repro`."""
    with suppress(psutil.Error):
        return any(Path(word).name in ("dvc", "dvc.exe") for word in process.cmdline()[:4])
    return False


def role_argument(name: str, description: str, roles: Iterable[str]) -> str:
    """The role that the command line of a stage gives."""
    parser = argparse.ArgumentParser(f"python -m stages.{name}", description=description)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("role", choices=list(roles))
    return parser.parse_args().role


def quiet() -> None:
    """Before any library is imported: no noise that a user cannot act on."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    os.environ.setdefault("PYTORCH_ALLOC_CONF", "expandable_segments:True")  # a GPU's memory in fewer pieces
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("HF_DATASETS_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")  # and no request but for files
    os.environ["HF_HUB_VERBOSITY"] = (
        "error"  # its warnings repeat what a server says, be it the token it was sent
    )
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", category=FutureWarning)  # what a library will call differently one day


def snapshot(keys: list[str], paths: list[Path]) -> dict[str, str]:
    """The values of params and the digests of files, as they are now. What else stands in params.yaml, be it
    wrong, does not matter to a stage that is at work.
    """
    whole = load(Path("params.yaml"))
    files = [file for path in paths for file in ([path] if path.is_file() else sorted(path.rglob("*")))]
    visible = [
        file
        for file in files
        if file.is_file() and not file.name.startswith(".") and "__pycache__" not in file.parts
    ]
    return {key: repr(value_of(whole, key)) for key in keys} | {str(path): sha256(path) for path in visible}
