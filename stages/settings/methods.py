"""The table of preference methods. To add one, add an entry here and its hyperparameters under `methods` in
params.yaml.

In the equations p is the policy and q its reference, c the chosen and r the rejected answer, h(y) = log
p(y)/q(y), σ the logistic function, mean(·) an average over the tokens of an answer, NLL(y) = −mean(log p(y)).
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Method:
    """One way to learn from preferences.

    `trainer` is "dpo" (pairs and a reference), "kto" (single answers and a reference), "reference_free"
    (pairs alone) or "sft" (continued training on answers: no preference method, a refinement). `loss` is what
    the trainer calls it. `hyperparameters` are those it takes beside learning_rate_factor and epochs: name →
    the value in params.yaml and its source. `start` is the loss of a policy that still equals its reference,
    where that does not depend on the data, as a formula of the hyperparameters. `min_batch_size` is the
    fewest pairs at a time (per device, before accumulation) for which the loss is what its name says. `rate`
    is the source of its learning_rate_factor, where that is not 1: the factor of DPO's rate by which its
    authors' (or TRL's) differs.
    """

    name: str
    paper: str
    equation: str
    trainer: str
    loss: str
    hyperparameters: dict[str, str]
    start: str = ""
    min_batch_size: int = 1
    rate: str = ""

    @property
    def has_reference(self) -> bool:
        return self.trainer in ("dpo", "kto")

    @property
    def paired(self) -> bool:
        return self.trainer in ("dpo", "reference_free")

    @property
    def rows(self) -> int:
        """Of a batch of one pair: KTO takes each of its answers as a row of its own."""
        return 2 if self.trainer == "kto" else 1


METHODS = {
    "dpo": Method(
        "Direct Preference Optimization",
        "arXiv 2305.18290, eq. 7",
        "−log σ(β[h(c) − h(r)])",
        "dpo",
        "sigmoid",
        {"beta": "0.1 (paper, appendix B)"},
        "log(2)",
    ),
    "ipo": Method(
        "Identity Preference Optimization",
        "arXiv 2310.12036, eq. 17",
        "(mean h(c) − mean h(r) − 1/2β)²",
        "dpo",
        "ipo",
        {"beta": "0.1 (trl; the paper's τ)"},
        "1 / (4 * beta**2)",
    ),
    # KL(p‖q) is estimated from prompts with the answers of their neighbours in the batch: four answers or
    # more at a time, as TRL's documentation of KTO advises.
    "kto": Method(
        "Kahneman-Tversky Optimization",
        "arXiv 2402.01306, eq. 7",
        "w(1 − σ(±[β h(y) − KL]))",
        "kto",
        "kto",
        {
            "beta": "0.1 (authors' code)",
            "desirable_weight": "1 (for as many good as bad)",
            "undesirable_weight": "1 (the same)",
        },
        "0.5",
        min_batch_size=2,
    ),
    "cpo": Method(
        "Contrastive Preference Optimization",
        "arXiv 2401.08417, eq. 3–5",
        "−log σ(β[log p(c) − log p(r)]) + w·NLL(c)",
        "reference_free",
        "cpo",
        {"beta": "0.1 (authors' code)", "sft_weight": "1 (authors' code)"},
        rate="20: 1e-4 with LoRA in the authors' runs/cpo_ft.sh (github.com/fe1ixxu/ALMA)",
    ),
    "simpo": Method(
        "Simple Preference Optimization",
        "arXiv 2405.14734, eq. 6",
        "−log σ(β[mean log p(c) − mean log p(r)] − γ)",
        "reference_free",
        "simpo",
        {"beta": "2 (authors, for a base model)", "simpo_gamma": "1 (authors: half of beta)"},
        rate="2: up to 1e-6 in full (github.com/princeton-nlp/SimPO), where DPO takes 5e-7",
    ),
    # Its NLL is over the whole chosen text, prompt included, as in the authors' code.
    "orpo": Method(
        "Odds Ratio Preference Optimization",
        "arXiv 2403.07691, eq. 6–7",
        "NLL(prompt, c) − β log σ(log odds(c) − log odds(r)), odds of exp(mean log p)",
        "reference_free",
        "orpo",
        {"beta": "0.1 (authors' λ)"},
        rate="10: 5e-5 with QLoRA in the alignment handbook (zephyr-141b-A35b/orpo)",
    ),
    # Nothing called "Distributional Preference Optimization" is published under that name (and DNO elsewhere
    # is Direct Nash Optimization, another thing); alignment by optimal transport (AOT) is what we mean by it:
    # the DISTRIBUTION of the chosen answers' rewards is pushed above that of the rejected, by sorting both
    # within a batch. With one pair there is nothing to sort and it would be exactly DPO.
    "dno": Method(
        "Distributional preference alignment by optimal transport",
        "arXiv 2406.05882, alg. 1",
        "−log σ(β[h(c)₍ᵢ₎ − h(r)₍ᵢ₎]), both sorted within the batch",
        "dpo",
        "aot_unpaired",
        {"beta": "0.1 (as dpo)"},
        "log(2)",
        min_batch_size=4,
    ),
    "robust": Method(
        "Provably robust DPO",
        "arXiv 2403.00409",
        "[(1−ε)·dpo(c, r) − ε·dpo(r, c)] / (1−2ε)",
        "dpo",
        "robust",
        {"beta": "0.1 (as dpo)", "label_smoothing": "0.1 (paper's ε: the share of flipped pairs)"},
        "log(2)",
    ),
    "hinge": Method(
        "SLiC's hinge loss on DPO's margin",
        "arXiv 2309.06657 (RSO)",
        "max(0, 1 − β[h(c) − h(r)])",
        "dpo",
        "hinge",
        {"beta": "0.1 (trl; 1/beta is the margin)"},
        "1",
    ),
    "exo": Method(
        "Efficient Exact Optimization",
        "arXiv 2402.00856, eq. 16",
        "KL(σ(±β[h(c) − h(r)]) ‖ (1−ε, ε))",
        "dpo",
        "exo_pair",
        {"beta": "0.1 (as dpo)", "label_smoothing": "0.001 (paper, as trl says)"},
        "-log(2) - (log(1 - label_smoothing) + log(label_smoothing)) / 2",
    ),
    "nca": Method(
        "Noise Contrastive Alignment",
        "arXiv 2402.05369",
        "−log σ(β h(c)) − ½ log σ(−β h(c)) − ½ log σ(−β h(r))",
        "dpo",
        "nca_pair",
        {"beta": "0.1 (trl; the authors train with 0.01)"},
        "2 * log(2)",
    ),
    # trl's pairwise form, without the running reward shift δ of the paper.
    "bco": Method(
        "Binary Classifier Optimization",
        "arXiv 2404.04656",
        "−log σ(β h(c)) − log σ(−β h(r))",
        "dpo",
        "bco_pair",
        {"beta": "0.1 (trl; the paper trains with 0.01)"},
        "2 * log(2)",
    ),
    "sppo": Method(
        "Self-Play Preference Optimization, hard labels",
        "arXiv 2405.00675, eq. 4.7",
        "(h(c) − 1/2β)² + (h(r) + 1/2β)²",
        "dpo",
        "sppo_hard",
        {"beta": "0.1 (trl; the authors' 0.001 asks every log-ratio for 500 nats)"},
        "1 / (2 * beta**2)",
    ),
    "apo_zero": Method(
        "Anchored Preference Optimization, zero",
        "arXiv 2408.06266, eq. 7",
        "1 − σ(β h(c)) + σ(β h(r))",
        "dpo",
        "apo_zero",
        {"beta": "0.1 (trl)"},
        "1",
    ),
    "apo_down": Method(
        "Anchored Preference Optimization, down",
        "arXiv 2408.06266, eq. 8",
        "σ(β h(c)) + 1 − σ(β[h(c) − h(r)])",
        "dpo",
        "apo_down",
        {"beta": "0.1 (trl)"},
        "1",
    ),
    "rpo": Method(
        "DPO with an SFT term (iterative RPO)",
        "arXiv 2404.19733, eq. 1",
        "dpo + w·NLL(c)",
        "dpo",
        "sigmoid",
        {"beta": "0.1 (as dpo)", "sft_weight": "1 (paper's α)"},
    ),
    "dpo_norm": Method(
        "Length-normalised DPO",
        "arXiv 2411.15124 (Tulu 3)",
        "−log σ(β[mean h(c) − mean h(r)])",
        "dpo",
        "sigmoid_norm",
        {"beta": "5 (authors' recipe)"},
        "log(2)",
    ),
    "continued": Method("Continued training on the mixture's continued rows", "", "NLL(y)", "sft", "nll", {}),
}
