"""Whatever `dvc exp run -S` is asked for, and in whatever order, params.yaml stays a file: walks of overrides
through DVC's own parser and writer.

A walk goes over two sections of the file that stand one after another, comments and all: what DVC's writer
breaks, it breaks where a value meets what follows it, and a short file is written fifty times faster.
"""

import random
import re
from itertools import pairwise
from pathlib import Path

import pytest
from dvc.exceptions import InvalidArgumentError
from dvc.utils.hydra import apply_overrides
from ruamel.yaml import YAML

from tests.conftest import ROOT

TEXT = (ROOT / "params.yaml").read_text(encoding="utf-8")
BLOCKS = re.split(r"^(?=[a-z_]+:)", TEXT, flags=re.MULTILINE)[1:]  # a top-level key each, and what follows it
WALKS = 8  # over each two sections
STEPS = 6
OTHER = {str: "other", bool: "false", int: "3", float: "0.25", type(None): "null"}


def read(text: str) -> dict:
    return YAML(typ="safe", pure=True).load(text)


def overrides(value: object, key: str = "") -> list[str]:
    """All that can be asked of a part of the file: another value; of a list, none or several; of a map, a key
    less or more.
    """
    if isinstance(value, dict):
        inside = f"{key}." if key else ""
        found = [] if "added" in value else [f"+{inside}added=1"]
        for name, own in value.items():
            found += [f"~{inside}{name}", *overrides(own, inside + name)]
        return found + ([f"{key}=null"] if key else [])
    if isinstance(value, list):
        return [f"{key}=[]", f"{key}=[first]", f"{key}=[first,second]"]
    return [f"{key}={OTHER[type(value)]}"]


def asked(values: dict, override: str) -> dict:
    """The values after an override, without DVC."""
    key, _, value = override.lstrip("+~").partition("=")
    *parents, last = key.split(".")
    section = values
    for parent in parents:
        section = section[parent]
    if override.startswith("~"):
        del section[last]
    else:
        section[last] = read(value)
    return values


def walk(path: Path, text: str, rng: random.Random) -> str:
    """How a walk broke the file: it is none any more, or says another thing than was asked for. "" where all
    is well.
    """
    path.write_text(text, encoding="utf-8")
    done = []
    for _ in range(STEPS):
        values = read(path.read_text(encoding="utf-8")) or {}
        done.append(rng.choice(overrides(values)))
        try:
            apply_overrides(path, done[-1:])
        except InvalidArgumentError:  # as Hydra deletes no null
            done.pop()
            continue
        written = path.read_text(encoding="utf-8")
        try:
            right = read(written) == asked(values, done[-1])
        except Exception:
            right = False
        if not right:
            return f"{' '.join(done)}\n{written}"
    return ""


@pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=pytest.mark.long) for seed in (1, 2, 3))])
def test_walks_of_overrides_leave_a_file_that_says_what_was_asked(tmp_path, seed):
    rng = random.Random(seed)
    for two in pairwise(BLOCKS):
        for _ in range(WALKS // 4):
            assert not walk(tmp_path / "params.yaml", "".join(two), rng)


def test_no_comment_stands_where_the_writer_would_lose_a_line():
    """DVC writes an emptied map or list over the end of a comment that stands between the key and its values:
    such a comment stands above.
    """
    lines = TEXT.splitlines()
    for line, after in pairwise(lines):
        opens = re.fullmatch(r"( *)[\w-]+:\s*(?:{.*}|\[.*\])?\s*(#.*)?", line)
        assert not (opens and opens[2]), f"{line}: put it above"
        inside = re.fullmatch(r"( *)#.*", after)
        assert not (opens and inside and len(inside[1]) > len(opens[1])), f"{after}: put it above {line}"


@pytest.mark.parametrize(
    "text", ["r: # why\n  x: 1\nb: 2\n", "r:\n  # why\n  x: 1\nb: 2\n", "r:\n  x: {} # why\n# b\nb: 2\n"]
)
def test_the_writer_breaks_such_a_file(tmp_path, text):
    """Where it does no more, the rule can go."""
    rng = random.Random(1)
    assert any(walk(tmp_path / "params.yaml", text, rng) for _ in range(60))
