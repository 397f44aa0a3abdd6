"""Reference log-probabilities, computed once per policy and text and kept on disk, whatever method, β or seed
asks for them.

The reference of every method is the policy that its stage starts from. So the policy scores all answers
before its first step, and no second model or adapter stays in memory. A file belongs to a policy and to how
it computes, and holds a number per text: it cannot go stale. `.cache/` can be deleted at any time.
"""

import hashlib
import json
import time
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from datasets import Dataset
from filelock import FileLock
from tqdm import tqdm
from transformers import Trainer

from stages.model.modeling import LIBRARIES
from stages.settings.files import cache, replace_file

# of a batch, padding included; a forward pass of so many needs less memory than a training step of two
# sequences
TOKENS = 2048
STEP = 16  # tokens to a multiple of which a text is padded
KEPT = 50  # files; the oldest go first
SAVED_EVERY = 60  # seconds, so that a kill costs no more
KNOWN = np.dtype([("text", "S16"), ("logp", "<f4")])  # a digest of a text, and its log-probability
Text = tuple[bytes, bytes]  # tokens of a prompt and of an answer to it, 4 bytes each


def add_columns(
    datasets: list[Dataset], columns: dict[str, tuple[str, str]], trainer: Trainer, policy: str
) -> list[Dataset]:
    """Add log-probabilities in nats, summed over the answer, to each dataset: new column → (column of prompt
    tokens, column of answer tokens).

    `policy` identifies the weights of trainer.model.
    """

    def texts(dataset: Dataset, name: str) -> list[Text]:
        prompts, answers = (dataset[column] for column in columns[name])
        most = trainer.args.max_length
        return [(packed(one), packed(other[: most - len(one)])) for one, other in zip(prompts, answers)]

    wanted = [{name: texts(dataset, name) for name in columns} for dataset in datasets]
    asked = {text for own in wanted for column in own.values() for text in column}
    known = log_probabilities(asked, trainer, policy)
    for i, own in enumerate(wanted):
        for name, column in own.items():
            values = np.array([known[digest(text)] for text in column], np.float32)
            datasets[i] = datasets[i].add_column(name, values)
    return datasets


def log_probabilities(texts: set[Text], trainer: Trainer, policy: str) -> dict[bytes, float]:
    """By the texts' digests: from disk, or else computed and written there. One process computes at a time;
    the next then finds what it wrote.
    """
    path = cache("reference") / f"{computation(trainer, policy)}.npy"
    path.parent.mkdir(parents=True, exist_ok=True)
    with trainer.accelerator.main_process_first(), FileLock(path.with_suffix(".lock")):
        known = load(path)
        missing = sorted(
            (text for text in texts if digest(text) not in known), key=lambda text: (-length(text), text)
        )
        saved = time.monotonic()
        for text, logp in zip(missing, scored(missing, trainer)):
            known[digest(text)] = logp
            if time.monotonic() - saved > SAVED_EVERY:
                save(path, known)
                saved = time.monotonic()
        if missing:
            save(path, known)
            forget(path.parent)
    return known


def computation(trainer: Trainer, policy: str) -> str:
    """A digest of all that determines the number of a text."""
    computing = [trainer.args.device.type, str(trainer.accelerator.mixed_precision), TOKENS, STEP]
    libraries = [version(name) for name in LIBRARIES]
    return hashlib.sha256(json.dumps([policy, computing, libraries]).encode()).hexdigest()[:32]


def digest(text: Text) -> bytes:
    prompt, answer = text
    found = hashlib.blake2b(len(prompt).to_bytes(8, "little") + prompt + answer, digest_size=16).digest()
    return found.rstrip(b"\0")  # as numpy reads it back


def load(path: Path) -> dict[bytes, float]:
    rows = np.load(path) if path.exists() else np.empty(0, KNOWN)
    return dict(zip(rows["text"].tolist(), rows["logp"].tolist()))


def save(path: Path, known: dict[bytes, float]) -> None:
    with replace_file(path) as temporary, temporary.open("wb") as file:
        np.save(file, np.array(list(known.items()), KNOWN))


def forget(folder: Path) -> None:
    for old in sorted(folder.glob("*.npy"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
        old.unlink(missing_ok=True)
        old.with_suffix(".lock").unlink(missing_ok=True)


@torch.no_grad()
def scored(ordered: list[Text], trainer: Trainer) -> Iterator[float]:
    """The model is asked as the trainer asks it, so that policy and reference agree at the first step."""
    model, pad = trainer.model, trainer.processing_class.pad_token_id
    training = model.training
    model.eval()
    with tqdm(
        total=len(ordered), desc="reference", unit=" answers", disable=None, leave=False, dynamic_ncols=True
    ) as bar:
        for batch, shape in batches(ordered):
            ids, labels, mask = np.full(shape, pad), np.full(shape, -100), np.zeros(shape, int)
            for row, (prompt, answer) in enumerate(batch):
                end = length((prompt, answer))
                ids[row, :end] = unpacked(prompt + answer)
                labels[row, len(prompt) // 4 : end] = unpacked(answer)
                mask[row, :end] = 1
            mask[len(batch) :, 0] = 1  # a row of padding alone, too, has something to attend to
            inputs = {"input_ids": ids, "attention_mask": mask, "labels": labels}
            with trainer.accelerator.autocast():
                inputs = {name: torch.from_numpy(value).to(model.device) for name, value in inputs.items()}
                logps = model(**inputs, use_cache=False, fused_lm_head=True).log_probs
            yield from logps.float().sum(1)[: len(batch)].tolist()
            bar.update(len(batch))
    model.train(training)


def batches(ordered: list[Text]) -> Iterator[tuple[list[Text], tuple[int, int]]]:
    """Texts that come longest first, in batches of one length, and the shape [rows, tokens] that each is
    padded to.

    It depends on the length alone: a matrix product of one shape gives a row the same digits whatever stands
    in the others. So a text's number is the same in whichever set it is asked for.
    """
    start = 0
    while start < len(ordered):
        tokens = padded(ordered[start])
        rows = max(1, TOKENS // tokens)
        batch = [text for text in ordered[start : start + rows] if padded(text) == tokens]
        yield batch, (rows, tokens)
        start += len(batch)


def packed(tokens: Iterable[int]) -> bytes:
    return np.array(tokens, "<i4").tobytes()


def unpacked(text: bytes) -> np.ndarray:
    return np.frombuffer(text, "<i4")


def length(text: Text) -> int:
    """In tokens."""
    return (len(text[0]) + len(text[1])) // 4


def padded(text: Text) -> int:
    return -(-length(text) // STEP) * STEP
