"""What a person is told survives their encoding, their pipe, their disk and a stranger's text."""

import ast
import errno
import os
import subprocess
import sys

import pytest
from safetensors import SafetensorError

from stages.settings.errors import LONGEST, Problem, one_line, one_line_errors
from tests.conftest import ROOT

# The one that must run before anything is installed; its output is ASCII.
BARE = {"tools/preflight.py"}
LISTED = subprocess.run(
    ["git", "ls-files", "-co", "--exclude-standard", "stages", "tools", "benchmarks"],
    cwd=ROOT,
    capture_output=True,
    text=True,
    check=True,
)
ENTRIES = [
    name
    for name in LISTED.stdout.split()
    if name.endswith(".py") and (ROOT / name).exists() and "__main__" in (ROOT / name).read_text("utf-8")
]


@pytest.mark.parametrize("name", sorted(set(ENTRIES) - BARE))
def test_every_entry_point_says_errors_in_one_line_and_in_utf8(name):
    """Before the first print, an argument parser's included."""
    last = ast.parse((ROOT / name).read_text("utf-8")).body[-1]
    assert isinstance(last, ast.If) and ast.unparse(last.test) == "__name__ == '__main__'"
    assert [ast.unparse(item) for item in last.body[0].items] == ["one_line_errors()"]


SAY = """
from stages.settings.errors import Problem, one_line_errors
with one_line_errors():
    print("أهلا → β\\udc80")
    raise Problem("لا: \\x1b[31mred\\u202e")
"""


@pytest.mark.parametrize(
    "environment",
    [
        {"PYTHONIOENCODING": "cp1252"},
        {"PYTHONIOENCODING": "cp1256:strict"},
        {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"},
    ],
)
def test_arabic_goes_through_every_pipe(tmp_path, environment):
    (tmp_path / "say.py").write_text(SAY, encoding="utf-8")
    environment = os.environ | environment | {"PYTHONPATH": str(ROOT)}
    done = subprocess.run([sys.executable, tmp_path / "say.py"], env=environment, capture_output=True)
    assert done.stdout.decode() == "أهلا → β\\udc80\n"
    assert done.stderr.decode() == "error: لا: \\x1b[31mred\\u202e\n"


def test_nobody_who_reads_is_no_error():
    say = "from stages.settings.errors import one_line_errors\n"
    say += "with one_line_errors():\n  for i in range(10**6): print(i)"
    process = subprocess.Popen(
        [sys.executable, "-c", say], cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout.readline() == b"0\n"
    process.stdout.close()
    assert (process.stderr.read(), process.wait()) == (b"", 1)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (
            OSError(errno.ENOSPC, "No space left on device", "data/raw/x"),
            "data/raw/x: the disk is full: free some",
        ),
        (
            OSError("Error writing bytes to file. Detail: [errno 28] No space left on device"),
            "the disk is full",
        ),
        (
            SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
            "the disk is full",
        ),
        (RuntimeError("[enforce fail at inline_container.cc:664] . unexpected pos 1"), "the disk is full"),
        (
            OSError(errno.EROFS, "Read-only file system", "metrics/a.json"),
            "metrics/a.json: the disk is read-only",
        ),
        (
            PermissionError(errno.EACCES, "Permission denied", "models"),
            "models: no permission: make it yours",
        ),
        (Problem("x" * 50_000 + ": the cure"), "xxx"),
    ],
)
def test_what_a_person_can_put_right_is_one_line(capsys, error, said):
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise error
    assert str(ended.value).startswith(f"error: {said}")
    assert str(ended.value).endswith(("run the same command again", ": the cure"))
    assert len(str(ended.value)) < LONGEST + 20


@pytest.mark.parametrize("error", [ValueError("No space left on device"), FileNotFoundError(2, "no", "x")])
def test_a_bug_keeps_its_traceback(error):
    with pytest.raises(type(error)), one_line_errors():
        raise error


def test_an_interrupt_is_one_line(capsys):
    with pytest.raises(SystemExit) as ended, one_line_errors():
        raise KeyboardInterrupt
    assert ended.value.code == 130
    assert capsys.readouterr().err == "error: interrupted: the same command does it again\n"


def test_text_of_any_origin_is_shown_as_what_it_is():
    assert one_line("سطر\nوآخر\u200f \x1b]0;title\x07 \x9b2J") == "سطر وآخر\u200f \\x1b]0;title\\x07 \\x9b2J"
    assert one_line("a" * 30 + "end", 10) == "aaaaa … aaend"
