"""The table of preference methods. To add one, add an entry here and its hyperparameters under `methods` in params.yaml."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One way to learn from preferences.

    `trainer` is "dpo", "kto" or "cpo"; `loss` is the trainer's loss_type. `hyperparameters` are those it takes beside beta,
    learning_rate_factor and epochs. `min_batch_size` is the fewest rows at a time (per device, before accumulation) for
    which its loss is what its name says.
    """

    name: str
    paper: str
    trainer: str
    loss: str
    hyperparameters: tuple[str, ...] = ()
    min_batch_size: int = 1


METHODS = {
    # −log σ(β[log-ratio(chosen) − log-ratio(rejected)]), ln 2 at the start
    "dpo": Method("Direct Preference Optimization", "arXiv 2305.18290, eq. 7", "dpo", "sigmoid"),
    # ([per-token log-ratio(chosen) − per-token log-ratio(rejected)] − 1/2β)², 1/4β² at the start
    "ipo": Method("Identity Preference Optimization", "arXiv 2310.12036, eq. 17", "dpo", "ipo"),
    # Single answers, each good or bad: 1 − σ(±(β log-ratio − KL)), 1/2 at the start. KL is estimated from mismatched rows
    # of the same batch.
    "kto": Method(
        "Kahneman-Tversky Optimization", "arXiv 2402.01306, eq. 8", "kto", "kto",
        hyperparameters=("desirable_weight", "undesirable_weight"), min_batch_size=2,
    ),
    # −log σ(β[log p(chosen) − log p(rejected)]) + sft_weight · NLL(chosen): DPO without a reference
    "cpo": Method(
        "Contrastive Preference Optimization", "arXiv 2401.08417, eq. 3–5", "cpo", "sigmoid", hyperparameters=("sft_weight",)
    ),
    # DPO's loss on sorted margins: the margin DISTRIBUTION is pushed up, not each pair. No method called "Distributional
    # Preference Optimization" is published under that name; alignment by optimal transport (AOT) is what we mean by it.
    # With one pair there is nothing to sort and it would be exactly DPO, so it demands a real batch.
    "dno": Method(
        "Distributional preference alignment by optimal transport", "arXiv 2406.05882, alg. 1", "dpo", "aot", min_batch_size=4
    ),
}  # fmt: skip
