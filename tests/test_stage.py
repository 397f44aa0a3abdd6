"""A stage at work: what it read must be what DVC records, and it ends with the dvc that started it."""

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from stages.settings import files, stage
from stages.settings.errors import Problem
from stages.settings.reader import read
from tests.conftest import ROOT, Workspace

ROW = '{"prompt": "ما عاصمة مصر؟", "completion": "القاهرة"}\n'


@pytest.fixture
def project(tmp_path, monkeypatch) -> Workspace:
    made = Workspace(tmp_path / "project")
    monkeypatch.chdir(made.path)
    return made


def test_what_a_person_edits_is_watched_and_what_stages_write_is_not(project):
    params = read()
    paths = {
        name: {path.as_posix() for path in stage.edited_paths(name, params, item)}
        for name, item in (("fetch", "preferences"), ("base", ""), ("sft", ""), ("evaluate", "sft"))
    }
    assert {"data/own", "data/feedback", "stages/sources", "stages/fetch.py"} <= paths["fetch"]
    assert "models/nano" in paths["base"]
    assert all(path.startswith("stages/") for name in ("sft", "evaluate") for path in paths[name])


@pytest.mark.parametrize(
    ("item", "file"),
    [
        ("instructions", "data/own/instructions.jsonl"),
        ("preferences", "data/feedback/preferences.jsonl"),
        ("instructions", "data/own/more/new.jsonl"),
    ],
)
@pytest.mark.parametrize("change", ["grown", "same length", "gone"])
def test_rows_edited_while_they_are_read_are_not_recorded(project, item, file, change):
    """A vote as well: DVC would note the new file's hash beside the old rows, and call that up to date."""
    path = project.path / file
    path.parent.mkdir(exist_ok=True)
    path.write_text(ROW, encoding="utf-8")
    with (
        pytest.raises(SystemExit, match=f"{file} changed while stage fetch was running"),
        stage.stage("fetch", item),
    ):
        if change == "gone":
            path.unlink()
        else:
            path.write_text(ROW * 2 if change == "grown" else ROW.replace("م", "ن"), encoding="utf-8")


def test_what_the_stage_does_not_read_does_not_matter(project):
    params = project.path / "params.yaml"
    with stage.stage("fetch", "instructions"):
        text = params.read_text(encoding="utf-8").replace("seed: 7", "seed: seven")
        params.write_text(text, encoding="utf-8")
    with pytest.raises(Problem, match="seed is 'seven'"):
        read()


def test_a_result_can_be_guarded_before_it_is_swapped_in(project):
    with (
        pytest.raises(SystemExit, match=r"seed changed .* not recorded: undo it"),
        stage.stage("sft") as params,
    ):
        params.require_unchanged("undo it")
        path = project.path / "params.yaml"
        path.write_text(path.read_text(encoding="utf-8").replace("seed: 7", "seed: 8"), encoding="utf-8")
        params.require_unchanged("undo it")


WORK = """
import time
from stages.settings.stage import ending_with_dvc
from stages.settings.errors import one_line_errors
with one_line_errors(), ending_with_dvc():
    print("at work", flush=True)
    time.sleep(20)
"""


@pytest.mark.parametrize("name", ["dvc", "other"])
def test_a_stage_ends_with_the_dvc_that_started_it_and_runs_on_without(tmp_path, name):
    """A kill of dvc alone leaves its stage alive; hours later it would replace what the next run has made."""
    (tmp_path / "work.py").write_text(WORK, encoding="utf-8")
    starter = tmp_path / name
    starter.write_text(f"import subprocess\nsubprocess.run('{sys.executable} work.py & wait', shell=True)\n")
    process = subprocess.Popen(
        [sys.executable, starter],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    )
    assert process.stdout.readline() == b"at work\n"
    process.kill()  # it alone, and nobody waits for it yet
    if name == "dvc":
        assert b"the dvc that started this stage has ended" in process.stderr.readline()
        assert process.stderr.read().strip() == b"error: interrupted: the same command does it again"
    else:
        time.sleep(3)
        os.set_blocking(process.stderr.fileno(), False)
        assert not process.stderr.read()
        os.killpg(process.pid, 9)
    process.wait()


# --- files --------------------------------------------------------------------------------------------------


def test_two_processes_write_one_file_and_a_reader_sees_a_whole_one(tmp_path):
    """4 MB, as a reference file has: with one temporary name for both, some fail and some halves are read."""
    write = f"""
import sys; sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from stages.settings.files import replace_file
for i in range(40):
    with replace_file(Path("shared")) as temporary:
        temporary.write_bytes(sys.argv[1].encode() * 4_000_000)
"""
    writers = [subprocess.Popen([sys.executable, "-c", write, letter], cwd=tmp_path) for letter in "abc"]
    seen = set()
    while any(writer.poll() is None for writer in writers):
        if (tmp_path / "shared").exists():
            content = (tmp_path / "shared").read_bytes()
            assert len(content) == 4_000_000
            assert content.count(content[:1]) == len(content)
            seen.add(content[:1])
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    assert len(seen) > 1
    assert [path.name for path in tmp_path.iterdir()] == ["shared"]


def test_what_a_killed_process_left_goes_and_what_another_writes_stays(tmp_path):
    ours, dead = tmp_path / f".file.{os.getpid()}-1.tmp", tmp_path / ".file.999999999-1.tmp"
    for path in (ours, dead):
        path.write_text("half", encoding="utf-8")
    with files.replace_file(tmp_path / "file") as temporary:
        temporary.write_text("whole", encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"file", ours.name}


def test_a_folder_killed_at_its_swap_comes_back(tmp_path, monkeypatch):
    """Either the old one or the new one is there, or the next write puts the old one back first."""
    folder = tmp_path / "folder"
    with files.replace_folder(folder) as temporary:
        (temporary / "file").write_text("old", encoding="utf-8")

    class Killed(BaseException):
        pass

    real = os.replace

    def kill(source, target):
        if Path(target) == folder:
            raise Killed
        real(source, target)

    with monkeypatch.context() as swap:
        swap.setattr(os, "replace", kill)
        with pytest.raises(Killed), files.replace_folder(folder) as temporary:
            (temporary / "file").write_text("new", encoding="utf-8")
    with pytest.raises(ZeroDivisionError), files.replace_folder(folder):
        assert (folder / "file").read_text(encoding="utf-8") == "old"
        raise ZeroDivisionError
    assert (folder / "file").read_text(encoding="utf-8") == "old"
    with files.replace_folder(folder) as temporary:
        (temporary / "file").write_text("new", encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
