"""One more pass from models/dpo → models/refine-<item>: a second preference method, or training on more
answers.

python -m stages.refine ipo          its reference is the policy of models/dpo, its β the method's times
                                     refinement.beta_factor
python -m stages.refine continued    on the mixture's continued rows, as sft does it
"""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from stages.settings.errors import one_line_errors
from stages.settings.params import Params
from stages.settings.stage import stage

if TYPE_CHECKING:
    from trl import SFTTrainer

PARENT = Path("models/dpo")
CONTINUED = Path("data/formatted/continued/train.parquet")


def main(item: str) -> None:
    with stage("refine", item) as params:
        from stages.model.modeling import provenance
        from stages.preference import rows, trainers
        from stages.training.run import explained, train

        with explained(f"refine-{item}"):
            if item == "continued":
                data, settings, trainer, own = CONTINUED, params.sft, continued(params), {}
            else:
                data, settings, own = rows.DATA, params.preference, rows.sampled_origin(params, PARENT)
                trainer = trainers.build(params, item, PARENT, params.refinement.beta_factor)
            origin = provenance(params, data, PARENT) | own
            train(trainer, f"refine-{item}", params, settings, origin | {"method": item})


def continued(params: Params) -> "SFTTrainer":
    """Supervised training that goes on from models/dpo, at its own share of sft's rate."""
    from stages.model import modeling
    from stages.training import supervised

    own = params.methods["continued"]
    model = modeling.load_checkpoint(params.chosen_model.weights, PARENT, trainable=True)
    rate = params.chosen_model.sft.learning_rate * own.learning_rate_factor
    return supervised.build(params, model, CONTINUED, own.epochs, rate)


if __name__ == "__main__":
    with one_line_errors():
        if len(sys.argv) != 2:
            sys.exit("usage: python -m stages.refine <method>|continued")
        main(sys.argv[1])
