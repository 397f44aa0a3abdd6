"""Upload an export to the Hugging Face hub: what is checked before any work, what would go, and where to."""

from pathlib import Path

from stages.settings.errors import Problem


def check(repo: str) -> None:
    """Raise Problem where `repo` can be no repository, or where there is no token to write with."""
    from huggingface_hub import constants
    from huggingface_hub.errors import HFValidationError
    from huggingface_hub.utils import validate_repo_id

    from stages.sources import hub

    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise Problem(f"--push: {error}") from None
    if "/" not in repo:
        raise Problem(f"--push {repo}: whose is it? Give OWNER/NAME")
    if constants.HF_HUB_OFFLINE:
        raise Problem(f"--push {repo}: HF_HUB_OFFLINE=1 forbids it: unset it")
    if not hub.token():
        raise Problem(f"--push {repo}: set HF_TOKEN to a token that may write there")


def files(folder: Path) -> dict[str, int]:
    """What goes to the hub: the size in bytes of each file of an export."""
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_size for path in paths}


def show(folder: Path, repo: str) -> None:
    """Print what `push` would upload."""
    sizes = files(folder)
    for name, size in sizes.items():
        print(f"{size / 1e6:>12,.3f} MB  {name}")
    print(f"push: {repo} would get {len(sizes)} files, {sum(sizes.values()) / 1e6:,.1f} MB; nothing was sent")


def push(folder: Path, repo: str) -> None:
    """Upload a folder, into a private repository that is made where there is none. Whether one that is there
    already is public is said before anything is sent.
    """
    import httpx2
    from huggingface_hub import HfApi
    from huggingface_hub.errors import HfHubHTTPError

    from stages.sources import hub

    api, sizes = HfApi(token=hub.token()), files(folder)
    try:
        api.create_repo(repo, private=True, exist_ok=True)
        seen = "private" if api.model_info(repo).private else "public"
        print(
            f"push: {len(sizes)} files, {sum(sizes.values()) / 1e6:,.1f} MB, to {repo} ({seen})", flush=True
        )
        done = api.upload_folder(repo_id=repo, folder_path=folder, commit_message=f"Upload {folder.name}")
    except (HfHubHTTPError, httpx2.HTTPError, OSError) as error:
        status = getattr(getattr(error, "response", None), "status_code", type(error).__name__)
        again = f"`python -m tools.export {folder} --push {repo}` tries it again without another export"
        cure = "set HF_TOKEN to a token that may write there" if status in (401, 403, 404) else again
        raise Problem(f"--push {repo}: refused ({status}): {cure}") from None
    print(f"push: {done.commit_url}")
