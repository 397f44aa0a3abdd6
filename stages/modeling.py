"""Load a base model and what was trained on it; save a checkpoint with its provenance.

A checkpoint folder (models/sft, models/dpo, …) holds a LoRA adapter, or a whole model where `lora` is null.
"""

import hashlib
from importlib.metadata import version
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, PreTrainedTokenizerBase

from stages import hub
from stages.files import read_json, replace_folder, write_json
from stages.params import Params, Problem, Prompt, Weights
from stages.prompts import END_OF_TEXT, TEMPLATES

LIBRARIES = ("torch", "transformers", "trl", "peft", "bitsandbytes", "datasets")


def load_tokenizer(prompt: Prompt) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, whose end of sequence is the template's stop token."""
    tokenizer = AutoTokenizer.from_pretrained(hub.base_folder())
    tokenizer.eos_token = TEMPLATES[prompt.template].stop
    tokenizer.pad_token = END_OF_TEXT
    return tokenizer


def load_base(weights: Weights, folder: Path | None = None) -> PreTrainedModel:
    """A causal model on the GPU, or on the CPU where there is none. `folder` is another model of the same kind."""
    nf4 = BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="nf4",
        bnb_4bit_use_double_quant=True,
        bnb_4bit_compute_dtype=getattr(torch, weights.dtype),
    )
    model = AutoModelForCausalLM.from_pretrained(
        folder or hub.base_folder(),
        dtype=getattr(torch, weights.dtype),
        quantization_config=nf4 if weights.quantization == "nf4" else None,
        device_map={"": 0} if torch.cuda.is_available() else None,
        attn_implementation="sdpa",
        use_safetensors=True,
    )
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            # bitsandbytes' CPU path repacks 4-bit weights on an evaluation forward, and later gradients are silently wrong.
            module.support_avx512bf16_for_cpu = False
    return model


def load_checkpoint(weights: Weights, folder: Path | None, trainable: bool = False) -> PreTrainedModel | PeftModel:
    """The base model (`folder` None), or what a stage trained on it.

    Raises Problem for an adapter that was trained on another base than models/base.json names.
    """
    if folder is None:
        return load_base(weights)
    ours, current = read_json(folder / "provenance.json")["base"], base_identity()
    if ours != current:
        trained, named = (f"{base['model']} ({base['manifest_sha256'][:8]})" for base in (ours, current))
        raise Problem(f"{folder} was trained on {trained}, but models/base.json names {named}: run `dvc repro`")
    if not (folder / "adapter_config.json").exists():
        return load_base(weights, folder)
    return PeftModel.from_pretrained(load_base(weights), folder, is_trainable=trainable)


def save_checkpoint(model: PreTrainedModel | PeftModel, tokenizer: PreTrainedTokenizerBase, folder: Path, provenance: dict) -> None:
    """Write weights, tokenizer and provenance.json, whole or not at all. No paths of this machine, no pickles."""
    base = read_json(hub.MANIFEST)
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
    """What determined a checkpoint: base, data, template, the chain of checkpoints before it, params, library versions."""
    template = repr(TEMPLATES[params.prompt.template])
    chain = []
    if parent:
        link = {"checkpoint": parent.as_posix(), "weights_sha256": hub.sha256(weights_file(parent))}
        chain = [*read_json(parent / "provenance.json")["chain"], link]
    return {
        "base": base_identity(),
        "data_sha256": hub.sha256(data),
        "template_sha256": hashlib.sha256(template.encode()).hexdigest(),
        "chain": chain,
        "params": params.model_dump(mode="json", warnings=False),
        "versions": {name: version(name) for name in LIBRARIES},
    }


def weights_file(folder: Path) -> Path:
    """The adapter's weights, or the first file of a whole model's."""
    return next(iter(sorted(folder.glob("*.safetensors"))))


def base_identity() -> dict:
    """Which base model models/base.json names: its name, its commit on a hub, and a hash over every file's hash."""
    base = read_json(hub.MANIFEST)
    return {"model": base["model"], "commit": base.get("commit"), "manifest_sha256": hub.sha256(hub.MANIFEST)}
