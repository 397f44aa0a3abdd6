"""The rows that a preference stage learns from: which of them a method can use, and in which order."""

import os
import random
from collections.abc import Iterator
from pathlib import Path

from datasets import Dataset, concatenate_datasets
from pyarrow import parquet
from torch.utils.data import Sampler

from stages.settings.errors import Problem
from stages.settings.files import sha256
from stages.settings.methods import METHODS
from stages.settings.params import Method, Params
from stages.training.looks import HELD_OUT, sampled
from stages.training.run import load_rows

DATA = Path("data/formatted/preferences/train.parquet")
COLUMNS = ("prompt_ids", "chosen_ids", "rejected_ids", "tokens")
WINDOW = 50  # batches within which rows are sorted by length
BALANCE = (
    1,
    4 / 3,
)  # of good to bad answers, each kind times its weight, as KTO's authors advise (arXiv 2402.01306, eq. 8)


def prepared(params: Params, method: str, policy: Path) -> Dataset:
    """The rows of a method, as many as fill its steps, in the order of training: the mixture's, and the
    model's own for what starts from `policy`.
    """
    settings, kind = params.chosen_model.preference, METHODS[method]
    step = settings.batch_size * settings.accumulation  # in pairs
    found = [load_rows(path, COLUMNS) for path in (DATA, sampled_for(params, policy)) if path.exists()]
    rows = shuffled(concatenate_datasets(found), params.seed)
    rows = same_for_all(rows, step)
    rows = pairs(rows, method, step) if kind.paired else answers(rows, method, params.methods[method])
    size = settings.batch_size * kind.rows
    rows = by_length(whole_steps(rows, step * kind.rows), size, params.seed)
    return rows if kind.paired else mismatched(rows, size)


def held_out(params: Params, method: str, trained: int) -> Dataset | None:
    """The rows of a method to look at while it trains on so many; None where there are none."""
    kind, settings = METHODS[method], params.chosen_model.preference
    rows = load_rows(DATA.with_name(HELD_OUT), COLUMNS)
    both = [i for i, pair in enumerate(zip(rows["chosen_ids"], rows["rejected_ids"])) if all(pair)]
    rows = rows.select(both) if kind.paired else split(rows)
    epochs = params.methods[method].epochs
    rows = sampled(shuffled(rows, seed=0), trained, epochs, params.preference.evaluations)
    size = settings.batch_size * kind.rows
    if rows is None or len(rows) < kind.min_batch_size * kind.rows:
        return None
    rows = rows.select(range(max(len(rows) // size * size, min(size, len(rows)))))
    return rows if kind.paired else mismatched(rows, size)


def sampled_for(params: Params, policy: Path) -> Path:
    """The model's own pairs for what starts from a checkpoint; empty where none were wanted."""
    answered = "sft" if policy.name == "sft" else params.sample.refine
    return Path(f"data/formatted/sampled-{answered}/train.parquet")


def sampled_origin(params: Params, policy: Path) -> dict[str, str]:
    """For a checkpoint's provenance: the hash of the model's own pairs that it learned from."""
    path = sampled_for(params, policy)
    has_rows = path.exists() and parquet.read_metadata(path).num_rows
    return {"sampled_sha256": sha256(path)} if has_rows else {}


def shuffled(rows: Dataset, seed: int) -> Dataset:
    order = list(range(len(rows)))
    random.Random(seed).shuffle(order)
    return rows.select(order)


def same_for_all(rows: Dataset, step: int) -> Dataset:
    """Of rows that are all pairs those that fill steps, also for a method that splits them: so all methods
    share their reference.
    """
    paired = all(all(both) for both in zip(rows["chosen_ids"], rows["rejected_ids"]))
    return whole_steps(rows, step) if paired and len(rows) >= step else rows


def pairs(rows: Dataset, method: str, step: int) -> Dataset:
    """Those with two answers. Single votes, which have one, are left out and counted."""
    found = [i for i, both in enumerate(zip(rows["chosen_ids"], rows["rejected_ids"])) if all(both)]
    if singles := len(rows) - len(found):
        said = (
            f"{method} learns from pairs alone, and {singles:,} of {len(rows):,} preferences are single votes"
        )
        if len(found) < step:
            raise Problem(
                f"{said}: {len(found)} pairs do not fill a step of {step}; add pairs, or learn from both: "
                "-S method=kto"
            )
        note(f"{said}: they are left out")
    return rows.select(found)


def answers(rows: Dataset, method: str, own: Method) -> Dataset:
    """Every answer with its label, as many good as bad by their weights or a note that they are not."""
    found = split(rows)
    good = sum(found["label"])
    check_balance(good, len(found) - good, method, own)
    return found


def split(rows: Dataset) -> Dataset:
    """Every answer with its label, good or bad: two of a pair, one of a single vote."""
    found = [
        {
            "prompt_ids": row["prompt_ids"],
            "completion_ids": row[answer],
            "label": answer == "chosen_ids",
            "tokens": row["tokens"],
        }
        for row in rows
        for answer in ("chosen_ids", "rejected_ids")
        if row[answer]
    ]
    return Dataset.from_list(found)


def mismatched(rows: Dataset, size: int) -> Dataset:
    """With the answer before it in its batch for every prompt, as TRL pairs them for KTO's estimate of KL."""
    answers = rows["completion_ids"]
    others = [
        answers[start + (i - 1) % len(batch)]
        for start in range(0, len(rows), size)
        for batch in [range(start, min(start + size, len(rows)))]
        for i in range(len(batch))
    ]
    return rows.add_column("KL_completion_ids", others)


def check_balance(good: int, bad: int, method: str, own: Method) -> None:
    """Say which weight would balance good and bad answers, where they are not. Raises Problem where there is
    but one kind.
    """
    if not good or not bad:
        raise Problem(
            f"the preferences give {good:,} good and {bad:,} bad answers, and {method} learns from both "
            "kinds: add the other"
        )
    ratio, (least, most) = own.desirable_weight * good / (own.undesirable_weight * bad), BALANCE
    if not least <= round(ratio, 1) <= round(most, 1):
        name = "desirable_weight" if ratio < least else "undesirable_weight"
        bounds = (least / ratio, most / ratio) if ratio < least else (ratio / most, ratio / least)
        low, high = (getattr(own, name) * bound for bound in bounds)
        note(
            f"{good:,} good and {bad:,} bad answers: methods.{method}.{name} from {low:.2f} to {high:.2f} "
            "would balance them"
        )


def note(text: str) -> None:
    """Print a line, in one process."""
    if os.environ.get("RANK", "0") == "0":
        print(f"note: {text}", flush=True)


def whole_steps(rows: Dataset, size: int) -> Dataset:
    """The first rows, as many as fill steps of `size`; a rest is left out."""
    if len(rows) < size:
        raise Problem(
            f"the preferences give {len(rows)} rows to train on, fewer than one step of {size} "
            "(batch_size x accumulation): add rows, "
            "or lower accumulation"
        )
    if rest := len(rows) % size:
        note(f"{rest:,} of {len(rows):,} rows do not fill a step of {size}: they are left out")
    return rows.select(range(len(rows) // size * size))


def by_length(rows: Dataset, batch_size: int, seed: int) -> Dataset:
    """Shuffle rows into batches of similar length (little padding), the batch of the longest first: it shows
    at once whether memory is enough.

    Shuffled, so that a KTO step holds both labels, which TRL's own unpairing leaves in blocks; in this order,
    because KTO's mismatched pairs are made of neighbours.
    """
    rng, lengths = random.Random(seed), rows["tokens"]
    order = list(range(len(rows)))
    rng.shuffle(order)
    size = batch_size * WINDOW
    windows = [
        sorted(order[start : start + size], key=lambda i: -lengths[i]) for start in range(0, len(order), size)
    ]
    batches = [
        window[start : start + batch_size]
        for window in windows
        for start in range(0, len(window), batch_size)
    ]
    rng.shuffle(batches)
    longest = max(range(len(batches)), key=lambda place: lengths[batches[place][0]])
    batches.insert(0, batches.pop(longest))
    return rows.select([i for batch in batches for i in batch])


class ShuffledBatches(Sampler):
    """Places of rows that stand in batches: in their order in the first epoch, and in every other one the
    same batches in an order of its own. A batch stays whole: its rows have one length, and KTO's mismatched
    pairs are of one batch.
    """

    def __init__(self, rows: int, batch_size: int, seed: int):
        self.rows, self.batch_size, self.seed, self.epoch = rows, batch_size, seed, 0

    def set_epoch(self, epoch: int) -> None:
        """Called by the trainer, also where a run goes on."""
        self.epoch = epoch

    def __iter__(self) -> Iterator[int]:
        starts = list(range(0, self.rows, self.batch_size))
        if self.epoch:
            random.Random(f"{self.seed} {self.epoch}").shuffle(starts)
        return iter([start + i for start in starts for i in range(self.batch_size)])

    def __len__(self) -> int:
        return self.rows
