"""One more pass from models/dpo → models/refine-<item>: a second preference method, or training on more answers.

python -m stages.refine ipo          its reference is the policy of models/dpo, its β the method's times refinement.beta_factor
python -m stages.refine continued    on data.continued, as sft does it
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stages import dpo, sft
from stages.params import Params, stage

if TYPE_CHECKING:
    from trl import SFTTrainer

PARENT = Path("models/dpo")
CONTINUED = Path("data/formatted/continued/train.parquet")


def main(item: str) -> None:
    with stage("refine", item) as params:
        from stages import modeling, training

        with training.explained(f"refine-{item}"):
            data = CONTINUED if item == "continued" else dpo.DATA
            trainer = continued(params) if item == "continued" else dpo.build(params, item, PARENT, params.refinement.beta_factor)
            training.run(trainer, f"refine-{item}", params, modeling.provenance(params, data, PARENT) | {"method": item})


def continued(params: Params) -> "SFTTrainer":
    from stages import modeling

    own = params.methods["continued"]
    model = modeling.load_checkpoint(params.chosen_model.weights, PARENT, trainable=True)
    return sft.build(params, model, CONTINUED, own.epochs, params.chosen_model.sft.learning_rate * own.learning_rate_factor)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m stages.refine <method>|continued")
    main(sys.argv[1])
