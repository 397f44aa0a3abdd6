"""Files from a model hub.

Downloads go into the Hugging Face cache, in its documented layout (blobs by hash, snapshots that link to
them), so that every other tool finds them. What the library leaves out is done here: a killed download goes
on where it stopped, every file is checked against its hash, and a branch is resolved to a commit once: a
record beside the blobs, written last, says that a download is whole.
"""

import hashlib
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PureWindowsPath
from typing import Any, TypeVar

from stages.settings.errors import Problem, one_line
from stages.settings.files import file_hash, is_there, read_json, sha256, write_json
from stages.settings.manifest import repository_folder

WAITS = (1, 2, 4)  # seconds between tries, where the hub does not say
LONGEST_WAIT = 120  # seconds; a hub that asks for more is left alone
BUSY = (408, 429, 500, 502, 503, 504)
T = TypeVar("T")


@dataclass(frozen=True)
class Snapshot:
    """The chosen files of a repository at one commit, whole and checked, among the `names` of all.
    `licence` is what its card says, "" where it says none.
    """

    folder: Path
    commit: str
    files: tuple[str, ...]
    licence: str
    names: tuple[str, ...]


@dataclass(frozen=True)
class Wanted:
    """What was asked for, and the params.yaml key that asked: the errors name both."""

    key: str
    kind: str  # model | dataset
    repo: str
    revision: str

    def __str__(self) -> str:
        return f"{self.key}: {self.kind} {self.repo} at {self.revision}"

    @property
    def folder(self) -> Path:
        return repository_folder(self.kind, self.repo)

    @property
    def record(self) -> Path:
        return self.folder / "whole" / f"{self.revision.replace('/', '--')}.json"


def snapshot(
    key: str, kind: str, repo: str, revision: str, choose: Callable[[list[str]], list[str]]
) -> Snapshot:
    """Have the files that `choose` picks from a repository's file names. What is there already costs no
    request.

    HF_ENDPOINT names a mirror, HF_HOME the place of the cache, HF_TOKEN opens gated repositories,
    HF_HUB_OFFLINE=1 forbids requests. Raises Problem, with the cure, where it cannot be had.
    """
    wanted = Wanted(key, kind, repo, revision)
    record = read_record(wanted) or {}
    if not record or not is_whole(wanted, record, choose(record["names"])):
        record = complete(wanted, record, choose)
    files = tuple(sorted(choose(record["names"])))
    folder = wanted.folder / "snapshots" / record["commit"]
    return Snapshot(folder, record["commit"], files, record["licence"], tuple(record["names"]))


def read_record(wanted: Wanted) -> dict | None:
    with suppress(OSError, ValueError):  # what cannot be read is asked for again, and says then what is wrong
        return read_json(wanted.record)
    return None


def is_whole(wanted: Wanted, record: dict, names: list[str]) -> bool:
    folder = wanted.folder / "snapshots" / record["commit"]
    return all(
        name in record["files"] and is_there(folder / name, record["files"][name]["size"]) for name in names
    )


# --- downloading --------------------------------------------------------------------------------------------


def complete(wanted: Wanted, record: dict, choose: Callable[[list[str]], list[str]]) -> dict:
    """Resolve the revision, download what is missing, and write the record."""
    from filelock import FileLock
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        raise Problem(
            f"{wanted} is not whole in {constants.HF_HUB_CACHE} and HF_HUB_OFFLINE=1 forbids fetching it: "
            "unset it once"
        )
    try:
        wanted.folder.mkdir(parents=True, exist_ok=True)
        with FileLock(
            wanted.folder / ".lock"
        ):  # another process may be at it; what it has finished is not fetched again
            known = read_record(wanted) or record  # by now, that is
            listing = patiently(
                lambda: listed(wanted, known.get("commit", wanted.revision)), give_up_unreachable=True
            )
            for name in choose(listing["names"]):
                have(wanted, listing["commit"], name, listing["files"][name])
            write_json(wanted.record, listing)
    except Exception as error:
        raise explained(wanted, error) from None
    return listing


def have(wanted: Wanted, commit: str, name: str, file: dict) -> None:
    """Have one file of the repository in the snapshot's folder, and its size and hash in `file`."""
    if not file["hash"]:
        file |= patiently(lambda: headers_of(wanted, commit, name))
    check_inside(wanted, commit, name, file["hash"])
    blob = wanted.folder / "blobs" / file["hash"]
    if not (
        is_there(blob, file["size"]) and is_right(blob, file["hash"])
    ):  # nothing vouches for a blob that was there before
        download(wanted, commit, name, file, blob)
    link(wanted.folder / "snapshots" / commit / name, blob)


def check_inside(wanted: Wanted, commit: str, name: str, digest: str) -> None:
    """Raise Problem where names that a server gives would lead out of the repository's folder, to files of
    somebody else.
    """
    path = PureWindowsPath(name)  # which knows the separators of every system
    if (
        path.anchor
        or ".." in path.parts
        or not all(re.fullmatch(r"\w[\w.+=-]*", word) for word in (commit, digest))
    ):
        raise Problem(
            f"{wanted}: {name[:80]!r} would be written outside the cache: do not trust what HF_ENDPOINT names"
        )


def listed(wanted: Wanted, revision: str) -> dict:
    """The commit, the licence and the files of a repository: sizes, and hashes as the cache names blobs by
    them.
    """
    from huggingface_hub import HfApi

    info = HfApi(token=token()).repo_info(
        wanted.repo, repo_type=wanted.kind, revision=revision, files_metadata=True, timeout=30
    )
    files = {
        file.rfilename: {"size": file.size, "hash": file.lfs.sha256 if file.lfs else file.blob_id}
        for file in info.siblings
    }
    return {
        "repo": wanted.repo,
        "commit": info.sha,
        "licence": card_licence(info.card_data),
        "names": sorted(files),
        "files": files,
    }


def headers_of(wanted: Wanted, commit: str, name: str) -> dict:
    """Size and hash of a file by a request of its own: some mirrors leave them out of the listing."""
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(wanted.repo, name, repo_type=wanted.kind, revision=commit)
    found = get_hf_file_metadata(url, token=token(), timeout=30)
    return {"size": found.size, "hash": found.etag}


def card_licence(card: Any) -> str:
    licence = (card.get("license_name") if card and card.get("license") == "other" else None) or (
        card.get("license") if card else None
    )
    names = licence if isinstance(licence, list) else [licence or ""]
    return one_line(", ".join(map(str, names)), 100)


def token() -> str | bool:
    """From the environment alone; False keeps the library from looking elsewhere."""
    return os.environ.get("HF_TOKEN") or False


def download(wanted: Wanted, commit: str, name: str, file: dict, blob: Path) -> None:
    """A file of the repository into its blob. A half one stays beside it under .part, for the next try to go
    on from.
    """
    blob.parent.mkdir(parents=True, exist_ok=True)
    part = blob.with_name(f"{blob.name}.part")
    for _ in range(2):  # a file whose hash is wrong is fetched once more
        patiently(lambda: fill(wanted, commit, name, file["size"], part), progress=lambda: size_of(part))
        if is_right(part, file["hash"]):
            part.replace(blob)
            return
        part.unlink()
    raise Problem(
        f"{wanted}: {name} arrived twice with another content than the hub says (hash "
        f"{file['hash'][:12]}…): try a mirror"
    )


def fill(wanted: Wanted, commit: str, name: str, size: int, part: Path) -> None:
    """Fetch the bytes that `part` still lacks."""
    import httpx2
    from huggingface_hub import hf_hub_url
    from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status
    from tqdm import tqdm

    if size_of(part) > size:
        part.unlink()
    start = size_of(part)
    if start == size:
        part.touch()
        return
    url = hf_hub_url(wanted.repo, name, repo_type=wanted.kind, revision=commit)
    headers = (
        build_hf_headers(token=token())
        | {"Accept-Encoding": "identity"}
        | ({"Range": f"bytes={start}-"} if start else {})
    )
    with get_session().stream("GET", url, headers=headers, follow_redirects=True, timeout=30) as response:
        hf_raise_for_status(response)
        resumed = response.status_code == 206
        if start and not resumed and response.headers.get("Content-Length", str(size)) != str(size):
            raise httpx2.ReadError(
                f"{name} was answered by something else"
            )  # a login page, say: the half that is there stays
        with (
            part.open("ab" if resumed else "wb") as out,
            tqdm(
                desc=name[-40:],
                total=size,
                initial=start if resumed else 0,
                unit="B",
                unit_scale=True,
                disable=None,
                leave=False,
            ) as bar,
        ):
            for chunk in (
                response.iter_raw()
            ):  # as it comes: a chunk that is waited for would be lost with the connection
                out.write(chunk)
                bar.update(len(chunk))
    if size_of(part) < size:
        raise httpx2.ReadError(f"{name} ended after {size_of(part):,} of {size:,} bytes")


def size_of(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def is_right(path: Path, expected: str) -> bool:
    """Whether a file has this hash: sha256 for large files, git's blob id for others; a tag of a mirror's own
    tells nothing.
    """
    return {40: git_blob_id, 64: sha256}.get(len(expected), lambda _: expected)(path) == expected


def git_blob_id(path: Path) -> str:
    return file_hash(path, hashlib.sha1(b"blob %d\0" % size_of(path)))


def link(pointer: Path, blob: Path) -> None:
    """Let the snapshot's file point to its blob, as the cache does (be its other name where the system has no
    symbolic links).
    """
    pointer.parent.mkdir(parents=True, exist_ok=True)
    pointer.unlink(missing_ok=True)
    try:
        pointer.symlink_to(os.path.relpath(blob, pointer.parent))
    except OSError:
        os.link(blob, pointer)


def patiently(
    action: Callable[[], T], progress: Callable[[], int] = lambda: 0, give_up_unreachable: bool = False
) -> T:
    """Try again where the hub is busy or the connection breaks, as long as it says or WAITS says; progress
    starts the count anew.
    """
    import httpx2
    from huggingface_hub.errors import HfHubHTTPError

    tries, reached = 0, progress()
    while True:
        try:
            return action()
        except HfHubHTTPError as error:
            wait = wait_told(error) if error.response.status_code in BUSY else None
            if wait is None or tries == len(WAITS) or wait > LONGEST_WAIT:
                raise
        except httpx2.TransportError as error:
            if tries == len(WAITS) or (
                give_up_unreachable and isinstance(error, (httpx2.ConnectError, httpx2.UnsupportedProtocol))
            ):
                raise
            wait = -1
        time.sleep(WAITS[tries] if wait < 0 else wait)
        tries, reached = (0, progress()) if progress() > reached else (tries + 1, reached)


def wait_told(error: Any) -> int:
    """Seconds that a busy hub asks to wait; -1 where it does not say."""
    told = error.response.headers.get("Retry-After", "")
    return int(told) if told.isdecimal() else -1


# --- what went wrong ----------------------------------------------------------------------------------------


def explained(wanted: Wanted, error: Exception) -> Problem:
    """The error in one line, with its cure. Never the library's own text, which may repeat what a server or a
    header said.
    """
    import httpx2
    from huggingface_hub import constants, errors

    end, page = (
        constants.ENDPOINT,
        f"{constants.ENDPOINT}/{'datasets/' if wanted.kind == 'dataset' else ''}{wanted.repo}",
    )
    kept = "what is downloaded is kept"
    if isinstance(error, Problem):
        return error
    if isinstance(error, errors.GatedRepoError):
        return Problem(f"{wanted} is gated: accept its licence at {page} and set HF_TOKEN to your token")
    if isinstance(error, errors.RevisionNotFoundError):
        return Problem(
            f"{wanted}: there is no such revision: give a commit, a tag or a branch of {page} in {wanted.key}"
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return Problem(
            f"{wanted} is not to be found on {end}: correct its name in {wanted.key}, or set HF_TOKEN if it "
            "is private"
        )
    if isinstance(error, errors.HfHubHTTPError):
        status = error.response.status_code
        if status in (401, 403):  # a hub may answer so to hide that there is nothing
            cure = (
                f"correct its name in {wanted.key}, or accept the licence at {page} and set HF_TOKEN to a "
                "valid token"
            )
            return Problem(f"{wanted}: {end} refuses access ({status}): {cure}")
        cure = "run again later" if status in BUSY else "try a mirror (HF_ENDPOINT)"
        return Problem(f"{wanted}: {end} answers {status}: {cure}; {kept}")
    if isinstance(error, (httpx2.TransportError, errors.OfflineModeIsEnabled)):
        return Problem(
            f"{wanted}: {end} cannot be reached ({type(error).__name__}): connect, or name a mirror in "
            f"HF_ENDPOINT; {kept}"
        )
    if isinstance(error, OSError):
        return Problem(
            f"{wanted} cannot be written to {constants.HF_HUB_CACHE} ({error.strerror}): free room or set "
            f"HF_HOME; {kept}"
        )
    return Problem(f"{wanted} could not be fetched: unexpected answer of {end} ({type(error).__name__})")


def licence_note(licence: str) -> str:
    """A licence as a person must hear it."""
    words = licence.lower().replace("_", "-").split("-")
    if not licence:
        return "no licence stated: ask its authors before you use it"
    if "research" in words:
        return f"licence {licence}: RESEARCH, NON-COMMERCIAL USE ONLY"
    return f"licence {licence}" + (
        ": NON-COMMERCIAL USE ONLY" if "nc" in words or "noncommercial" in words else ""
    )
