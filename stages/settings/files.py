"""Atomic writes: a reader sees the old file or the whole new one, never a half. JSON, both ways; hashes;
where caches lie.
"""

import glob
import hashlib
import json
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path` to write to; it takes the place of `path` when the block ends
    well. Each process has a temporary of its own.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = temporary_of(path)
    try:
        yield temporary
        sync(temporary)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def replace_folder(path: Path) -> Iterator[Path]:
    """The same for a folder: yield an empty temporary one that takes the place of `path` when the block ends
    well. At the worst moment of a kill the old one stands aside, and the next call puts it back.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, aside = temporary_of(path), path.with_name(f".{path.name}.old.tmp")
    if aside.exists() and not path.exists():
        os.replace(aside, path)
    remove(temporary)
    temporary.mkdir()
    try:
        yield temporary
        for file in [*temporary.rglob("*"), temporary]:
            sync(file)
        remove(aside)
        if path.exists():
            os.replace(path, aside)
        os.replace(temporary, path)
        remove(aside)
    finally:
        remove(temporary)


def temporary_of(path: Path) -> Path:
    """A path beside `path` for this thread alone. Those of processes that were killed are removed."""
    for old in path.parent.glob(f".{glob.escape(path.name)}.*-*.tmp"):
        process = old.name.split(".")[-2].split("-")[0]
        if process.isdecimal() and not psutil.pid_exists(int(process)):
            remove(old)
    return path.with_name(f".{path.name}.{os.getpid()}-{threading.get_ident()}.tmp")


def remove(path: Path) -> None:
    """A file or a folder, where it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def sync(path: Path) -> None:
    """Have it on the disk itself: a power cut after a rename would else leave an empty file."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def cache(name: str) -> Path:
    """A folder for what can be made again, beside the repository's other caches, also where an experiment
    runs in a temporary copy.
    """
    return Path(os.environ.get("DVC_ROOT", "."), ".cache", name)


def read_json(path: Path) -> dict:
    return json.loads(path.read_text(encoding="utf-8"))


def write_json(path: Path, value: dict) -> None:
    """UTF-8, two blanks, keys in the order given, a newline at the end."""
    with replace_file(path) as temporary:
        temporary.write_text(json.dumps(value, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def sha256(path: Path) -> str:
    return file_hash(path, hashlib.sha256())


def file_hash(path: Path, digest: Any) -> str:
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def is_there(path: Path, size: int) -> bool:
    return path.exists() and path.stat().st_size == size
