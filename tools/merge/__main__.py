"""Average checkpoints of one base → models/merged-<name>, a checkpoint like any other.

python -m tools.merge CHECKPOINT CHECKPOINT… --name NAME [--method linear|slerp] [--weights 0.5 0.5]

CHECKPOINT: sft, dpo, refine-<method>, merged-<name>, or REVISION/CHECKPOINT of a commit or an experiment.

linear  W + Σ wᵢ ΔWᵢ, of what each checkpoint adds to the base (model soups: Wortsman et al. 2022, arXiv
        2203.05482). The weights add up to 1, one may be negative.
slerp   of two adapters: along the arc between ΔW₁ and ΔW₂ (Shoemake 1985, doi 10.1145/325165.325242), for
        each layer by its own angle; nearly parallel ones linearly, as in mergekit.
"""

import argparse

from stages.settings.errors import one_line_errors
from stages.settings.reader import read
from stages.settings.stage import quiet


def main() -> None:
    parser = argparse.ArgumentParser(
        "python -m tools.merge", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoints", nargs="+", metavar="CHECKPOINT")
    parser.add_argument("--name", required=True)
    parser.add_argument("--method", choices=("linear", "slerp"), default="linear")
    parser.add_argument("--weights", nargs="+", type=float, metavar="WEIGHT", help="equal ones by default")
    asked = parser.parse_args()
    quiet()
    from tools.merge import average

    weights = asked.weights or [1 / len(asked.checkpoints)] * len(asked.checkpoints)
    average.merge(asked.checkpoints, weights, asked.method, asked.name, read())


if __name__ == "__main__":
    with one_line_errors():
        main()
