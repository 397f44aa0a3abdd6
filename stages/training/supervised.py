"""TRL's supervised trainer, with less work on a CPU, and how it is made from params.yaml."""

import math
from pathlib import Path
from statistics import fmean

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F
from datasets import Dataset
from datasets.table import InMemoryTable
from peft import PeftModel
from pyarrow import parquet
from transformers import PreTrainedModel
from trl import SFTConfig, SFTTrainer

from stages.model import modeling
from stages.model.scoring import Sequence, summed
from stages.settings.params import Params
from stages.training.looks import HELD_OUT, sampled
from stages.training.run import arguments


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

    @torch.inference_mode()
    def evaluate(self, eval_dataset=None, ignore_keys=None, metric_key_prefix="eval") -> dict[str, float]:
        """Of held-out rows: nats per trained token, by the scorer of evaluation (no whole logits, no padding
        to speak of), and how probable the stop token is where an answer ends.
        """
        rows, stop = self.eval_dataset, self.processing_class.eos_token_id
        trained = [
            (ids, start, end)
            for ids, labels in zip(rows["input_ids"], rows["labels"])
            for start, end in spans(labels)
        ]
        whole = [Sequence(ids[: end - 1], ids[start:end]) for ids, start, end in trained]
        stops = [Sequence(ids[: end - 1], [stop]) for ids, _, end in trained if ids[end - 1] == stop]
        self.model.eval()
        with self.accelerator.autocast():
            found = summed(self.model, [*whole, *stops], "a look at held-out rows")
        metrics = {"eval_loss": -sum(found[: len(whole)]) / sum(len(part.answer) for part in whole)}
        if stops:  # documents alone have none
            metrics["eval_stop_probability"] = fmean(map(math.exp, found[len(whole) :]))
        self.log(dict(metrics))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def count(self, inputs) -> None:
        """Log the tokens seen so far, as SFTTrainer does; a pack has no mask, as nothing in it is padding."""
        mask = inputs.get("attention_mask")
        tokens = (
            mask.sum() if mask is not None else inputs["input_ids"].new_tensor(inputs["input_ids"].numel())
        )
        self._total_train_tokens += self.accelerator.gather(tokens).sum().item()
        self._metrics["train"]["num_tokens"] = [self._total_train_tokens]


def labelled(path: Path) -> Dataset:
    """Formatted rows as the trainer takes them: input_ids, and labels of what is trained, -100 elsewhere."""
    table = parquet.read_table(path, columns=["input_ids", "trained"]).combine_chunks()
    ids = pc.list_flatten(table["input_ids"]).to_numpy()
    ends = pc.list_value_length(table["input_ids"]).to_numpy().cumsum(dtype=np.int64)
    labels = np.full(len(ids), -100, ids.dtype)
    for start, own in zip([0, *ends], table["trained"].to_pylist()):
        for first, last in zip(own[::2], own[1::2]):
            labels[start + first : start + last] = ids[start + first : start + last]
    columns = {
        name: pa.LargeListArray.from_arrays([0, *ends], values)
        for name, values in (("input_ids", ids), ("labels", labels))
    }
    return Dataset(InMemoryTable(pa.table(columns)))


def spans(labels: list[int]) -> list[tuple[int, int]]:
    """Start and end of every run of trained tokens; the others' label is -100."""
    trained = [0, *(int(label != -100) for label in labels), 0]
    edges = [i - 1 for i in range(1, len(trained)) if trained[i] != trained[i - 1]]
    return list(zip(edges[::2], edges[1::2]))


def build(
    params: Params, model: PreTrainedModel | PeftModel, data: Path, epochs: float, learning_rate: float
) -> AnswerTrainer:
    """The trainer of a model on formatted rows, and the rows held out beside them that it looks at. Packed
    documents do not see each other; unpacked ones are batched by length.
    """
    tokenizer = modeling.load_tokenizer(params.prompt)
    config = SFTConfig(
        **arguments(params, params.chosen_model.sft, params.sft, epochs, learning_rate),
        packing=params.sft.packing,
        eval_packing=False,
        train_sampling_strategy="random" if params.sft.packing else "group_by_length",
        eos_token=tokenizer.eos_token,
        completion_only_loss=True,
    )
    rows, held_out = labelled(data), labelled(data.with_name(HELD_OUT))
    held_out = sampled(held_out, len(rows), epochs, params.sft.evaluations)
    with modeling.trained_in_fp32(model):
        return AnswerTrainer(
            model, config, train_dataset=rows, eval_dataset=held_out, processing_class=tokenizer
        )
