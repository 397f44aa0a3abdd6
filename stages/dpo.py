"""The preference stage, by any method: the SFT checkpoint learns which answer is better → models/dpo.

    python -m stages.dpo            `method`, from models/sft
    python -m stages.dpo ipo        a refinement by another method, from models/dpo → models/refine-ipo

The reference of every method that has one is the policy this stage starts from.
"""

import random
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stages.files import write_json
from stages.methods import METHODS
from stages.params import Params, stage

if TYPE_CHECKING:
    from datasets import Dataset
    from trl import DPOTrainer, KTOTrainer

DATA = Path("data/formatted/preferences/train.parquet")


def main(refine: str = "") -> None:
    with stage("refine" if refine else "dpo", refine) as params:
        from stages import modeling, training

        method = refine or params.method
        parent, name = (Path("models/dpo"), f"refine-{refine}") if refine else (Path("models/sft"), "dpo")
        trainer = build(params, method, parent)
        facts = training.run(trainer, name)
        if "ref" in getattr(trainer.model, "peft_config", {}):
            trainer.model.delete_adapter("ref")
        provenance = modeling.provenance(params, DATA, parent) | {"method": method}
        modeling.save_checkpoint(trainer.model, trainer.processing_class, Path("models") / name, provenance)
        write_json(Path(f"metrics/train_{name}.json"), facts)


def build(params: Params, method: str, parent: Path) -> "DPOTrainer | KTOTrainer":
    """The trainer of a method, its policy loaded from `parent` and its reference the same policy, frozen."""
    from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

    from stages import modeling, training
    from stages.trainers import ReferenceFreeTrainer

    kind, own = METHODS[method], params.methods[method]
    weights, settings = params.chosen_model.weights, params.chosen_model.preference
    arguments = training.arguments(params, settings, params.preference, own.epochs, settings.learning_rate * own.learning_rate_factor)
    arguments |= {"beta": own.beta, "dataloader_drop_last": True}
    model = modeling.load_checkpoint(weights, parent, trainable=True)
    common = {"model": model, "processing_class": modeling.load_tokenizer(params.prompt)}
    if kind.trainer != "cpo" and not hasattr(model, "peft_config"):
        # Of an adapter TRL keeps a frozen copy, named ref; a whole model needs a second one.
        common["ref_model"] = modeling.load_checkpoint(weights, parent)
    rows = training.load_rows(DATA, ["prompt", "chosen", "rejected"])
    if kind.trainer == "kto":
        balance = {"desirable_weight": own.desirable_weight, "undesirable_weight": own.undesirable_weight}
        return KTOTrainer(args=KTOConfig(**arguments, **balance), train_dataset=unpaired(rows, params.seed), **common)
    if kind.trainer == "cpo":
        config = DPOConfig(**arguments, loss_type=["sigmoid", "sft"], loss_weights=[1.0, own.sft_weight], precompute_ref_log_probs=True)
        return ReferenceFreeTrainer(args=config, train_dataset=rows, **common)
    return DPOTrainer(args=DPOConfig(**arguments, loss_type=[kind.loss]), train_dataset=rows, **common)


def unpaired(pairs: "Dataset", seed: int) -> "Dataset":
    """Each pair as a good and a bad answer, shuffled: unshuffled, no batch would hold both labels and KTO would not learn."""
    from datasets import Dataset

    rows = [
        {"prompt": row["prompt"], "completion": row[answer], "label": answer == "chosen"}
        for row in pairs
        for answer in ("chosen", "rejected")
    ]
    random.Random(seed).shuffle(rows)
    return Dataset.from_list(rows)


if __name__ == "__main__":
    main(*sys.argv[1:])
