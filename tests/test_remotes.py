"""Results travel: to a local remote and to S3, as experiments between clones, and a clone that has them runs nothing again.

The data stages alone, whose outputs are as real as a model's; the whole pipeline is run on demand.
"""

from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from tests.conftest import Workspace
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
    project.environment = {"AWS_ACCESS_KEY_ID": "test", "AWS_SECRET_ACCESS_KEY": "test", "AWS_DEFAULT_REGION": "us-east-1"}
    boto3.client("s3", "us-east-1", endpoint_url=s3, aws_access_key_id="test", aws_secret_access_key="test").create_bucket(Bucket="bucket")
    project.run("dvc", "remote", "add", "s3", "s3://bucket/arabic-qwen")
    project.run("dvc", "remote", "modify", "s3", "endpointurl", s3)
    assert stages_run(project.run("dvc", "repro", "report").stdout)
    project.commit("data")
    project.run("dvc", "push")
    bare = tmp_path_factory.mktemp("bare")
    project.run("git", "clone", "-q", "--bare", ".", str(bare))
    project.run("git", "remote", "add", "origin", str(bare))
    return project


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


def test_results_on_s3(project, tmp_path):
    project.run("dvc", "push", "-r", "s3")
    fresh = clone(project, tmp_path / "fresh")
    fresh.run("dvc", "pull", "-r", "s3", "report", "--with-deps")
    assert runs_nothing(fresh)


def test_an_experiment_goes_from_clone_to_clone(project, tmp_path):
    project.run("dvc", "exp", "run", "-n", "less", "-S", "data.continued.skills=55", "format@continued")
    project.run("dvc", "exp", "push", "origin", "less")
    fresh = clone(project, tmp_path / "fresh")
    assert "less" in fresh.run("dvc", "exp", "list", "origin").stdout
    fresh.run("dvc", "exp", "pull", "origin", "less")
    fresh.run("dvc", "exp", "branch", "less", "less-data")
    fresh.run("git", "switch", "-q", "less-data")
    fresh.run("dvc", "checkout", "--with-deps", "format@continued")
    assert runs_nothing(fresh, "format@continued")
