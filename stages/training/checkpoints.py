"""Checkpoints that survive any kill: outside DVC's outputs, under a name made of everything that determines
the run.

`.cache/checkpoints/<stage>-<digest>/checkpoint-<step>`. A run that starts with the same inputs, params, code
and libraries goes on from the last whole one, so a stale or a foreign checkpoint is never picked up; the
folder goes when the run is done.
"""

import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

from accelerate import Accelerator
from filelock import FileLock, Timeout

from stages.settings.files import cache, read_json
from stages.training.looks import exhausted

STALE = 14 * 24 * 3600  # seconds after which the checkpoints of an abandoned run are removed


@contextmanager
def claimed(name: str, determinants: dict, accelerator: Accelerator) -> Iterator[Path]:
    """The folder of a run, for its processes alone; removed when the block ends well, with what abandoned
    runs left.
    """
    root = cache("checkpoints")
    folder = root / f"{name}-{digest(determinants)}"
    root.mkdir(parents=True, exist_ok=True)
    first = accelerator.is_main_process
    with patient_lock(folder) if first else nullcontext():
        folder.mkdir(exist_ok=True)
        accelerator.wait_for_everyone()
        yield folder
        accelerator.wait_for_everyone()
        if first:
            shutil.rmtree(folder)
            for old in root.iterdir():
                if old.is_dir() and time.time() - old.stat().st_mtime > STALE:
                    remove_unused(old)


def digest(determinants: dict) -> str:
    """Of what is given and of the code that was loaded for it, but for what only shows."""
    modules = {
        name: module.__file__ for name, module in sorted(sys.modules.items()) if name.startswith("stages.")
    }
    code = {
        name: hashlib.sha256(Path(file).read_bytes()).hexdigest()
        for name, file in modules.items()
        if file and not name.startswith("stages.console.")
    }
    text = json.dumps(determinants | {"code": code}, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def lock_of(folder: Path) -> FileLock:
    return FileLock(folder.with_name(f"{folder.name}.lock"))


@contextmanager
def patient_lock(folder: Path) -> Iterator[None]:
    """Held by one process at a time; the system frees it when the process ends, however it ends."""
    lock = lock_of(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(
            f"{folder.name}: the same training is still running in another process, waiting for it",
            flush=True,
        )
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def remove_unused(folder: Path) -> None:
    """Remove a folder that no process holds."""
    try:
        with lock_of(folder).acquire(timeout=0):
            shutil.rmtree(folder)
    except Timeout:
        return


def last_whole(folder: Path, patience: int) -> Path | None:
    """The newest checkpoint that was written to its end, of those before the last step or an early stop (from
    that one the trainer would take one step more).
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    return next((path for path in found if steps_left(path, patience)), None)


def steps_left(checkpoint: Path, patience: int) -> int:
    """0 for a checkpoint that is not whole: the trainer writes trainer_state.json last."""
    try:
        state = read_json(checkpoint / "trainer_state.json")
        return 0 if exhausted(state["log_history"], patience) else state["max_steps"] - state["global_step"]
    except (FileNotFoundError, ValueError):
        return 0
