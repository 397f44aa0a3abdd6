"""What a harsh week would do, for as long as it is given; prints what was compared. No test of `make test`.

python -m tests.soak kills [--minutes 30]      `dvc repro` is killed at random moments, whole or dvc alone,
                                               until it ends by itself: the same bytes as one left alone?
python -m tests.soak overrides [--minutes 5]   walks of `dvc exp run -S` over params.yaml: still a file?
python -m tests.soak params [--minutes 5]      values of params.yaml exchanged for others: accepted, or
                                               refused in one line?
"""

import argparse
import copy
import math
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

from ruamel.yaml import YAML

from stages.settings import reader
from stages.settings.errors import Problem
from stages.settings.files import sha256
from tests import test_overrides
from tests.conftest import Workspace

COMPARED = ("models/sft", "models/dpo", "data/formatted", "data/predictions", "metrics", "dvc.lock")
KILLS = 4  # of a round at most, before it may end
VALUES = (
    None, True, False, 0, 1, -1, 3, 10**9, 0.5, 1e-9, 1e9, math.inf, -math.inf, math.nan, "", "all", "مرحبا",
    "a b", "../x", "x" * 300, [], [1], ["x"], [None], {}, {"x": 1}, {"": None},
)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("what", choices=["kills", "overrides", "params"])
    parser.add_argument("--minutes", type=float)
    parser.add_argument("--seed", type=int, default=int(time.time()))
    asked = parser.parse_args()
    minutes = asked.minutes or (30 if asked.what == "kills" else 5)
    soak: Callable = {"kills": kills, "overrides": overrides, "params": params}[asked.what]
    print(f"soak: {asked.what}, {minutes:g} minutes, seed {asked.seed}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        faults = soak(Path(folder), random.Random(asked.seed), time.monotonic() + 60 * minutes)
    sys.exit(1 if faults else 0)


# --- kills --------------------------------------------------------------------------------------------------


def kills(folder: Path, rng: random.Random, end: float) -> int:
    start = Workspace(folder / "start")
    start.under_git(folder / "remote")
    began = time.monotonic()
    wanted = finished(start.copy(folder / "alone"))
    whole = time.monotonic() - began
    counts = Counter()
    while time.monotonic() < end:
        project = start.copy(folder / f"round-{counts['rounds']}")
        for _ in range(rng.randint(1, KILLS)):
            kind = rng.choice(["all at once", "dvc alone"])
            if not killed(project, rng.uniform(1, whole), alone=kind == "dvc alone"):
                break
            counts[kind] += 1
        found = finished(project)
        wrong = [name for name in wanted if found.get(name) != wanted[name]]
        counts += Counter(rounds=1, files=len(wanted), differ=len(wrong))
        print(f"round {counts['rounds']}: {len(wanted)} files compared, other: {wrong or 'none'}", flush=True)
    print(f"kills: {dict(counts)}; a run left alone took {whole:.0f} s")
    return counts["differ"]


def killed(project: Workspace, seconds: float, alone: bool) -> bool:
    """Start `dvc repro` and kill it after so many seconds; False where it ended before."""
    with (project.path / "log.tmp").open("a") as log:
        run = subprocess.Popen(
            ["dvc", "repro"], cwd=project.path, stdout=log, stderr=log, start_new_session=True
        )
        try:
            run.wait(seconds)
            return False
        except subprocess.TimeoutExpired:
            os.kill(run.pid, signal.SIGKILL) if alone else os.killpg(run.pid, signal.SIGKILL)
            run.wait()
            return True


def finished(project: Workspace) -> dict[str, str]:
    """The hashes of what a run ends in, but for its seconds and memory."""
    project.run("dvc", "repro")
    files = [path for name in COMPARED for path in [project.path / name, *(project.path / name).rglob("*")]]
    names = {path.relative_to(project.path).as_posix(): path for path in files if path.is_file()}
    timed = ("dvc.lock", "metrics/train_")  # seconds stand in these, and the md5 of these
    return {name: sha256(path) for name, path in names.items() if not name.startswith(timed)}


# --- params.yaml --------------------------------------------------------------------------------------------


def overrides(folder: Path, rng: random.Random, end: float) -> int:
    counts = Counter()
    while time.monotonic() < end:
        for two in pairwise(test_overrides.BLOCKS):
            broken = test_overrides.walk(folder / "params.yaml", "".join(two), rng)
            counts += Counter(walks=1, broken=bool(broken))
            if broken:
                print(broken, flush=True)
    print(f"overrides: {dict(counts)}, of {test_overrides.STEPS} steps each")
    return counts["broken"]


def params(folder: Path, rng: random.Random, end: float) -> int:
    whole = YAML(typ="safe", pure=True).load(test_overrides.TEXT)
    counts = Counter()
    while time.monotonic() < end:
        table, places = copy.deepcopy(whole), []
        for _ in range(rng.randint(1, 3)):
            places.append(exchange(table, rng))
        with (folder / "params.yaml").open("w", encoding="utf-8") as file:
            YAML().dump(table, file)
        kind = outcome(folder / "params.yaml")
        counts[kind if kind in ("accepted", "refused") else "faults"] += 1
        if kind not in ("accepted", "refused"):
            print(f"{places}: {kind}", flush=True)
    print(f"params: {dict(counts)}")
    return counts["faults"]


def exchange(table: dict, rng: random.Random) -> str:
    """Give a random key another value, take it out, or add one beside it; says which."""
    section, key = table, rng.choice(list(table))
    path = key
    while isinstance(section[key], dict) and section[key] and rng.random() < 0.85:
        section = section[key]
        key = rng.choice(list(section))
        path += f".{key}"
    kind = rng.random()
    if kind < 0.1:
        del section[key]
        return f"~{path}"
    if kind < 0.2:
        section[f"{key}x"] = rng.choice(VALUES)
        return f"+{path}x"
    section[key] = rng.choice(VALUES)
    return f"{path}={section[key]!r}"


def outcome(path: Path) -> str:
    try:
        reader.read(path)
    except Problem as problem:
        return "refused" if "\n" not in str(problem) else f"of several lines: {problem}"
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return "accepted"


if __name__ == "__main__":
    main()
