"""One more pass from models/dpo → models/refine-<item>: a second preference method, or training on more answers.

python -m stages.refine ipo          its reference is the policy of models/dpo, its β the method's times refinement.beta_factor
python -m stages.refine continued    on data.continued, as sft does it
"""

import sys
from pathlib import Path

from stages import dpo, sft
from stages.params import stage

PARENT = Path("models/dpo")
CONTINUED = Path("data/formatted/continued/train.parquet")


def main(item: str) -> None:
    with stage("refine", item) as params:
        from stages import modeling, training

        method, data = params.methods[item], CONTINUED if item == "continued" else dpo.DATA
        provenance = modeling.provenance(params, data, PARENT) | {"method": item}
        if item == "continued":
            model = modeling.load_checkpoint(params.chosen_model.weights, PARENT, trainable=True)
            rate = params.chosen_model.sft.learning_rate * method.learning_rate_factor
            trainer = sft.build(params, model, data, method.epochs, rate)
        else:
            trainer = dpo.build(params, item, PARENT, params.refinement.beta_factor)
        training.run(trainer, f"refine-{item}", params, provenance)


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit("usage: python -m stages.refine <method>|continued")
    main(sys.argv[1])
