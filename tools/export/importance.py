"""Which columns of a linear layer's weights matter: those that meet large inputs. ggml weighs the errors of
rounding by it, as after llama.cpp's llama-imatrix.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from pyarrow import parquet

from tools.export import checks

KINDS = ("q4_k_m", "q5_k_m", "q6_k")  # which it makes better; q8_0 rounds the same with and without
DATA = Path("data/formatted/instructions/train.parquet")  # the export is checked on held-out rows
ROWS = 128


@dataclass(frozen=True)
class Importance:
    """`columns`: the mean squared input of each linear layer but the head, [columns], by the layer's name;
    so many `rows` of DATA were read for it.
    """

    columns: dict[str, np.ndarray]
    rows: int


def calibration() -> list[list[int]]:
    """Token ids of at most ROWS rows, from every part of the training data."""
    rows = parquet.read_table(DATA, columns=["input_ids"])["input_ids"]
    return [rows[i].as_py() for i in range(0, len(rows), -(-len(rows) // ROWS))]


@torch.inference_mode()
def measure(folder: Path) -> Importance:
    """Over all tokens of `calibration`, by the model in a folder."""
    model, _ = checks.load(folder)
    rows = calibration()
    head, sums, tokens = model.get_output_embeddings(), {}, sum(map(len, rows))

    def add_to(name: str):
        def hook(_: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
            found = inputs[0].float().square().flatten(0, -2).sum(0)
            sums[name] = sums.get(name, 0) + found

        return hook

    for name, module in model.named_modules():
        if isinstance(module, torch.nn.Linear) and module is not head:
            module.register_forward_pre_hook(add_to(name))
    for row in rows:
        model(input_ids=torch.tensor([row], device=model.device), use_cache=False, logits_to_keep=1)
    columns = {name: (total / tokens).cpu().numpy() for name, total in sums.items()}
    return Importance(columns, len(rows))
