"""Supervised fine-tuning: the base model learns to answer → models/sft.

Only the answers are trained (and the stop token that ends each): prompt and completion are separate columns.
"""

from pathlib import Path
from typing import TYPE_CHECKING

from stages.params import Lora, Params, stage

if TYPE_CHECKING:
    from peft import PeftModel
    from transformers import PreTrainedModel

    from stages.supervised import AnswerTrainer

DATA = Path("data/formatted/instructions/train.parquet")


def main() -> None:
    with stage("sft") as params:
        from stages import modeling, training

        with training.explained("sft"):
            trainer = build(params, start(params), DATA, params.sft.epochs, params.chosen_model.sft.learning_rate)
            training.run(trainer, "sft", params, modeling.provenance(params, DATA, parent=None))


def start(params: Params) -> "PreTrainedModel | PeftModel":
    """The base model with a fresh adapter on it, or as it is where `lora` is null."""
    from peft import LoraConfig, get_peft_model
    from transformers import set_seed

    from stages import modeling

    model = modeling.load_base(params.chosen_model.weights)
    set_seed(params.seed)  # an adapter's first weights are random
    lora = params.chosen_model.sft.lora
    return get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **adapter(lora))) if lora else model


def adapter(lora: Lora) -> dict:
    """Our names of a LoRA adapter's settings → PEFT's."""
    names = {
        "r": "r", "alpha": "lora_alpha", "dropout": "lora_dropout", "targets": "target_modules", "rslora": "use_rslora", "dora": "use_dora",
    }  # fmt: skip
    return {theirs: getattr(lora, ours) for ours, theirs in names.items()}


def build(params: Params, model: "PreTrainedModel | PeftModel", data: Path, epochs: float, learning_rate: float) -> "AnswerTrainer":
    """The trainer of a model on formatted rows. Packed documents do not see each other; unpacked ones are batched by length."""
    from trl import SFTConfig

    from stages import modeling, training
    from stages.supervised import AnswerTrainer

    tokenizer = modeling.load_tokenizer(params.prompt)
    config = SFTConfig(
        **training.arguments(params, params.chosen_model.sft, params.sft, epochs, learning_rate),
        packing=params.sft.packing,
        train_sampling_strategy="random" if params.sft.packing else "group_by_length",
        eos_token=tokenizer.eos_token,
        completion_only_loss=True,
    )
    rows = training.load_rows(data, ["prompt", "completion"])
    with modeling.trained_in_fp32(model):
        return AnswerTrainer(model, config, train_dataset=rows, processing_class=tokenizer)


if __name__ == "__main__":
    main()
