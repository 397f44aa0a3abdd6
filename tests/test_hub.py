"""Downloads from a real HTTP hub on 127.0.0.1: whatever goes wrong ends in a whole file or in one line with
the cure.
"""

import gzip
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx2
import pytest

from stages import base
from stages.settings.errors import Problem
from stages.sources import hub
from tests.conftest import ROOT
from tests.fake_hub import FakeHub, blob_id, crawling, cutting, failing, send, sending

DATA = "data/train-00000-of-00001.parquet"
BIG = bytes(range(256)) * 8192  # 2 MiB
FILES = {
    "README.md": b"---\nlicense: cc-by-nc-4.0\n---\n",
    DATA: BIG,
    "data/small.csv": b"a,b\n",
    "train.py": b"evil",
    "old.bin": b"pickle",
}
FETCH = """
import json
from stages.sources import hub
from stages.settings.errors import one_line_errors
from stages.settings.stage import quiet
quiet()
hub.WAITS = (0.1, 0.1, 0.1)
with one_line_errors():
    names = {names!r}
    chosen = lambda all: [n for n in all if n in names]
    found = hub.snapshot("datasets.instructions.mine", "dataset", "me/mine", {revision!r}, chosen)
    print(json.dumps([str(found.folder), found.commit, found.files, found.licence]))
"""


class Client:
    """A process with a hub cache of its own."""

    def __init__(self, home: Path, url: str):
        self.home = home
        self.environment = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
        self.environment |= {"HF_HOME": str(home), "HF_ENDPOINT": url}

    def start(self, *names: str, revision: str = "main", **environment: str) -> subprocess.Popen:
        code = FETCH.format(names=names or (DATA,), revision=revision)
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        return subprocess.Popen(
            [sys.executable, "-c", code], cwd=ROOT, env=self.environment | environment, **pipes
        )

    def fetch(self, *names: str, **options: str) -> dict[str, bytes]:
        """The files fetched, by name; fails where the process did."""
        process = self.start(*names, **options)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        folder, _, files, _ = json.loads(out.splitlines()[-1])
        return {name: Path(folder, name).read_bytes() for name in files}

    def error(self, *names: str, **options: str) -> str:
        """The one line that the process ended in."""
        process = self.start(*names, **options)
        out, err = process.communicate(timeout=60)
        assert process.returncode == 1, out
        assert err.count("\n") == 1, err
        assert err.startswith("error: datasets.instructions.mine: dataset me/mine at ")
        return err

    def parts(self) -> list[Path]:
        return list(self.home.rglob("*.part"))

    def blob(self) -> Path:
        return next(self.home.rglob(blob_id(DATA, BIG)))


def ranges(server: FakeHub) -> list[str]:
    """What was asked of DATA, request by request; "" is all of it."""
    return [given for path, given, _ in server.log if path.endswith(DATA)]


@pytest.fixture
def server():
    with FakeHub({("dataset", "me/mine"): FILES}) as server:
        yield server


@pytest.fixture
def client(server, tmp_path):
    return Client(tmp_path / "home", server.url)


def test_what_is_there_costs_no_request_and_main_stays_what_it_was(server, client):
    assert client.fetch() == {DATA: BIG}
    assert len(server.log) == 2  # what there is, and the one file that was wanted
    server.push("dataset", "me/mine", {DATA: b"moved"})
    assert client.fetch() == {DATA: BIG}
    assert client.fetch(HF_HUB_OFFLINE="1") == {DATA: BIG}
    assert len(server.log) == 2
    assert client.fetch(DATA, "data/small.csv") == {
        DATA: BIG,
        "data/small.csv": b"a,b\n",
    }  # only what is missing, of the same commit
    assert server.asked(DATA) == server.asked(DATA)[:1]


def test_the_cache_is_laid_out_as_every_tool_expects(server, client):
    client.fetch()
    home = client.home.rename(client.home.with_name("moved"))
    code = (
        "from huggingface_hub import hf_hub_download as get; print(get('me/mine', %r, "
        "repo_type='dataset', revision=%r))"
    )
    commit = next(iter(server.commits["dataset", "me/mine"]))
    environment = client.environment | {"HF_HUB_OFFLINE": "1", "HF_HOME": str(home)}
    path = subprocess.run(
        [sys.executable, "-c", code % (DATA, commit)],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert Path(path.strip()).resolve().name == blob_id(DATA, BIG)


def test_a_mirror_that_lists_no_hashes_gives_them_with_each_file(server, client):
    server.lists_hashes = False
    server.faults.append(cutting(DATA, after=5, times=1, content=BIG))
    server.faults[0] = only_get(server.faults[0])
    assert client.fetch() == {DATA: BIG}
    assert client.fetch() == {DATA: BIG}
    assert len(server.asked(DATA)) == 3  # its headers, its start, its rest


def only_get(fault):
    return lambda handler, path: handler.command == "GET" and fault(handler, path)


@pytest.mark.parametrize("status", [429, 503])
def test_a_busy_hub_is_asked_again_when_it_says(server, client, status):
    server.faults += [
        failing("/api/", status, times=1, Retry_After="1"),
        failing(DATA, status, times=2, Retry_After="0"),
    ]
    start = time.perf_counter()
    assert client.fetch() == {DATA: BIG}
    assert time.perf_counter() - start > 1
    assert len(server.asked(DATA)) == 3


def test_a_hub_that_stays_busy_is_given_up(server, client):
    server.faults.append(failing(DATA, 503, Retry_After="0"))
    assert "answers 503: run again later; what is downloaded is kept" in client.error()
    server.faults[:] = [failing(DATA, 429, Retry_After="3600")]
    start = time.perf_counter()
    assert "answers 429: run again later" in client.error()
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("after", [1 << 18, 1])
def test_a_cut_connection_goes_on_where_it_broke(server, client, after):
    server.faults.append(
        cutting(DATA, after, times=5, content=BIG)
    )  # more often than a hub without progress is tried
    assert client.fetch() == {DATA: BIG}
    assert ranges(server) == ["", *(f"bytes={times * after}-" for times in range(1, 6))]


def test_a_connection_that_only_breaks_is_given_up(server, client):
    server.faults.append(cutting(DATA, 0, times=10**6, content=BIG))
    assert (
        f"{server.url} cannot be reached (RemoteProtocolError): connect, or name a mirror" in client.error()
    )
    assert ranges(server) == [""] * 4


def test_a_short_file_is_not_taken_for_a_whole_one(server, client):
    server.faults.append(sending(DATA, BIG[:1000], times=1))  # a smaller size than announced, well ended
    assert client.fetch() == {DATA: BIG}
    assert ranges(server) == ["", "bytes=1000-"]


def test_a_server_that_knows_no_ranges_sends_all_anew(server, client):
    server.faults += [cutting(DATA, 1 << 20, times=1, content=BIG), sending(DATA, BIG, times=1)]
    assert client.fetch() == {DATA: BIG}
    assert ranges(server) == ["", f"bytes={1 << 20}-"]


def test_a_server_that_likes_to_compress_is_told_not_to(server, client):
    def compressing(handler, path):
        if DATA not in path or "gzip" not in handler.headers.get("Accept-Encoding", ""):
            return False
        send(handler, 200, gzip.compress(BIG), {"Content-Encoding": "gzip"})
        return True

    server.faults.append(compressing)
    assert client.fetch() == {DATA: BIG}


def test_a_login_page_is_no_file_and_costs_no_half(server, client):
    server.faults += [cutting(DATA, 1 << 20, times=1, content=BIG), sending(DATA, b"<html>", times=1)]
    assert client.fetch() == {DATA: BIG}
    assert ranges(server) == ["", f"bytes={1 << 20}-", f"bytes={1 << 20}-"]
    server.faults.append(sending("/api/", b"<html>"))
    assert f"could not be fetched: unexpected answer of {server.url}" in client.error(revision="v2")


@pytest.mark.parametrize("wrong", [BIG[::-1], BIG + b"more"])
def test_another_content_is_fetched_again_and_then_refused(server, client, wrong):
    server.faults.append(sending(DATA, wrong, times=1))
    assert client.fetch() == {DATA: BIG}
    server.faults[:] = [sending("small", b"b,a\n")]
    assert "data/small.csv arrived twice with another content than the hub says" in client.error(
        "data/small.csv"
    )
    assert not client.parts()


def test_a_killed_download_is_resumed(server, client):
    server.faults.append(crawling(DATA, BIG, step=1 << 18))
    process = client.start("data/small.csv", DATA)
    while not any(part.stat().st_size > 1 << 19 for part in client.parts()):
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    half = client.parts()[0].stat().st_size
    server.faults.clear()
    assert client.fetch("data/small.csv", DATA) == {DATA: BIG, "data/small.csv": b"a,b\n"}
    assert server.log[-1][:2] == (f"/datasets/me/mine/resolve/{hub_commit(server)}/{DATA}", f"bytes={half}-")
    assert len(server.asked("small.csv")) == 1  # what was finished is not asked for again


def hub_commit(server: FakeHub) -> str:
    return server.commits["dataset", "me/mine"]["main commit"]["commit"].decode()


def test_large_files_come_from_another_host_which_gets_no_token(server, client):
    server.redirects = True
    client.environment["HF_TOKEN"] = "hf_secret"
    server.faults.append(cutting("/cdn/", 1 << 20, times=1, content=BIG))
    assert client.fetch() == {DATA: BIG}
    assert [entry[1:] for entry in server.log if entry[0].startswith("/cdn/")] == [
        ("", ""),
        (f"bytes={1 << 20}-", ""),
    ]


def test_two_at_once_fetch_a_file_once(server, client):
    server.faults.append(crawling(DATA, BIG, step=1 << 18))
    both = [client.start(), client.start()]
    for process in both:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert ranges(server) == [""]
    assert client.blob().read_bytes() == BIG


def test_what_lies_half_in_the_cache_is_seen(server, client):
    client.fetch()
    os.truncate(client.blob(), 1000)
    assert "is not whole in" in client.error(HF_HUB_OFFLINE="1")
    assert client.fetch() == {DATA: BIG}
    assert ranges(server) == ["", ""]


def test_wrong_bytes_of_the_right_size_are_not_taken_for_the_file(server, client):
    """Something else may have left them in the cache; with no record of a whole download nothing vouches for
    them.
    """
    client.fetch()
    client.blob().write_bytes(BIG[::-1])
    next(client.home.rglob("main.json")).unlink()
    assert client.fetch() == {DATA: BIG}
    assert ranges(server) == ["", ""]


@pytest.mark.parametrize(("surplus", "asked"), [(b"", []), (b"more", [""])])
def test_a_half_that_is_none_is_checked_or_thrown_away(server, client, surplus, asked):
    client.fetch()
    part = client.blob().rename(client.blob().with_suffix(".part"))  # as if killed before it got its name
    part.write_bytes(BIG + surplus)
    server.log.clear()
    assert client.fetch() == {DATA: BIG}
    assert ranges(server) == asked


@pytest.mark.parametrize(
    "name", ["{}/stranger.csv", "data/../../../../../../stranger.csv", "data\\..\\stranger.csv"]
)
def test_a_mirror_cannot_name_files_outside_the_cache(server, client, tmp_path, name):
    name, stranger = name.format(tmp_path), tmp_path / "stranger.csv"
    stranger.write_text("mine")
    server.push("dataset", "me/mine", {name: b"evil"})
    assert "would be written outside the cache: do not trust what HF_ENDPOINT names" in client.error(name)
    assert stranger.read_text() == "mine"


@pytest.mark.parametrize(
    ("word", "status", "code", "cure"),
    [
        (DATA, 403, "GatedRepo", "is gated: accept its licence at http://127.0.0.1:"),
        ("/api/", 401, "GatedRepo", "/datasets/me/mine and set HF_TOKEN"),
        (
            "/api/",
            401,
            "",
            "refuses access (401): correct its name in datasets.instructions.mine, or accept the licence",
        ),
        (
            "/api/",
            404,
            "RepoNotFound",
            "correct its name in datasets.instructions.mine, or set HF_TOKEN if it is private",
        ),
        (DATA, 403, "", "/datasets/me/mine and set HF_TOKEN to a valid token"),
        (DATA, 404, "EntryNotFound", "answers 404: try a mirror (HF_ENDPOINT)"),
        ("/api/", 418, "", "answers 418"),
    ],
)
def test_a_refusal_is_one_line_with_the_cure(server, client, word, status, code, cure):
    server.faults.append(failing(word, status, code=code))
    assert cure in client.error()


def test_an_unknown_revision_is_named(client):
    error = client.error(revision="v9")
    assert "me/mine at v9: there is no such revision" in error
    assert error.endswith(" in datasets.instructions.mine\n")


def test_no_network_and_no_permission_are_told_apart(server, client):
    client.environment["HF_ENDPOINT"] = "http://127.0.0.1:9"
    assert (
        "http://127.0.0.1:9 cannot be reached (ConnectError): connect, or name a mirror in HF_ENDPOINT"
        in client.error()
    )
    assert "HF_HUB_OFFLINE=1 forbids fetching it" in client.error(HF_HUB_OFFLINE="1")
    client.environment["HF_ENDPOINT"] = server.url  # the mirror
    assert client.fetch() == {DATA: BIG}


@pytest.mark.parametrize("error", [httpx2.ConnectError, httpx2.UnsupportedProtocol])
def test_a_hub_that_is_not_there_is_not_waited_for(monkeypatch, error):
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waited"))
    with pytest.raises(error):
        hub.patiently(lambda: (_ for _ in ()).throw(error("no")), give_up_unreachable=True)


def test_a_token_is_sent_and_shown_nowhere(server, client):
    client.environment["HF_TOKEN"] = "hf_secret"
    server.faults.append(failing(DATA, 403, times=1, code="GatedRepo"))
    server.faults.append(failing(DATA, 500, times=4, Retry_After="0"))
    for _ in range(2):
        assert "hf_secret" not in client.error()
    client.fetch()
    assert {given for _, _, given in server.log} == {"Bearer hf_secret"}
    for path in client.home.rglob("*"):
        assert not path.is_file() or b"hf_secret" not in path.read_bytes()


def test_a_warning_of_the_server_is_not_passed_on(server, client):
    """The library prints the X-HF-Warning header, whatever stands in it."""
    client.environment["HF_TOKEN"] = "hf_secret"
    server.faults.append(failing(DATA, 503, times=1, Retry_After="0", X_HF_Warning="token; Bearer hf_secret"))
    process = client.start()
    assert "hf_secret" not in "".join(process.communicate(timeout=60))
    assert process.returncode == 0


def test_no_token_is_taken_from_a_file(server, client):
    client.home.mkdir()
    (client.home / "token").write_text("hf_secret")
    client.fetch()
    assert {given for _, _, given in server.log} == {""}


@pytest.fixture
def small_disk(client):
    """Mounts the client's cache as a disk of a given size, and again with another."""
    if os.name != "posix" or os.geteuid() != 0:
        pytest.skip("only root can mount a small disk")
    client.home.mkdir()
    if subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", client.home], capture_output=True
    ).returncode:
        pytest.skip("mounting is not permitted here")
    yield lambda size: subprocess.run(["mount", "-o", f"remount,size={size}", client.home], check=True)
    subprocess.run(["umount", client.home], check=True)


def test_a_full_disk_is_one_line_and_more_room_finishes_the_file(server, client, small_disk):
    error = client.error()
    assert (
        f"cannot be written to {client.home}/hub (No space left on device): free room or set HF_HOME" in error
    )
    half = client.parts()[0].stat().st_size
    assert half > 1 << 19
    small_disk("2m")  # room for the file, none for the record of it
    assert "No space left on device" in client.error()
    small_disk("8m")
    assert client.fetch() == {DATA: BIG}
    assert ranges(server) == ["", f"bytes={half}-"]


def test_a_cache_that_is_no_folder_is_one_line(client):
    client.home.write_text("")
    assert "/hub (Not a directory): free room or set HF_HOME" in client.error()


def test_a_system_without_links_gets_the_file_itself(tmp_path, monkeypatch):
    monkeypatch.setattr(Path, "symlink_to", lambda *_: (_ for _ in ()).throw(OSError("no links here")))
    (tmp_path / "blob").write_bytes(BIG)
    hub.link(tmp_path / "snapshots/commit" / DATA, tmp_path / "blob")
    assert (tmp_path / "snapshots/commit" / DATA).read_bytes() == BIG


# --- datasets -----------------------------------------------------------------------------------------------

OWN = """
from stages import fetch
from stages.settings.params import Own, Rows
source = {{"repo": "me/own@main", "columns": {{"prompt": "سؤال", "completion": "جواب"}}, **{more!r}}}
rows, facts = fetch.published("mixtures.demo.instructions.x", "instructions", "x", Own(**source), Rows())
print([(row["prompt"][0]["content"], row["split"]) for row in rows], facts["files"], facts["left_out"])
"""


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ({}, "[('س١', 'validation'), ('س٢', 'train')] {'data/test.jsonl.gz': '', 'data/train.csv': "
            "'delimiter ;'} {'raw/all.tsv': 'not data/*'}"),
        ({"files": "raw/*"}, "[('س٣', None)] {'raw/all.tsv': ''}"),
    ],
)  # fmt: skip
def test_a_dataset_of_no_known_layout_is_read_by_its_columns(server, client, more, said):
    rows = {"data/train.csv": "سؤال;جواب\nس٢;ج\n", "raw/all.tsv": "سؤال\tجواب\nس٣\tج\n", "train.py": "evil"}
    files = {name: text.encode() for name, text in rows.items()}
    files["data/test.jsonl.gz"] = gzip.compress(json.dumps({"سؤال": "س١", "جواب": "ج"}).encode())
    server.push("dataset", "me/own", {"README.md": b"---\nlicense: mit\n---\n", **files})
    result = subprocess.run(
        [sys.executable, "-c", OWN.format(more=more)],
        cwd=ROOT, env=client.environment, capture_output=True, text=True,
    )  # fmt: skip
    assert result.stdout.startswith(said), result.stderr


# --- models -------------------------------------------------------------------------------------------------


def test_only_safetensors_and_their_texts_are_taken():
    names = [
        "config.json",
        "model.safetensors",
        "pytorch_model.bin",
        "modeling.py",
        "vocab.txt",
        "original/model.safetensors",
        "README.md",
    ]
    assert base.model_files([*names, "consolidated.safetensors"]) == [
        "config.json",
        "model.safetensors",
        "vocab.txt",
    ]


def test_a_model_with_a_missing_shard_is_refused(tmp_path):
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / base.INDEX).write_text(json.dumps(index))
    names = ["config.json", "tokenizer.json", base.INDEX, "model-00001-of-00002.safetensors"]
    with pytest.raises(Problem, match=r"models.x.weights: .* lacks model-00002-of-00002.safetensors"):
        base.check("models.x.weights", tmp_path, names)


@pytest.mark.parametrize(
    ("licence", "note"),
    [
        ("apache-2.0", "licence apache-2.0"),
        ("cc-by-nc-4.0", "licence cc-by-nc-4.0: NON-COMMERCIAL USE ONLY"),
        ("qwen-research", "licence qwen-research: RESEARCH, NON-COMMERCIAL USE ONLY"),
        ("", "no licence stated: ask its authors before you use it"),
    ],
)
def test_a_licence_that_forbids_is_said_loudly(licence, note):
    assert hub.licence_note(licence) == note


@pytest.mark.parametrize(
    ("card", "licence"),
    [
        (None, ""),
        ({"license": "mit"}, "mit"),
        ({"license": ["mit", "cc0-1.0"]}, "mit, cc0-1.0"),
        ({"license": {"name": "x"}}, "{'name': 'x'}"),
        (
            {"license": "other", "license_name": "\x1b[2Jfree\x07\nfor\u202eall"},
            r"\x1b[2Jfree\x07 for\u202eall",
        ),
    ],
)
def test_what_a_card_says_moves_no_cursor(card, licence):
    assert hub.card_licence(card) == licence


def test_the_name_of_an_other_licence_is_its_licence():
    assert hub.card_licence({"license": "other", "license_name": "qwen-research"}) == "qwen-research"
    assert hub.card_licence(None) == ""
