"""models/base.json: which base model it is, file by file, where its files are on this machine, and what of
its vocabulary a template must know.
"""

import hashlib
from pathlib import Path

from stages.settings.errors import Problem
from stages.settings.files import cache, is_there, read_json, sha256, write_json
from stages.text.prompts import END_OF_TEXT

MANIFEST = Path("models/base.json")


def repository_folder(kind: str, repo: str) -> Path:
    """Of a model or dataset (`kind`) in the Hugging Face cache, in its documented layout."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repo, repo_type=kind)


def end_of_text() -> str:
    """The token that ends this base model's texts."""
    return read_json(MANIFEST).get("end_of_text", END_OF_TEXT)


def base_folder(manifest: Path = MANIFEST) -> Path:
    """The folder of the base model that models/base.json names. Raises Problem where its files are not those
    recorded.
    """
    base = read_json(manifest)
    on_hub = "repo" in base
    folder = (
        repository_folder("model", base["repo"]) / "snapshots" / base["commit"]
        if on_hub
        else Path(base["path"])
    )
    for name, file in base["files"].items():
        if not is_there(folder / name, file["size"]):
            raise Problem(
                f"{manifest} names {name} with {file['size']:,} bytes, but that is not in {folder}: run "
                "`dvc repro -f base`"
            )
    if not on_hub and (changed := replaced(folder, base["files"])):
        raise Problem(
            f"{manifest} names {changed} by its hash, and {folder} has another file now: run `dvc repro -f "
            "base`"
        )
    return folder


def replaced(folder: Path, files: dict[str, dict]) -> str | None:
    """The first file of a folder that is not the one recorded, where its size is. A file is hashed once, and
    again where its time or place on the disk is another (a snapshot of the hub is never written to again).
    """
    store = cache("verified") / f"{hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:16]}.json"
    known = read_json(store) if store.exists() else {}
    seen = {}
    for name, file in files.items():
        stat = (folder / name).stat()
        now = [stat.st_size, stat.st_mtime_ns, stat.st_ino]
        was = known.get(name, {})
        seen[name] = {
            "stat": now,
            "sha256": was["sha256"] if was.get("stat") == now else sha256(folder / name),
        }
        if seen[name]["sha256"] != file["sha256"]:
            return name
    if seen != known:
        write_json(store, seen)
    return None
