"""TRL's supervised trainer, with less work on a CPU."""

import torch.nn.functional as F
from trl import SFTTrainer


class AnswerTrainer(SFTTrainer):
    """SFTTrainer whose LM head sees the positions of answers alone, on a CPU too: the same loss and gradients.

    TRL's GPU kernel skips the others; its replacement in plain torch computes their logits as well, and all of them twice.
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
        tokens = mask.sum() if mask is not None else inputs["input_ids"].new_tensor(inputs["input_ids"].numel())
        self._total_train_tokens += self.accelerator.gather(tokens).sum().item()
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]
