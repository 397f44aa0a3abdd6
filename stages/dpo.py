"""The preference stage, by any method: the SFT checkpoint learns which answer is better → models/dpo.

The reference of every method that has one is the policy this stage starts from.
"""

import random
from pathlib import Path
from typing import TYPE_CHECKING

from stages.methods import METHODS
from stages.params import Params, Problem, stage

if TYPE_CHECKING:
    from datasets import Dataset

    from stages.trainers import PairTrainer, ReferenceFreeTrainer, SingleTrainer

DATA = Path("data/formatted/preferences/train.parquet")
PARENT = Path("models/sft")
WINDOW = 50  # batches within which rows are sorted by length


def main() -> None:
    with stage("dpo") as params:
        from stages import modeling, training

        with training.explained("dpo"):
            trainer = build(params, params.method, PARENT)
            training.run(trainer, "dpo", params, modeling.provenance(params, DATA, PARENT) | {"method": params.method})


def build(params: Params, method: str, parent: Path, beta_factor: float = 1.0) -> "PairTrainer | SingleTrainer | ReferenceFreeTrainer":
    """The trainer of a method, its policy loaded from `parent`."""
    from trl import DPOConfig, KTOConfig

    from stages import modeling, training
    from stages.trainers import PairTrainer, ReferenceFreeTrainer, SingleTrainer

    kind, own = METHODS[method], params.methods[method]
    weights, settings = params.chosen_model.weights, params.chosen_model.preference
    arguments = training.arguments(params, settings, params.preference, own.epochs, settings.learning_rate * own.learning_rate_factor)
    arguments |= {
        "beta": own.beta * beta_factor,
        "precompute_ref_log_probs": True,  # by reference.py
        "train_sampling_strategy": "sequential",
    }
    model = modeling.load_checkpoint(weights, parent, trainable=True)
    common = {"model": model, "processing_class": modeling.load_tokenizer(params.prompt)}
    pairs = training.load_rows(DATA, ["prompt", "chosen", "rejected", "tokens"])
    pairs = whole_steps(pairs, settings.batch_size * settings.accumulation, params.seed)
    rows = by_length(pairs if kind.paired else unpaired(pairs), settings.batch_size, params.seed)
    with modeling.trained_in_fp32(model):
        if kind.trainer == "kto":
            balance = {"desirable_weight": own.desirable_weight, "undesirable_weight": own.undesirable_weight}
            trainer = SingleTrainer(args=KTOConfig(**arguments, **balance), train_dataset=rows, **common)
        elif kind.has_reference:
            losses = {"loss_type": [kind.loss]}
            if own.sft_weight is not None:
                losses = {"loss_type": [kind.loss, "sft"], "loss_weights": [1.0, own.sft_weight]}
            config = DPOConfig(**arguments, **losses, label_smoothing=own.label_smoothing or 0.0)
            trainer = PairTrainer(args=config, train_dataset=rows, **common)
        else:
            extra = {"loss": kind.loss, "sft_weight": own.sft_weight, "simpo_gamma": own.simpo_gamma}
            trainer = ReferenceFreeTrainer(args=DPOConfig(**arguments), train_dataset=rows, **common, **extra)
    if kind.has_reference:
        trainer.add_reference(modeling.policy_identity(weights, parent))
    return trainer


def whole_steps(pairs: "Dataset", size: int, seed: int) -> "Dataset":
    """A random choice of pairs, shuffled, that fills every step of `size` pairs; a rest is left out."""
    if len(pairs) < size:
        raise Problem(
            f"data.preferences gives {len(pairs)} pairs to train on, fewer than one step of {size} (batch_size x accumulation): add rows, "
            "or lower accumulation"
        )
    order = list(range(len(pairs)))
    random.Random(seed).shuffle(order)
    return pairs.select(order[: len(order) // size * size])


def unpaired(pairs: "Dataset") -> "Dataset":
    """Each pair as a good and a bad answer to its prompt."""
    from datasets import Dataset

    rows = [
        {"prompt": row["prompt"], "completion": row[answer], "label": answer == "chosen", "tokens": row["tokens"]}
        for row in pairs
        for answer in ("chosen", "rejected")
    ]
    return Dataset.from_list(rows)


def by_length(rows: "Dataset", batch_size: int, seed: int) -> "Dataset":
    """Shuffle rows into batches of similar length (little padding), the batch of the longest first: it shows at once whether
    memory is enough.

    Shuffled, so that a KTO step holds both labels, which TRL's own unpairing leaves in blocks; in this order, because KTO's
    mismatched pairs are made of neighbours.
    """
    rng, lengths = random.Random(seed), rows["tokens"]
    order = list(range(len(rows)))
    rng.shuffle(order)
    size = batch_size * WINDOW
    windows = [sorted(order[start : start + size], key=lambda i: -lengths[i]) for start in range(0, len(order), size)]
    batches = [window[start : start + batch_size] for window in windows for start in range(0, len(window), batch_size)]
    rng.shuffle(batches)
    longest = max(range(len(batches)), key=lambda place: lengths[batches[place][0]])
    batches.insert(0, batches.pop(longest))
    return rows.select([i for batch in batches for i in batch])


if __name__ == "__main__":
    main()
