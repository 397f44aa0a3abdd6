"""What `make` says before it installs anything."""

import subprocess
import sys

import pytest

from tests.conftest import ROOT
from tools import preflight


@pytest.fixture
def clone(tmp_path, monkeypatch):
    subprocess.run(["git", "init", "-q", tmp_path], check=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_a_clone_is_well(clone):
    assert preflight.problem() == ""


@pytest.mark.parametrize(("version", "well"), [((3, 10, 9), False), ((3, 13, 0), True), ((3, 14, 1), False)])
def test_another_python_is_named(clone, monkeypatch, version, well):
    monkeypatch.setattr(sys, "version_info", version)
    assert (preflight.problem() == "") == well
    assert well or preflight.problem().startswith(f"Python {version[0]}.{version[1]} at ")


def test_a_zip_is_no_clone(clone, tmp_path_factory, monkeypatch):
    (clone / "unzipped").mkdir()
    for folder in (clone / "unzipped", tmp_path_factory.mktemp("elsewhere")):
        monkeypatch.chdir(folder)
        assert preflight.problem().startswith("no git repository (a ZIP?): git clone it")
    monkeypatch.setattr(preflight.shutil, "which", lambda name: None)
    assert preflight.problem().startswith("git is not installed")


def test_the_command_stops_make_in_one_line(tmp_path):
    command = [sys.executable, ROOT / "tools/preflight.py"]
    result = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert (result.returncode, result.stdout, result.stderr.count("\n")) == (1, "", 1)
    assert result.stderr.startswith("error: ")
