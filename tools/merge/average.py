"""The average of checkpoints: of adapters' factors, or of whole models' tensors.

An adapter's ΔW is s·B·A, so a weighted sum of them is an adapter again: the factors beside each other, whose
ranks add up. That is exact; averaging A and B apart would be another matrix.
"""

import re
import shutil
from contextlib import ExitStack
from importlib.metadata import version
from itertools import pairwise
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from stages.model import modeling
from stages.settings.errors import Problem
from stages.settings.files import read_json, replace_folder, write_json
from stages.settings.params import Params
from tools import revisions
from tools.chat.models import check_base, fault, fault_of_another, standing

ADAPTER, CONFIG = "adapter_model.safetensors", "adapter_config.json"
ROWS = ".trainable_tokens_delta"  # rows of a table that were trained whole
PARALLEL = 0.9995  # a cosine above it is of one direction: mergekit/merge_methods/slerp.py, DOT_THRESHOLD

Factors = tuple[torch.Tensor, torch.Tensor]  # A [rank, in] and B [out, rank], whose product BA is ΔW


def merge(names: list[str], weights: list[float], method: str, name: str, params: Params) -> Path:
    """Write models/merged-<name>. Raises Problem for what cannot be averaged."""
    if not re.fullmatch(r"[A-Za-z0-9_]+", name):  # of a folder and of a stage
        raise Problem(f"--name {name!r}: letters, digits and _ of ASCII only")
    out = Path("models", f"merged-{name}")
    check(names, weights, method, out)
    check_base(params)
    folders = [found(one, params) for one in names]
    adapters = [(folder / CONFIG).exists() for folder in folders]
    if any(adapters) != all(adapters):
        raise Problem(f"{', '.join(names)}: adapters and whole models cannot be averaged with each other")
    if method == "slerp" and not all(adapters):
        raise Problem("slerp is of adapters, and these are whole models: take --method linear")
    with replace_folder(out) as temporary:
        for file in folders[0].iterdir():  # configuration, tokenizer
            if file.suffix != ".safetensors":
                shutil.copyfile(file, temporary / file.name)
        if all(adapters):
            merge_adapters(folders, weights, method, temporary)
        else:
            average_models(folders, weights, temporary)
        write_json(temporary / "provenance.json", provenance(names, folders, weights, method, params))
    shares = " + ".join(f"{weight:g} {one}" for one, weight in zip(names, weights))
    print(f"merge: {out}: {method}, {shares}")
    return out


def check(names: list[str], weights: list[float], method: str, out: Path) -> None:
    """Raise Problem for options that cannot be followed."""
    if out.exists():
        raise Problem(f"{out} stands already: give another --name, or delete it")
    if len(names) < 2 or (method == "slerp" and len(names) > 2):
        raise Problem(
            f"{method} of {len(names)} checkpoints: give {'2' if method == 'slerp' else '2 or more'}"
        )
    if len(weights) != len(names):
        raise Problem(f"--weights has {len(weights)} numbers for {len(names)} checkpoints: give one for each")
    if not abs(sum(weights) - 1) < 1e-6:
        raise Problem(f"--weights add up to {sum(weights):g}: an average's add up to 1")


def found(name: str, params: Params) -> Path:
    """The folder of a checkpoint, which answers as it was trained to; else Problem."""
    short = name.removeprefix("models/").rstrip("/")
    revision, _, checkpoint = short.rpartition("/")
    there = revisions.checkpoints(revision) if revision else {one: Path("models", one) for one in standing()}
    called = {modeling.called(one, folder): folder for one, folder in there.items()} | there
    if checkpoint not in called:
        raise Problem(f"{name} is no checkpoint: there is {', '.join(called) or 'none, run `dvc repro`'}")
    folder = called[checkpoint]
    if not revision and (why := fault(folder, params)):
        raise Problem(why)
    if revision and (why := fault_of_another(folder, params)):
        raise Problem(f"{name}: {why}")
    return folder


def provenance(
    names: list[str], folders: list[Path], weights: list[float], method: str, params: Params
) -> dict:
    """What was merged, with all that is known of each. No chain: a merged checkpoint holds what it needs, so
    that it stays right when a parent is trained anew.
    """
    parents = [
        {
            "checkpoint": folder.as_posix() if folder.parent == Path("models") else name,
            "weight": weight,
            "weights_sha256": modeling.weights_sha256(folder),
            "provenance": read_json(folder / "provenance.json"),
        }
        for name, folder, weight in zip(names, folders, weights)
    ]
    first = parents[0]["provenance"]
    return {
        "base": modeling.base_identity(params.chosen_model.weights),
        "template_sha256": first["template_sha256"],
        "chain": [],
        "merged": {"method": method, "parents": parents},
        "params": {"prompt": first["params"]["prompt"]},
        "versions": {library: version(library) for library in modeling.LIBRARIES},
    }


# --- adapters -----------------------------------------------------------------------------------------------


def merge_adapters(folders: list[Path], weights: list[float], method: str, out: Path) -> None:
    configs = [read_json(folder / CONFIG) for folder in folders]
    each = [factors(folder, config) for folder, config in zip(folders, configs)]
    sizes = {layer: (a.shape[1], b.shape[0]) for one in each for layer, (a, b) in one.items()}
    tensors = rows(folders, configs, weights)
    for layer, (width, height) in sizes.items():
        none = [(torch.zeros(config["r"], width), torch.zeros(height, config["r"])) for config in configs]
        own = [one.get(layer, nothing) for one, nothing in zip(each, none)]
        shares = arc(*own, weights) if method == "slerp" else weights
        tensors[f"{layer}.lora_A.weight"] = torch.cat([a for a, _ in own])
        tensors[f"{layer}.lora_B.weight"] = torch.cat(
            [share * b for share, (_, b) in zip(shares, own)], dim=1
        )
    save_file(tensors, out / ADAPTER, metadata={"format": "pt"})
    (out / ADAPTER).chmod(0o644)  # safetensors makes files that only their owner reads
    rank = sum(config["r"] for config in configs)
    targets = sorted({target for config in configs for target in config["target_modules"]})
    scaled = {"r": rank, "lora_alpha": rank, "use_rslora": False}  # by 1: the scale stands in B
    write_json(out / CONFIG, configs[0] | scaled | {"target_modules": targets})


def factors(folder: Path, config: dict) -> dict[str, Factors]:
    """By layer, with the adapter's scale in B: α/r, rank-stabilised α/√r (Kalajdzievski 2023, arXiv
    2312.03732).
    """
    if config["use_dora"]:
        raise Problem(
            f"{folder} is weight-decomposed (dora: true), so its ΔW is no product of two factors: train with "
            "dora: false to merge it"
        )
    tensors = load_file(folder / ADAPTER)
    ends = (".lora_A.weight", ".lora_B.weight", ROWS)
    if other := [name for name in tensors if not name.endswith(ends)]:
        raise Problem(f"{folder} holds {other[0]}: only adapters of linear layers can be merged")
    scale = config["lora_alpha"] / (config["r"] ** 0.5 if config["use_rslora"] else config["r"])
    layers = [name.removesuffix(ends[0]) for name in tensors if name.endswith(ends[0])]
    return {
        layer: (tensors[layer + ends[0]].float(), scale * tensors[layer + ends[1]].float())
        for layer in layers
    }


def rows(folders: list[Path], configs: list[dict], weights: list[float]) -> dict[str, torch.Tensor]:
    """Rows of embedding and head that were trained whole, averaged linearly; {} where none were."""
    for (_, one), (folder, other) in pairwise(zip(folders, configs)):
        if one["trainable_token_indices"] != other["trainable_token_indices"]:
            raise Problem(f"{folder} trained the rows of other tokens than {folders[0]}: it cannot be merged")
    found = [
        {name: value for name, value in load_file(folder / ADAPTER).items() if name.endswith(ROWS)}
        for folder in folders
    ]
    return {name: sum(weight * own[name].float() for weight, own in zip(weights, found)) for name in found[0]}


def arc(one: Factors, other: Factors, weights: list[float]) -> list[float]:
    """The shares of two ΔW at `weights` [1 − t, t] of the arc between them: sin(wᵢθ) / sin θ."""
    lengths = inner(one, one) ** 0.5 * inner(other, other) ** 0.5
    cosine = inner(one, other) / lengths if lengths else 1.0  # what is nothing has no direction
    if abs(cosine) > PARALLEL:
        return weights
    angle = torch.tensor(cosine, dtype=torch.float64).acos()
    return [float((weight * angle).sin() / angle.sin()) for weight in weights]


def inner(one: Factors, other: Factors) -> float:
    """⟨B₁A₁, B₂A₂⟩ without the products: the sum of (B₁ᵀB₂) ∘ (A₁A₂ᵀ)."""
    (a1, b1), (a2, b2) = ((a.double(), b.double()) for a, b in (one, other))
    return float(((b1.T @ b2) * (a1 @ a2.T)).sum())


# --- whole models -------------------------------------------------------------------------------------------


def average_models(folders: list[Path], weights: list[float], out: Path) -> None:
    """In float32, tensor by tensor, in the first one's shards and dtypes."""
    with ExitStack() as stack:
        opened = [
            [stack.enter_context(safe_open(path, "pt")) for path in sorted(folder.glob("*.safetensors"))]
            for folder in folders
        ]
        where = [{name: file for file in files for name in file.keys()} for files in opened]  # noqa: SIM118
        for folder, own in zip(folders, where):
            if own.keys() != where[0].keys():
                raise Problem(f"{folder} has other tensors than {folders[0]}: they cannot be averaged")
        for shard, file in zip(sorted(folders[0].glob("*.safetensors")), opened[0]):
            tensors = {}
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                values = [own[name].get_tensor(name) for own in where]
                average = sum(weight * value.float() for weight, value in zip(weights, values))
                tensors[name] = average.to(values[0].dtype)
            save_file(tensors, out / shard.name, metadata={"format": "pt"})
            (out / shard.name).chmod(0o644)
