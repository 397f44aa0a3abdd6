"""Results travel: to a local remote and to S3, as experiments between clones, and a clone that has them runs
nothing again.

The data stages alone, whose outputs are as real as a model's. On demand the whole pipeline, and the CI
examples on it.
"""

import json
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import ClassVar

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.conftest import ROOT, Workspace
from tests.test_ci_examples import INSTALLS, SCRIPTS
from tests.test_pipeline import stages_run


@pytest.fixture(scope="module")
def s3():
    """An S3 of our own on 127.0.0.1."""
    server = ThreadedMotoServer("127.0.0.1", 0, verbose=False)
    server.start()
    yield "http://{}:{}".format(*server.get_host_and_port())
    server.stop()


@pytest.fixture(scope="module")
def project(tmp_path_factory, s3) -> Workspace:
    """Its data made, committed and pushed; `origin` is a bare git repository."""
    project = Workspace(tmp_path_factory.mktemp("project"))
    project.under_git(tmp_path_factory.mktemp("remote"))
    project.environment = {
        "AWS_ACCESS_KEY_ID": "test",
        "AWS_SECRET_ACCESS_KEY": "test",
        "AWS_DEFAULT_REGION": "us-east-1",
    }
    boto3.client(
        "s3", "us-east-1", endpoint_url=s3, aws_access_key_id="test", aws_secret_access_key="test"
    ).create_bucket(Bucket="bucket")
    project.run("dvc", "remote", "add", "s3", "s3://bucket/arabic-qwen")
    project.run("dvc", "remote", "modify", "s3", "endpointurl", s3)
    assert stages_run(project.run("dvc", "repro", "report").stdout)
    publish(project, tmp_path_factory.mktemp("bare"))
    return project


def publish(project: Workspace, bare: Path) -> None:
    """Commit its results and push them, to git as to DVC's remote."""
    project.commit("results")
    project.run("dvc", "push")
    project.run("git", "clone", "-q", "--bare", ".", str(bare))
    project.run("git", "remote", "add", "origin", str(bare))


def clone(project: Workspace, path: Path, *options: str) -> Workspace:
    """A fresh clone of `origin`, with no bytes of DVC's."""
    origin = project.run("git", "remote", "get-url", "origin").stdout.strip()
    project.run("git", "clone", "-q", *options, origin, str(path))
    assert not (path / "data/raw/instructions").exists()
    return project.at(path)


def runs_nothing(fresh: Workspace, target: str = "report", *options: str) -> bool:
    return not stages_run(fresh.run("dvc", "repro", *options, target).stdout)


def test_a_clone_pulls_and_runs_nothing(project, tmp_path):
    """Also where git is told to write Windows' line ends: files are the same bytes there."""
    fresh = clone(project, tmp_path / "fresh", "-c", "core.autocrlf=true")
    fresh.run("dvc", "pull", "report", "--with-deps")
    assert runs_nothing(fresh)
    name = "data/formatted/instructions/train.parquet"
    assert (fresh.path / name).read_bytes() == (project.path / name).read_bytes()


def test_a_clone_is_checked_without_a_download(project, tmp_path):
    fresh = clone(project, tmp_path / "fresh")
    assert runs_nothing(fresh, "report", "--pull", "--allow-missing")
    assert not (fresh.path / "data/raw/instructions").exists()


@pytest.mark.long
def test_results_on_s3(project, tmp_path):
    project.run("dvc", "push", "-r", "s3")
    fresh = clone(project, tmp_path / "fresh")
    fresh.run("dvc", "pull", "-r", "s3", "report", "--with-deps")
    assert runs_nothing(fresh)


@pytest.mark.slow
def test_an_experiment_goes_from_clone_to_clone(project, tmp_path):
    project.run(
        "dvc", "exp", "run", "-n", "less", "-S", "mixtures.demo.continued.skills=55", "format@continued"
    )
    project.run("dvc", "exp", "push", "origin", "less")
    fresh = clone(project, tmp_path / "fresh")
    assert "less" in fresh.run("dvc", "exp", "list", "origin").stdout
    fresh.run("dvc", "exp", "pull", "origin", "less")
    fresh.run("dvc", "exp", "branch", "less", "less-data")
    fresh.run("git", "switch", "-q", "less-data")
    fresh.run("dvc", "checkout", "--with-deps", "format@continued")
    assert runs_nothing(fresh, "format@continued")


# --- the whole pipeline -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Workspace:
    """Trained, committed and pushed; on the branch `kto` by another method, of which there is an experiment,
    too.
    """
    trained = Workspace(tmp_path_factory.mktemp("trained"))
    trained.under_git(tmp_path_factory.mktemp("remote"))
    trained.run("dvc", "repro")
    publish(trained, tmp_path_factory.mktemp("bare"))
    trained.run("dvc", "exp", "run", "-n", "by-kto", "-S", "method=kto")
    trained.run("dvc", "exp", "push", "origin", "by-kto")
    trained.run("git", "switch", "-q", "-c", "kto")
    trained.commit("kto")
    trained.run("dvc", "push")
    trained.run("git", "push", "-q", "origin", "kto")
    return trained


@pytest.mark.slow
def test_a_clone_is_checked_without_its_models(trained, tmp_path):
    fresh = clone(trained, tmp_path / "fresh")
    assert not stages_run(fresh.run("dvc", "repro", "--pull", "--allow-missing").stdout)
    assert not (fresh.path / "models/sft").exists()
    fresh.run("dvc", "pull")
    assert not stages_run(fresh.run("dvc", "repro").stdout)
    assert (fresh.path / "models/sft").exists()


@pytest.mark.slow
def test_an_experiment_is_shown_and_applied_elsewhere(trained, tmp_path):
    fresh = clone(trained, tmp_path / "fresh")
    fresh.run("dvc", "exp", "pull", "origin", "by-kto")
    shown = next(
        line
        for line in (ROOT / "docs/dvc.md").read_text(encoding="utf-8").splitlines()
        if line.startswith("dvc exp show")
    )
    fresh.environment["COLUMNS"] = "120"
    table = fresh.run("bash", "-c", shown).stdout
    assert "…" not in table
    assert [line.split()[-1] for line in table.splitlines() if "nano" in line] == ["dpo", "dpo", "kto"]
    fresh.run("dvc", "exp", "apply", "by-kto")
    assert not stages_run(fresh.run("dvc", "repro").stdout)


@pytest.mark.slow
@pytest.mark.parametrize("command", ["exp show", "data status", "plots diff"])
def test_what_an_editor_asks_for_is_json(trained, command):
    """What DVC's extension for VS Code reads."""
    json.loads(trained.run("dvc", *command.split(), "--json").stdout)


class Notes(BaseHTTPRequestHandler):
    """GitLab's endpoint for notes."""

    got: ClassVar[dict[str, str]] = {}

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"])).decode()
        self.got.update(path=self.path, token=self.headers["PRIVATE-TOKEN"], body=body)
        self.send_response(201)
        self.end_headers()

    def log_message(self, *_):
        pass


@pytest.fixture
def gitlab():
    with HTTPServer(("127.0.0.1", 0), Notes) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


@pytest.fixture
def pull_request(trained, tmp_path) -> Workspace:
    """A clone at the branch, as a runner has it, with a `gh` that keeps what it is given."""
    runner = clone(trained, tmp_path / "runner", "--branch", "kto")
    (tmp_path / "gh").write_text(f'#!/bin/sh\necho "$*" > {tmp_path}/asked\ncp "$5" {tmp_path}/comment\n')
    (tmp_path / "gh").chmod(0o755)
    runner.environment = {"BASE": runner.run("git", "rev-parse", "origin/HEAD").stdout.strip(), "NUMBER": "5"}
    return runner


def says_what_changed(comment: str) -> bool:
    return "| metrics/dpo.json " in comment and "| benchmark |" in comment and "of workspace" in comment


@pytest.mark.slow
def test_the_commands_of_the_github_example(pull_request, tmp_path):
    said = ""
    for script in SCRIPTS["github"][1:]:
        said += pull_request.run("bash", "-e", "-c", f"PATH={tmp_path}:$PATH\n{script}").stdout
    assert not stages_run(said)
    assert (
        tmp_path / "asked"
    ).read_text() == "pr comment 5 --body-file comment.md --edit-last --create-if-none\n"
    assert says_what_changed((tmp_path / "comment").read_text(encoding="utf-8"))


@pytest.mark.slow
def test_the_commands_of_the_gitlab_example(pull_request, gitlab):
    names = {
        "CI_API_V4_URL": gitlab,
        "CI_PROJECT_ID": "3",
        "CI_MERGE_REQUEST_IID": "5",
        "RESULTS_TOKEN": "hidden",
    }
    pull_request.environment |= names
    commands = [command for command in SCRIPTS["gitlab"] if command != INSTALLS]
    result = pull_request.run("bash", "-e", "-o", "pipefail", "-c", "\n".join(commands))
    assert not stages_run(result.stdout)
    assert "hidden" not in result.stdout + result.stderr
    assert (Notes.got["path"], Notes.got["token"]) == ("/projects/3/merge_requests/5/notes", "hidden")
    assert says_what_changed(Notes.got["body"])
