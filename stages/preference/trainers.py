"""TRL's preference trainers with a reference that is looked up, the trainer that TRL lacks, and how each
method gets its own.
"""

from pathlib import Path

import torch
import torch.nn.functional as F
from datasets import Dataset
from peft import PeftModel
from trl import DPOConfig, DPOTrainer, KTOConfig, KTOTrainer

from stages.model import modeling
from stages.preference import reference
from stages.preference.rows import ShuffledBatches, held_out, prepared
from stages.settings.methods import METHODS
from stages.settings.params import Params
from stages.training.run import arguments


class LookedUp:
    """A preference trainer for a policy that is its own reference before its first step: no second model or
    adapter stays in memory.

    TRL would fill in the reference's log-probabilities when the trainer is made, but then it has changed the
    precision of the adapter: where there is a reference, `add_reference` does it later. It would also hash
    the whole model for a cache of its own, so an adapter's trainer is made as if nothing were looked up
    (`precompute` below); without an adapter TRL would then load a second model.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.precompute_ref_logps = True
        if "ref" in getattr(self.model, "peft_config", {}):
            self.model.delete_adapter("ref")  # a frozen copy of the adapter, which TRL has just made

    def _prepare_dataset(self, dataset: Dataset, *args) -> Dataset:
        return dataset  # its tokens stand in the formatted rows

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        return dataset

    def add_columns(self, columns: dict[str, tuple[str, str]], policy: str) -> None:
        """Of the reference, to the rows of training and to those held out."""
        datasets = [dataset for dataset in (self.train_dataset, self.eval_dataset) if dataset is not None]
        self.train_dataset, *held_out = reference.add_columns(datasets, columns, self, policy)
        self.eval_dataset = held_out[0] if held_out else None

    def _get_train_sampler(self, dataset: Dataset | None = None) -> ShuffledBatches:
        return ShuffledBatches(len(self.train_dataset), self.args.per_device_train_batch_size, self.args.seed)


class ByStep(LookedUp, DPOTrainer):
    """Pairs. A loss with a term of the chosen answers' likelihood per token (NLL) counts a token alike in
    whichever micro-batch of a step it stands, so that 8 x 1 and 2 x 4 pairs have one gradient.
    """

    whole_text = False  # whether the prompt's tokens count, too
    chosen_tokens = None  # of a micro-batch of this step, on average over these and all processes

    def get_batch_samples(self, epoch_iterator, num_batches, device):
        batches, items = super().get_batch_samples(epoch_iterator, num_batches, device)
        counts = torch.tensor([float(self.count_chosen(batch)) for batch in batches], device=device)
        self.chosen_tokens = self.accelerator.gather(counts).mean()
        return batches, items

    def count_chosen(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        mask = inputs["attention_mask" if self.whole_text else "completion_mask"]
        return mask[:, 1:].chunk(2)[0].sum()

    def share(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor | float:
        """Of a micro-batch's mean NLL in its step's: 1 on average, more where it has more tokens."""
        if not self.model.training or self.chosen_tokens is None:
            return 1.0
        return self.count_chosen(inputs) / self.chosen_tokens


class PairTrainer(ByStep):
    def add_reference(self, policy: str) -> None:
        """`policy` identifies the weights of the model, which nothing has trained yet."""
        pairs = {
            "ref_chosen_logps": ("prompt_ids", "chosen_ids"),
            "ref_rejected_logps": ("prompt_ids", "rejected_ids"),
        }
        self.add_columns(pairs, policy)

    def _compute_loss(self, model, inputs, return_outputs):
        if "sft" in self.loss_types:  # TRL's name of the NLL
            self.loss_weights = [self.args.loss_weights[0], self.args.loss_weights[1] * self.share(inputs)]
        return super()._compute_loss(model, inputs, return_outputs)


class SingleTrainer(LookedUp, KTOTrainer):
    """KTO's estimate of KL has a reference too: each prompt with the answer of its neighbour."""

    def add_reference(self, policy: str) -> None:
        for name, answers in (("ref_logps", "completion_ids"), ("ref_KL_logps", "KL_completion_ids")):
            self.add_columns({name: ("prompt_ids", answers)}, policy)


class ReferenceFreeTrainer(ByStep):
    """CPO, SimPO and ORPO. The losses are those of trl.experimental, which builds the whole logits (7B at
    2,048 tokens cannot afford that in 12 GB); here log-probabilities come in chunks, from DPOTrainer's fused
    LM head.
    """

    def __init__(self, *args, loss: str, sft_weight: float | None, simpo_gamma: float | None, **kwargs):
        self.loss, self.sft_weight, self.simpo_gamma = loss, sft_weight, simpo_gamma
        self.whole_text = loss == "orpo"
        super().__init__(*args, **kwargs)

    def _compute_loss(self, model, inputs, return_outputs):
        text, answer = inputs["attention_mask"], inputs["completion_mask"][:, 1:]
        labels = inputs["input_ids"].masked_fill(
            (text if self.whole_text else inputs["completion_mask"]) == 0, -100
        )
        outputs = model(
            inputs["input_ids"], attention_mask=text, labels=labels, use_cache=False, fused_lm_head=True
        )
        token_logps, counts = outputs.log_probs, answer.sum(1)
        sums = (token_logps * answer).sum(1)
        (chosen, rejected), (chosen_mean, rejected_mean) = sums.chunk(2), (sums / counts).chunk(2)
        trained = (text[:, 1:] if self.whole_text else answer).chunk(2)[0]
        nll = -(token_logps.chunk(2)[0] * trained).sum() / trained.sum() * self.share(inputs)

        if self.loss == "cpo":
            rewards = chosen, rejected
            loss = -F.logsigmoid(self.beta * (chosen - rejected)).mean() + self.sft_weight * nll
        elif self.loss == "simpo":
            rewards = chosen_mean, rejected_mean
            loss = -F.logsigmoid(self.beta * (chosen_mean - rejected_mean) - self.simpo_gamma).mean()
        else:
            rewards = chosen_mean, rejected_mean
            odds = chosen_mean - rejected_mean - (log1mexp(chosen_mean) - log1mexp(rejected_mean))
            loss = nll - self.beta * F.logsigmoid(odds).mean()
        self.note(self.beta * rewards[0], self.beta * rewards[1], chosen, rejected, text)
        return loss

    def note(self, chosen_rewards, rejected_rewards, chosen, rejected, text) -> None:
        """What DPOTrainer logs, over all processes; tensors of one value per pair, and the attention mask."""
        margins = chosen_rewards - rejected_rewards
        values = {
            "rewards/chosen": chosen_rewards, "rewards/rejected": rejected_rewards,
            "rewards/margins": margins,
            "rewards/accuracies": (margins > 0).float(), "logps/chosen": chosen, "logps/rejected": rejected,
        }  # fmt: skip
        metrics = self._metrics["train" if self.model.training else "eval"]
        for name, value in values.items():
            metrics[name].append(self.accelerator.gather(value.detach()).mean().item())
        if self.model.training:
            self._total_train_tokens += self.accelerator.gather(text.sum()).sum().item()
        metrics["num_tokens"] = [self._total_train_tokens]


def log1mexp(x: torch.Tensor) -> torch.Tensor:
    """log(1 − exp(x)) for x < 0, in the form that is exact on each side of −ln 2."""
    return torch.where(x > -0.693, torch.log(-torch.expm1(x)), torch.log1p(-torch.exp(x)))


def build(
    params: Params, method: str, parent: Path, beta_factor: float = 1.0
) -> PairTrainer | SingleTrainer | ReferenceFreeTrainer:
    """The trainer of a method, its policy loaded from `parent`."""
    kind, own = METHODS[method], params.methods[method]
    weights, settings = params.chosen_model.weights, params.chosen_model.preference
    settings = settings.model_copy(update={"batch_size": settings.batch_size * kind.rows})
    rows = prepared(params, method, parent)
    model = modeling.load_checkpoint(weights, parent, trainable=True)
    common = arguments(
        params, settings, params.preference, own.epochs, settings.learning_rate * own.learning_rate_factor
    ) | {
        "beta": own.beta * beta_factor,
        "precompute_ref_log_probs": not isinstance(model, PeftModel),  # LookedUp says why
        "train_sampling_strategy": "sequential",
    }
    given = {
        "model": model,
        "processing_class": modeling.load_tokenizer(params.prompt),
        "train_dataset": rows,
        "eval_dataset": held_out(params, method, len(rows)),
    }
    with modeling.trained_in_fp32(model):
        if kind.trainer == "kto":
            balance = {"desirable_weight": own.desirable_weight, "undesirable_weight": own.undesirable_weight}
            trainer = SingleTrainer(args=KTOConfig(**common, **balance), **given)
        elif kind.has_reference:
            losses = {"loss_type": [kind.loss]}
            if own.sft_weight is not None:
                losses = {"loss_type": [kind.loss, "sft"], "loss_weights": [1.0, own.sft_weight]}
            config = DPOConfig(**common, **losses, label_smoothing=own.label_smoothing or 0.0)
            trainer = PairTrainer(args=config, **given)
        else:
            extra = {"loss": kind.loss, "sft_weight": own.sft_weight, "simpo_gamma": own.simpo_gamma}
            trainer = ReferenceFreeTrainer(args=DPOConfig(**common), **given, **extra)
    if kind.has_reference:
        trainer.add_reference(modeling.policy_identity(weights, parent))
    return trainer
