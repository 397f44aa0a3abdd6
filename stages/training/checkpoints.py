"""Checkpoints that survive any kill: outside DVC's outputs, under a name made of everything that determines
the run.

`.cache/checkpoints/<stage>-<digest>/checkpoint-<step>`. A run that starts with the same inputs, params, code
and libraries goes on from the last whole one, so a stale or a foreign checkpoint is never picked up. What a
run ends in stands there, too, in `finished`, until it is what models/<stage> holds; then the folder goes.
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from filelock import FileLock, Timeout
from transformers import TrainerCallback

from stages.settings.files import cache, is_there, read_json, replace_folder, sha256, sync, write_json
from stages.training.looks import exhausted

SEAL = "sealed.json"  # of a checkpoint: its files, their sizes in bytes and sha256
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
    output = root / f"{name}-in-{hashlib.sha256(os.fsencode(Path.cwd())).hexdigest()[:8]}"
    with ExitStack() as locks:
        if first:
            locks.enter_context(patient_lock(folder, "the same training"))
            locks.enter_context(patient_lock(output, f"another training of models/{name}"))
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
def patient_lock(folder: Path, what: str) -> Iterator[None]:
    """Held by one process at a time; the system frees it when the process ends, however it ends."""
    lock = lock_of(folder)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        print(f"{folder.name}: {what} is still running in another process, waiting for it", flush=True)
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


class Seal(TrainerCallback):
    """Writes into every checkpoint, last, what is in it."""

    def __init__(self, accelerator: Accelerator):
        self.accelerator = accelerator

    def on_save(self, args, state, control, **kwargs):
        self.accelerator.wait_for_everyone()  # each process writes a part
        if self.accelerator.is_main_process:
            seal(Path(args.output_dir) / f"checkpoint-{state.global_step}")


def seal(checkpoint: Path) -> None:
    """Have a checkpoint on the disk itself, then note the size and hash of its files."""
    files = [path for path in sorted(checkpoint.rglob("*")) if path.is_file()]
    for path in [*files, checkpoint]:
        sync(path)
    facts = {path.relative_to(checkpoint).as_posix(): [path.stat().st_size, sha256(path)] for path in files}
    write_json(checkpoint / SEAL, facts)


def damage(checkpoint: Path) -> str:
    """What is wrong with a checkpoint; "" where it is as it was sealed."""
    try:
        facts = read_json(checkpoint / SEAL)
        for name, (size, digest) in facts.items():
            path = checkpoint / name
            if not is_there(path, size) or sha256(path) != digest:
                return f"{name} is missing or another"
    except FileNotFoundError:
        return "it was not written to its end"
    except (ValueError, AttributeError, TypeError):
        return f"{SEAL} cannot be read"
    return ""


def last_whole(folder: Path, patience: int = 0) -> Path | None:
    """The newest checkpoint that is as it was written, of those before the last step or an early stop (from
    that one the trainer would take one step more), and whose best one before it is whole as well. Says which
    newer ones are not.
    """
    found = sorted(folder.glob("checkpoint-*"), key=lambda path: int(path.name.split("-")[1]), reverse=True)
    for path in found:
        if why := damage(path):
            print(f"{path.name} cannot be gone on from: {why}", flush=True)
        elif steps_left(path, patience) and not damage(best_of(path)):
            return path
    return None


def agreed(folder: Path, patience: int, accelerator: Accelerator) -> Path | None:
    """The last whole checkpoint, as one process found it and all go on from it."""
    found = last_whole(folder, patience) if accelerator.is_main_process else None
    return broadcast_object_list([found])[0]


def best_of(checkpoint: Path) -> Path:
    """The checkpoint that was the best one when this was written; itself where none was."""
    best = read_json(checkpoint / "trainer_state.json").get("best_model_checkpoint")
    return checkpoint.with_name(Path(best).name) if best else checkpoint


def steps_left(checkpoint: Path, patience: int) -> int:
    """Of a run that would go on from a whole checkpoint."""
    state = read_json(checkpoint / "trainer_state.json")
    return 0 if exhausted(state["log_history"], patience) else state["max_steps"] - state["global_step"]


def publish(finished: Path, folder: Path) -> None:
    """Let a folder be what a run ended in: other names of the same files where the disk can."""
    with replace_folder(folder) as temporary:
        shutil.copytree(finished, temporary, copy_function=link_or_copy, dirs_exist_ok=True)


def link_or_copy(source: str, target: str) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
