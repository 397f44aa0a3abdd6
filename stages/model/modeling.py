"""Load a base model and what was trained on it; save a checkpoint with its provenance.

A checkpoint folder (models/sft, models/dpo, …) holds a LoRA adapter, or a whole model where `lora` is null.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    BitsAndBytesConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    Trainer,
)
from transformers.utils import is_flash_attn_2_available

from stages.model.device import compute_dtype
from stages.model.rows import train_rows
from stages.settings import manifest
from stages.settings.errors import Problem
from stages.settings.files import read_json, replace_folder, sha256, write_json
from stages.settings.params import Params, Prompt, Weights
from stages.text.prompts import TEMPLATES, Template

LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets")


def template_of(prompt: Prompt) -> Template:
    """The configured template, which ends as this base model's texts do."""
    return TEMPLATES[prompt.template].of(manifest.end_of_text())


def load_tokenizer(prompt: Prompt) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, whose end of sequence is the template's stop token."""
    tokenizer = AutoTokenizer.from_pretrained(manifest.base_folder())
    template = template_of(prompt)
    tokenizer.eos_token, tokenizer.pad_token = template.stop, template.end_of_text
    return tokenizer


def load_base(weights: Weights, folder: Path | None = None) -> PreTrainedModel:
    """A causal model on this process's GPU, or on the CPU where there is none. `folder` is another model of
    the same kind.
    """
    dtype = compute_dtype(weights)
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=dtype,
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder or manifest.base_folder(),
        dtype=dtype,
        quantization_config=nf4 if weights.quantization == "nf4" else None,
        device_map={"": int(os.environ.get("LOCAL_RANK", 0))} if torch.cuda.is_available() else None,
        # Both keep the documents of a pack apart; sdpa by a mask, FlashAttention by never computing what the
        # mask would hide.
        attn_implementation="flash_attention_2"
        if is_flash_attn_2_available() and dtype != torch.float32
        else "sdpa",
        use_safetensors=True,
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes' CPU path repacks 4-bit weights on an evaluation forward, and later gradients are
            # silently wrong.
            module.support_avx512bf16_for_cpu = False
    return model


@contextmanager
def trained_in_fp32(model: PreTrainedModel | PeftModel) -> Iterator[None]:
    """Around the making of a trainer: what is trained is float32 afterwards, and unchanged.

    TRL casts adapters on a 4-bit base to bfloat16, whose rounding swallows small updates (at a rate of 5e-7,
    99 % of them).
    """
    trained = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    kept = (
        {name: parameter.data.clone() for name, parameter in trained.items()}
        if getattr(model, "is_loaded_in_4bit", False)
        else {}
    )
    yield
    for name, parameter in trained.items():
        parameter.data = kept.get(name, parameter.data).float()


def load_checkpoint(
    weights: Weights, folder: Path | None, trainable: bool = False
) -> PreTrainedModel | PeftModel:
    """The base model (`folder` None), or what a stage trained on it.

    Raises Problem for one that was trained on another base than models/base.json names, or on other
    checkpoints than those that stand in models/ now.
    """
    if folder is None:
        return load_base(weights)
    check_origin(folder, weights)
    if not (folder / "adapter_config.json").exists():
        return load_base(weights, folder)
    return train_rows(PeftModel.from_pretrained(load_base(weights), folder, is_trainable=trainable))


def trained() -> list[str]:
    """The checkpoints that stand in models/, in the order of training."""
    refined = sorted(path.name for path in Path("models").glob("refine-*"))
    return [name for name in ["sft", "dpo", *refined] if Path("models", name, "provenance.json").exists()]


def check_template(folder: Path, prompt: Prompt) -> None:
    """Raise Problem where a checkpoint was trained with another template than the one it would be asked
    with.
    """
    provenance = read_json(folder / "provenance.json")
    if provenance["template_sha256"] != template_of(prompt).sha256:
        was, now = (
            provenance["params"]["prompt"]["template"],
            f"params.yaml says prompt.template: {prompt.template}",
        )
        raise Problem(
            f"{folder} was trained with the {was} template as it was then, but {now}: set it back, or run "
            "`dvc repro`"
        )


def check_origin(folder: Path, weights: Weights) -> None:
    """Raise Problem where a checkpoint's base, or a checkpoint before it, is not the one it was trained
    on.
    """
    provenance = read_json(folder / "provenance.json")
    ours, current = provenance["base"], base_identity(weights)
    if ours != current:
        trained, named = (
            f"{base['model']} ({base['manifest_sha256'][:8]}, {base['quantization']})"
            for base in (ours, current)
        )
        raise Problem(f"{folder} was trained on {trained}, but this base is {named}: run `dvc repro`")
    for link in provenance["chain"]:
        before = Path(link["checkpoint"])
        if before.exists() and (found := weights_sha256(before)) != link["weights_sha256"]:
            trained = link["weights_sha256"][:8]
            raise Problem(
                f"{folder} was trained on {before} ({trained}), but {before} is another one ({found[:8]}): "
                "run `dvc repro`"
            )


def save_checkpoint(trainer: Trainer, folder: Path, provenance: dict) -> None:
    """Write weights, tokenizer and provenance.json, whole or not at all. No paths of this machine, no
    pickles.
    """
    if not trainer.is_world_process_zero():
        return
    model, tokenizer, base = (
        trainer.accelerator.unwrap_model(trainer.model),
        trainer.processing_class,
        read_json(manifest.MANIFEST),
    )
    if isinstance(model, PeftModel):
        config = model.peft_config["default"]
        config.base_model_name_or_path = base.get("repo") or base["path"]  # not the path on this machine
        config.target_modules = sorted(config.target_modules)  # a set: its order would change from run to run
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    with replace_folder(folder) as temporary:
        model.save_pretrained(temporary)
        (temporary / "README.md").unlink(missing_ok=True)  # PEFT's empty model card
        tokenizer.save_pretrained(temporary)
        write_json(temporary / "provenance.json", provenance)


def provenance(params: Params, data: Path, parent: Path | None) -> dict:
    """What determined a checkpoint: base, data, template, the chain of checkpoints before it, params, library
    versions.
    """
    chain = []
    if parent:
        link = {"checkpoint": parent.as_posix(), "weights_sha256": weights_sha256(parent)}
        chain = [*read_json(parent / "provenance.json")["chain"], link]
    return {
        "base": base_identity(params.chosen_model.weights),
        "data_sha256": sha256(data),
        "template_sha256": template_of(params.prompt).sha256,
        "chain": chain,
        "params": params.model_dump(
            mode="json", warnings=False, exclude={"model_defaults", "method_defaults"}
        ),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def weights_sha256(folder: Path) -> str:
    """Of an adapter's weights, or over all the files of a whole model's."""
    hashes = [sha256(path) for path in sorted(folder.glob("*.safetensors"))]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def base_identity(weights: Weights) -> dict:
    """Which base model: its name, its commit on a hub, a hash over every file's hash, and how it is held in
    memory.
    """
    base = read_json(manifest.MANIFEST)
    facts = {
        "model": base["model"],
        "commit": base.get("commit"),
        "manifest_sha256": sha256(manifest.MANIFEST),
    }
    return facts | {"quantization": weights.quantization}


def called(name: str, folder: Path) -> str:
    """What people call a checkpoint: preference training, whose folder is always dpo, by its method."""
    return read_json(folder / "provenance.json").get("method", name) if name == "dpo" else name


def policy_identity(weights: Weights, folder: Path) -> str:
    """All that determines what a checkpoint answers to given tokens."""
    facts = [
        base_identity(weights),
        weights.dtype,
        weights_sha256(folder),
        # alpha is not in the weights
        sha256(config) if (config := folder / "adapter_config.json").exists() else "",
        read_json(folder / "provenance.json")["chain"],
    ]
    return json.dumps(facts)
