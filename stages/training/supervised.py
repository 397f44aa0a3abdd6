"""TRL's supervised trainer, with less work on a CPU, and how it is made from params.yaml."""

from pathlib import Path

import torch.nn.functional as F
from peft import PeftModel
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from stages.model import modeling
from stages.settings.params import Params
from stages.training.run import arguments, load_rows


class AnswerTrainer(SFTTrainer):
    """SFTTrainer whose LM head sees the positions of answers alone, on a CPU too: the same loss and
    gradients.

    TRL's GPU kernel skips the others; its replacement in plain torch computes their logits as well, and all
    of them twice.
    """

    def compute_loss(self, model, inputs, return_outputs=False, num_items_in_batch=None):
        if self.accelerator.device.type == "cuda":
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        labels = inputs.pop("labels")[:, 1:]
        trained = (labels != -100).any(0).nonzero().squeeze(1)
        logits = model(**inputs, use_cache=False, logits_to_keep=trained).logits
        summed = F.cross_entropy(logits.flatten(0, 1).float(), labels[:, trained].flatten(), reduction="sum")
        self.count(inputs)
        # All processes' tokens are in num_items_in_batch, and their gradients are averaged.
        return summed / num_items_in_batch * self.accelerator.num_processes

    def count(self, inputs) -> None:
        """Log the tokens seen so far, as SFTTrainer does; a pack has no mask, as nothing in it is padding."""
        mask = inputs.get("attention_mask")
        tokens = (
            mask.sum() if mask is not None else inputs["input_ids"].new_tensor(inputs["input_ids"].numel())
        )
        self._total_train_tokens += self.accelerator.gather(tokens).sum().item()
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]


def build(
    params: Params, model: PreTrainedModel | PeftModel, data: Path, epochs: float, learning_rate: float
) -> AnswerTrainer:
    """The trainer of a model on formatted rows. Packed documents do not see each other; unpacked ones are
    batched by length.
    """
    tokenizer = modeling.load_tokenizer(params.prompt)
    config = SFTConfig(
        **arguments(params, params.chosen_model.sft, params.sft, epochs, learning_rate),
        packing=params.sft.packing,
        train_sampling_strategy="random" if params.sft.packing else "group_by_length",
        eos_token=tokenizer.eos_token,
        completion_only_loss=True,
    )
    rows = load_rows(data, ["prompt", "completion"])
    with modeling.trained_in_fp32(model):
        return AnswerTrainer(model, config, train_dataset=rows, processing_class=tokenizer)
