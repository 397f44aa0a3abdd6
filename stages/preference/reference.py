"""Reference log-probabilities, computed once per policy and set of texts and kept on disk, whatever method or
β asks for them.

The reference of every method is the policy that its stage starts from. So the policy scores all answers
before its first step, and no second model or adapter stays in memory. A file is named after a digest of the
policy, of how it computes and of every text: it cannot go stale. `.cache/` can be deleted at any time.
"""

import hashlib
import json
from collections.abc import Iterable, Iterator
from importlib.metadata import version

import numpy as np
import torch
from datasets import Dataset
from tqdm import tqdm
from transformers import Trainer

from stages.model.modeling import LIBRARIES
from stages.settings.files import cache, replace_file

# of a batch, padding included; a forward pass of so many needs less memory than a training step of two
# sequences
TOKENS = 4096
KEPT = 50  # files; the oldest go first
Text = tuple[bytes, bytes]  # tokens of a prompt and of an answer to it, 4 bytes each


def add_columns(
    dataset: Dataset, columns: dict[str, tuple[str, str]], trainer: Trainer, policy: str
) -> Dataset:
    """Add log-probabilities in nats, summed over the answer: new column → (column of prompt tokens, column of
    answer tokens).

    `policy` identifies the weights of trainer.model.
    """
    texts = {
        name: [
            (packed(prompt), packed(answer[: trainer.args.max_length - len(prompt)]))
            for prompt, answer in zip(dataset[prompts], dataset[answers])
        ]
        for name, (prompts, answers) in columns.items()
    }
    known = log_probabilities({text for own in texts.values() for text in own}, trainer, policy)
    for name, own in texts.items():
        dataset = dataset.add_column(name, np.array([known[text] for text in own], np.float32))
    return dataset


def log_probabilities(texts: set[Text], trainer: Trainer, policy: str) -> dict[Text, float]:
    """From disk, or else computed and written there. The batches depend on nothing but the texts, so both are
    the same numbers.
    """
    ordered = sorted(texts, key=lambda text: (-length(text), text))
    folder = cache("reference")
    path = folder / f"{digest(ordered, trainer, policy)}.npy"
    with trainer.accelerator.main_process_first():  # the others then find the file
        if not path.exists():
            values = np.array(list(scored(ordered, trainer)), np.float32)
            with replace_file(path) as temporary, temporary.open("wb") as file:
                np.save(file, values)
            for old in sorted(folder.glob("*.npy"), key=lambda file: file.stat().st_mtime)[:-KEPT]:
                old.unlink(missing_ok=True)
        values = np.load(path)
    return dict(zip(ordered, values.tolist()))


def digest(ordered: Iterable[Text], trainer: Trainer, policy: str) -> str:
    computing = [trainer.args.device.type, str(trainer.accelerator.mixed_precision), TOKENS]
    libraries = [version(name) for name in LIBRARIES]
    found = hashlib.sha256(json.dumps([policy, computing, libraries]).encode())
    for prompt, answer in ordered:
        found.update(len(prompt).to_bytes(8, "little") + prompt + len(answer).to_bytes(8, "little") + answer)
    return found.hexdigest()[:32]


@torch.no_grad()
def scored(ordered: list[Text], trainer: Trainer) -> Iterator[float]:
    """The model is asked as the trainer asks it, so that policy and reference agree at the first step."""
    model, pad = trainer.model, trainer.processing_class.pad_token_id
    training = model.training
    model.eval()
    with tqdm(
        total=len(ordered), desc="reference", unit=" answers", disable=None, leave=False, dynamic_ncols=True
    ) as bar:
        for batch in batches(ordered):
            ids, labels = np.full((2, len(batch), length(batch[0])), [[[pad]], [[-100]]])
            for row, (prompt, answer) in enumerate(batch):
                ids[row, : length((prompt, answer))] = unpacked(prompt + answer)
                labels[row, len(prompt) // 4 : length((prompt, answer))] = unpacked(answer)
            mask = np.arange(ids.shape[1]) < np.array([[length(text)] for text in batch])
            inputs = {"input_ids": ids, "attention_mask": mask.astype(int), "labels": labels}
            with trainer.accelerator.autocast():
                inputs = {name: torch.from_numpy(value).to(model.device) for name, value in inputs.items()}
                logps = model(**inputs, use_cache=False, fused_lm_head=True).log_probs
            yield from logps.float().sum(1).tolist()
            bar.update(len(batch))
    model.train(training)


def batches(ordered: list[Text]) -> Iterator[list[Text]]:
    """Texts that come longest first, in batches of at most TOKENS with their padding, or of one text."""
    start = 0
    while start < len(ordered):
        count = max(1, TOKENS // length(ordered[start]))
        yield ordered[start : start + count]
        start += count


def packed(tokens: list[int]) -> bytes:
    return np.array(tokens, "<i4").tobytes()


def unpacked(text: bytes) -> np.ndarray:
    return np.frombuffer(text, "<i4")


def length(text: Text) -> int:
    """In tokens."""
    return (len(text[0]) + len(text[1])) // 4
