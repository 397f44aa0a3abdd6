"""Rows of embedding and LM head that are trained beside an adapter, at the price of rows.

PEFT (trainable_token_indices) puts the rows into a copy of the whole table at every use, and TRL's fused LM
head then builds the gradient of all of that copy, in fp32: 2.9 GB more for a model of 4B. Here nothing as
large as the table has a gradient. Names, files and merging stay PEFT's.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from peft import PeftModel
from peft.utils.other import TrainableTokensWrapper
from torch import nn


class TrainedRows(TrainableTokensWrapper):
    """PEFT's wrapper of a table, which computes the places of the rows apart from all others."""

    @property
    def weight(self) -> torch.Tensor:
        """The table with its rows, for TRL's fused LM head: `with_gradient` adds what it does not see."""
        return super().__getattr__("weight").detach()

    @property
    def ids(self) -> torch.Tensor:
        (name,) = self.token_adapter.active_adapters
        return torch.tensor(self.token_adapter.token_indices[name], device=self.original_module.weight.device)

    @property
    def rows(self) -> torch.Tensor:
        """[ids, hidden]"""
        (name,) = self.token_adapter.active_adapters
        return self.token_adapter.trainable_tokens_delta[name]

    def _forward_wrapped(self, x: torch.Tensor, *args, **kwargs) -> torch.Tensor:
        adapter = self.token_adapter
        if adapter.disable_adapters or adapter.merged or len(adapter.active_adapters) != 1:
            return super()._forward_wrapped(x, *args, **kwargs)
        out, rows = self.original_module(x), self.rows.to(self.original_module.weight.dtype)
        if isinstance(self.original_module, nn.Embedding):
            scale = adapter._get_embed_scale()  # of Gemma
            found = x[..., None] == self.ids
            own = found.to(rows.dtype) @ (rows if scale is None else rows * scale.to(rows.dtype))
            return torch.where(found.any(-1, keepdim=True), own.to(out.dtype), out)
        return out.index_copy(-1, self.ids, F.linear(x, rows).to(out.dtype))


def train_rows(model: PeftModel) -> PeftModel:
    """Make the trained rows of a model's tables, if it has some, ready for TRL's trainers.

    A head whose logits are capped is left as PEFT made it: `with_gradient` knows no cap.
    """
    head = model.get_output_embeddings()
    if not isinstance(head, TrainableTokensWrapper):
        return model
    head.bias = getattr(head.original_module, "bias", None)  # TRL reads it, and the wrapper has none
    if not getattr(model.config, "final_logit_softcapping", None):
        for table in (head, model.get_input_embeddings()):
            table.__class__ = TrainedRows
        states = []

        def keep(module: nn.Module, args: tuple, output) -> None:
            states[:] = [output.last_hidden_state] if torch.is_grad_enabled() else []

        model.get_base_model().get_decoder().register_forward_hook(keep)
        model.base_model.register_forward_hook(with_gradient(head, states), with_kwargs=True)
    return model


def with_gradient(head: TrainedRows, states: list[torch.Tensor]) -> Callable:
    """A hook on a model with TRL's fused LM head, which has taken the rows as constants: it adds to each
    log-probability a term whose value is 0 and whose gradient is that of the rows.

    Of a row r after hidden state h, with z_r = h·w_r, that is (1[target = r] − p_r)·h: the derivative of
    z_target − log Σ exp z by w_r.
    """

    def hook(module: nn.Module, args: tuple, given: dict, output):
        hidden = states.pop() if states else None
        if not (given.get("fused_lm_head") and torch.is_grad_enabled()):
            return
        labels = given["labels"][:, 1:]
        mask, ids = labels != -100, head.ids
        hidden, targets = hidden[:, :-1][mask].detach(), labels[mask]
        logits = F.linear(hidden, head.rows.to(hidden.dtype)).float()
        is_target = targets[:, None] == ids
        with torch.no_grad():
            of_target = (hidden * head.original_module.weight[targets]).float().sum(1)
            of_target = torch.where(is_target.any(1), (logits * is_target).sum(1), of_target)
            normalizer = of_target - output.log_probs[mask]
            share = is_target.float() - (logits - normalizer[:, None]).exp()
        term = (share * (logits - logits.detach())).sum(1)
        count = given.get("num_items_in_batch")
        output.log_probs = output.log_probs + torch.zeros_like(output.log_probs).masked_scatter(mask, term)
        output.loss = output.loss - term.sum() / (mask.sum().clamp(min=1) if count is None else count)

    return hook
