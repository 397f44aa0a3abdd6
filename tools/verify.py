"""Check that a commit's metrics are what its pipeline recorded, with git alone: no data, no models, no cache.

    python -m tools.verify [REV]        HEAD by default

dvc.lock of the commit names the md5 of every file a stage read and wrote, and every parameter it read. Each
of those that is in git is compared with the commit; and each path must have one hash throughout, so that what
a stage read is what another wrote.
"""

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator

from ruamel.yaml import YAML

from stages.settings.errors import one_line_errors
from stages.settings.reader import fill, value_of


def main(revision: str) -> None:
    lock = load(revision, "dvc.lock")
    files = set(git("ls-tree", "-rz", "--name-only", revision).decode().split("\0"))
    params, pipeline = (load(revision, name) for name in ("params.yaml", "dvc.yaml"))
    current = defined(pipeline["stages"], params)
    stages = {name: stage for name, stage in lock["stages"].items() if name in current}
    if stale := sorted(lock["stages"].keys() - stages):
        print(f"left out, as {revision} has no such stages any more: {', '.join(stale)}")
    faults, checked = [], 0
    for what, ok in checks(revision, stages, params, files):
        checked += 1
        if not ok:
            faults.append(what)
    for fault in faults:
        print(f"differs: {fault}")
    if faults:
        sys.exit(
            f"error: {len(faults)} of {checked} recorded values are not those of {revision}: run `dvc "
            "repro` and commit the result"
        )
    print(f"{revision}: {checked} recorded values agree with the commit")


def load(revision: str, path: str) -> dict:
    return YAML(typ="safe", pure=True).load(show(revision, path).decode())


def defined(stages: dict, params: dict) -> set[str]:
    """The names of a pipeline's stages: of a foreach one for each item, as a list or the keys of a table.
    dvc.lock keeps what it recorded of others, as of a pass that `refine` named once.
    """
    found = set()
    for name, stage in stages.items():
        if "foreach" not in stage:
            found.add(name)
            continue
        each = stage["foreach"]
        if isinstance(each, str):
            each = value_of(params, each.removeprefix("${").removesuffix("}"))
        found |= {f"{name}@{fill(str(item), params)}" for item in each}
    return found


def checks(revision: str, stages: dict, params: dict, files: set[str]) -> Iterator[tuple[str, bool]]:
    """Each thing that dvc.lock records and git can tell, and whether they agree."""
    hashes: dict[str, str] = {}
    for name, stage in stages.items():
        for entry in [*stage.get("deps", []), *stage.get("outs", [])]:
            path, md5 = entry["path"], entry["md5"]
            yield f"{path}, as {name} saw it", hashes.setdefault(path, md5) == md5
            if path in files:
                yield (
                    f"{path}, in git and as {name} saw it",
                    hashlib.md5(show(revision, path)).hexdigest() == md5,
                )
            elif below := sorted(
                file for file in files if file.startswith(path + "/") and md5.endswith(".dir")
            ):
                yield f"{path}/, in git and as {name} saw it", folder_md5(revision, path, below) == md5
        for key, value in stage.get("params", {}).get("params.yaml", {}).items():
            yield f"{key}, in params.yaml and as {name} saw it", value_of(params, key) == value


def folder_md5(revision: str, path: str, files: list[str]) -> str:
    return dvc_md5({file[len(path) + 1 :]: hashlib.md5(show(revision, file)).hexdigest() for file in files})


def dvc_md5(files: dict[str, str]) -> str:
    """DVC's hash of a folder, given the md5 of its files by their relative paths: the md5 of a JSON list."""
    entries = [{"md5": files[name], "relpath": name} for name in sorted(files)]
    return hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir"


def show(revision: str, path: str) -> bytes:
    return git("show", f"{revision}:{path}")


def git(*arguments: str) -> bytes:
    result = subprocess.run(["git", *arguments], capture_output=True)
    if result.returncode:
        sys.exit(f"error: git {' '.join(arguments)}: {result.stderr.decode().strip()}")
    return result.stdout


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1] if len(sys.argv) > 1 else "HEAD")
