"""Pin the base model: a hub snapshot or a local folder → models/base.json, every file with its size and sha256.

The manifest is what DVC tracks; the weights stay where they are, so 15 GB are not stored twice.
"""

import hashlib
from pathlib import Path

from stages import hub
from stages.files import write_json
from stages.params import Problem, Weights, stage

NEEDED = ["*.safetensors", "*.json", "*.txt"]  # no pickled weights, ever


def main() -> None:
    with stage("base") as params:
        folder, source = locate(params.chosen_model.weights)
        files = {path.relative_to(folder).as_posix(): identity(path) for path in sorted(model_files(folder))}
        if not any(name.endswith(".safetensors") for name in files) or "config.json" not in files:
            raise Problem(f"models.{params.model}.weights: no config.json and *.safetensors in {source}")
        write_json(hub.MANIFEST, {"model": params.model, **source, "files": files})
        print(f"base: {params.model}, {len(files)} files, {sum(f['size'] for f in files.values()) / 1e6:,.1f} MB")


def locate(weights: Weights) -> tuple[Path, dict[str, str]]:
    """The folder that holds the model, downloaded first where it stands on a hub, and where it came from."""
    if weights.path:
        return Path(weights.path), {"path": weights.path}
    folder = hub.download(weights.repo, weights.revision, NEEDED)
    return folder, {"repo": weights.repo, "commit": folder.name}  # the hub cache names it so


def model_files(folder: Path) -> list[Path]:
    return [path for pattern in NEEDED for path in folder.glob(pattern) if path.name != "provenance.json"]


def identity(path: Path) -> dict[str, int | str]:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return {"size": path.stat().st_size, "sha256": digest.hexdigest()}


if __name__ == "__main__":
    main()
