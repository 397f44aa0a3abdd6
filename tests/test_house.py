"""The house: imports run one way, and dvc.yaml names the rooms that each stage's code stands in."""

import ast
from pathlib import Path

import pytest
from ruamel.yaml import YAML

ROOT = Path(__file__).parents[1]
STAGES = YAML(typ="safe").load((ROOT / "dvc.yaml").read_text(encoding="utf-8"))["stages"]
ENTRIES = {name: entry.get("do", entry) for name, entry in STAGES.items()}
# From below: a module imports from its own room and from lower floors. The scripts, stages/*.py, stand on top
# and do not import each other.
FLOORS = [
    {"text"}, {"settings"}, {"builtin", "gate", "sources"}, {"model"}, {"console"}, {"judge", "training"},
    {"evaluation", "preference"},
]  # fmt: skip
FLOOR = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# What only checks and shows is no dependency: an edit of it should not cost anyone an sft run.
PLUMBING = ("stages/settings/", "stages/console/")
RESULTS = {"stages/settings/methods.py"}  # but for the table of methods


def imported(path: Path) -> set[Path]:
    """The modules of stages/ that a module imports, late imports too."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "stages":
            folder = ROOT / node.module.replace(".", "/")
            found |= (
                {folder.with_suffix(".py")}
                if not folder.is_dir()
                else {folder / f"{name.name}.py" for name in node.names}
            )
    assert all(module.exists() for module in found), found
    return found


def room(path: Path) -> str:
    """ "" for a script."""
    return path.relative_to(ROOT / "stages").parent.as_posix().strip(".")


@pytest.mark.parametrize(
    "path", sorted(ROOT.glob("stages/**/*.py")), ids=lambda path: path.relative_to(ROOT).as_posix()
)
def test_imports_run_one_way(path):
    here = FLOOR.get(room(path), len(FLOORS))
    for module in imported(path):
        assert room(module) == room(path) != "" or FLOOR.get(room(module), len(FLOORS)) < here, (
            f"{path} imports {module}"
        )


def test_every_script_is_a_stage_and_every_room_stands_on_a_floor():
    scripts = {entry["cmd"].split(" -m ")[1].split()[0] for entry in ENTRIES.values()}
    assert {f"stages.{path.stem}" for path in ROOT.glob("stages/*.py")} == scripts
    assert {path.parent.name for path in ROOT.glob("stages/*/*.py")} == set(FLOOR)


def everything(path: Path, seen: set[Path]) -> set[Path]:
    """A module and all that it imports, directly or not, without what only checks and shows and what that
    imports.
    """
    seen.add(path)
    for module in imported(path) - seen:
        if not is_plumbing(module):
            everything(module, seen)
    return seen


def is_plumbing(path: Path) -> bool:
    name = path.relative_to(ROOT).as_posix()
    return name.startswith(PLUMBING) and name not in RESULTS


@pytest.mark.parametrize("name", ENTRIES)
def test_the_rooms_of_a_stage_cover_what_it_imports(name):
    entry = ENTRIES[name]
    script = ROOT / (entry["cmd"].split(" -m ")[1].split()[0].replace(".", "/") + ".py")
    code = [ROOT / path for path in entry["deps"] if path.startswith("stages/")]
    modules = everything(script, set())
    uncovered = {module for module in modules if not any(part in (module, *module.parents) for part in code)}
    unneeded = {part for part in code if not any(part in (module, *module.parents) for module in modules)}
    assert (uncovered, unneeded) == (set(), set())


def test_no_list_stands_twice_in_dvc_yaml():
    text = (ROOT / "dvc.yaml").read_text(encoding="utf-8")
    assert len(text.splitlines()) <= 110
    lists = [entry[kind] for entry in ENTRIES.values() for kind in ("deps", "params") if kind in entry]
    distinct = {id(one): tuple(one) for one in lists}.values()  # an alias is the same list
    assert len(set(distinct)) == len(distinct)
