"""Files from a model hub, and where the base model's files are on this machine."""

import json
from pathlib import Path

from stages.params import Problem

MANIFEST = Path("models/base.json")


def download(repo: str, revision: str, patterns: list[str], kind: str = "model") -> Path:
    """Download a repository's files into the hub cache; return the snapshot's folder, whose name is the commit.

    Only what is missing is fetched. HF_ENDPOINT names a mirror and HF_TOKEN opens gated repositories, as everywhere.
    Raises Problem where it cannot be had.
    """
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(repo, repo_type=kind, revision=revision, allow_patterns=patterns))
    except Exception as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise Problem(f"{kind} {repo} at {revision} could not be fetched: {reason}") from None


def base_folder(manifest: Path = MANIFEST) -> Path:
    """The folder of the base model that models/base.json names. Raises Problem where its files are not those recorded."""
    base = json.loads(manifest.read_text(encoding="utf-8"))
    if "path" in base:
        folder = Path(base["path"])
    else:
        from huggingface_hub import snapshot_download

        try:
            folder = Path(snapshot_download(base["repo"], revision=base["commit"], local_files_only=True))
        except FileNotFoundError:
            raise Problem(f"{base['repo']} at {base['commit']} is not in the hub cache of this machine: run `dvc repro -f base`") from None
    for name, file in base["files"].items():
        if not (folder / name).exists() or (folder / name).stat().st_size != file["size"]:
            raise Problem(f"{manifest} names {name} with {file['size']:,} bytes, but that is not in {folder}: run `dvc repro -f base`")
    return folder
