"""Which folders are exports, as they were written: these alone may be replaced, and uploaded."""

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
    differences = found(out)
    if added := differences["added"]:
        raise Problem(f"--out {out} holds {added[0]}, which no export wrote and which would be lost: {CURE}")
    if changed := differences["changed"]:
        raise Problem(f"--out {out}: {changed[0]} was changed since it was exported: {CURE}")


def require_untouched(folder: Path) -> None:
    """Raise Problem where a folder is no export, or no longer as it was written."""
    if not (folder / MARK).is_file():
        raise Problem(f"{folder} is no export: `python -m tools.export models/…` makes one")
    for what, names in found(folder).items():
        if names:
            raise Problem(f"{folder}: {names[0]} was {what} since it was exported: export it again")


def found(folder: Path) -> dict[str, list[str]]:
    """The files of an export that were added, changed and removed since it was written."""
    written = listed(folder)
    there = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} - {MARK}
    return {
        "added": sorted(there - written.keys()),
        "changed": sorted(n for n in there & written.keys() if sha256(folder / n) != written[n]),
        "removed": sorted(written.keys() - there),
    }


def listed(folder: Path) -> dict[str, str]:
    """The sha256 of each file that an export wrote, as its mark says."""
    try:
        match read_json(folder / MARK):
            case {"files": dict(files)}:
                return files
    except ValueError:
        pass
    raise Problem(f"{folder / MARK} is not as an export writes it: take another folder, or delete this one")
