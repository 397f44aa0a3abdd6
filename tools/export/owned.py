"""Which folders an export may take the place of: its own ones, as they were written, and no others."""

from pathlib import Path

from stages.settings.errors import Problem
from stages.settings.files import read_json, sha256, write_json

MARK = "export.json"  # in an export: the sha256 of each file that was written
CURE = "give --out a folder that does not exist"


def mark(folder: Path) -> None:
    """Note what an export wrote."""
    names = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file())
    write_json(folder / MARK, {"files": {name: sha256(folder / name) for name in names}})


def require_own(out: Path) -> None:
    """Raise Problem where writing an export would delete what no export wrote."""
    place, project = out.resolve(), Path.cwd().resolve()
    if place.is_relative_to(project / "models") or project.is_relative_to(place):
        raise Problem(f"--out {out} is where the project itself has its files: {CURE}")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if not (out / MARK).is_file():
        raise Problem(f"--out {out} holds something else than an export, which would be lost: {CURE}")
    written = read_json(out / MARK)["files"]
    there = {path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file()} - {MARK}
    if added := sorted(there - written.keys()):
        raise Problem(f"--out {out} holds {added[0]}, which no export wrote and which would be lost: {CURE}")
    if changed := [name for name in sorted(there) if sha256(out / name) != written[name]]:
        raise Problem(f"--out {out}: {changed[0]} was changed since it was exported: {CURE}")
