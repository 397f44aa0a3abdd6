"""Supervised fine-tuning: the base model learns to answer → models/sft.

Only the answers are trained (and the stop token that ends each): prompt and completion are separate columns.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from stages.files import write_json
from stages.params import Lora, Params, stage

if TYPE_CHECKING:
    from trl import SFTTrainer

DATA = Path("data/formatted/instructions/train.parquet")


def main() -> None:
    with stage("sft") as params:
        from stages import modeling, training

        trainer = build(params)
        facts = training.run(trainer, "sft")
        provenance = modeling.provenance(params, DATA, parent=None)
        modeling.save_checkpoint(trainer.model, trainer.processing_class, Path("models/sft"), provenance)
        write_json(Path("metrics/train_sft.json"), facts)


def build(params: Params) -> "SFTTrainer":
    """The trainer: a fresh adapter on the base model (or the whole model, where `lora` is null) and the formatted rows."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed
    from trl import SFTConfig, SFTTrainer

    from stages import modeling, training

    own = params.chosen_model.sft
    tokenizer = modeling.load_tokenizer(params.prompt)
    model = modeling.load_base(params.chosen_model.weights)
    set_seed(params.seed)  # before the adapter is made: its weights are random
    if own.lora:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **adapter(own.lora)))
    arguments = training.arguments(params, own, params.sft, params.sft.epochs, own.learning_rate)
    config = SFTConfig(**arguments, packing=params.sft.packing, eos_token=tokenizer.eos_token, completion_only_loss=True)
    rows = training.load_rows(DATA, ["prompt", "completion"])
    return SFTTrainer(model, config, train_dataset=rows, processing_class=tokenizer)


def adapter(lora: Lora) -> dict:
    """Our names of a LoRA adapter's settings → PEFT's."""
    return {"r": lora.r, "lora_alpha": lora.alpha, "lora_dropout": lora.dropout, "target_modules": lora.targets}


if __name__ == "__main__":
    main()
