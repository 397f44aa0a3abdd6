"""The preference stage, by any method: the SFT checkpoint learns which answer is better → models/dpo.

The reference of every method that has one is the policy this stage starts from.
"""

from pathlib import Path

from stages.settings.errors import one_line_errors
from stages.settings.stage import stage

PARENT = Path("models/sft")


def main() -> None:
    with stage("dpo") as params:
        from stages.model.modeling import provenance
        from stages.preference import rows, trainers
        from stages.training.run import explained, train

        with explained("dpo"):
            trainer = trainers.build(params, params.method, PARENT)
            origin = provenance(params, rows.DATA, PARENT) | rows.sampled_origin(params, PARENT)
            train(trainer, "dpo", params, params.preference, origin | {"method": params.method})


if __name__ == "__main__":
    with one_line_errors():
        main()
