"""Special tokens of a base model that its pretraining never used: their rows say nothing yet.

A chat template on such a base is reported never to stop: LoRA adapts layers, and no layer makes up for a row
of the LM head that is like those of a hundred other tokens. How to tell: rows of tokens that no text can hold
(bytes that UTF-8 has no use for, ids beyond the vocabulary) have only ever been pushed down, all in one
direction, and a token that is as near to their mean as they are themselves has not been trained either (Land
& Bartolo 2024, arXiv 2405.05417).
"""

from pathlib import Path

import torch
from safetensors import safe_open
from torch.nn.functional import cosine_similarity
from transformers import PreTrainedTokenizerBase

INVALID_BYTES = (0xC0, 0xC1, *range(0xF5, 0x100))  # never part of UTF-8
HEADS = ("lm_head.weight", "embed_tokens.weight")  # the second where it is the head, too
# Of the least similarity of an unused row to their mean. In Gemma 3 270M 99 % of all rows lie below it, two
# tokens that nothing used at 0.66 and 0.87. A false alarm costs megabytes, a miss answers that never stop.
NEAR = 0.6
COHERENT = 0.5  # the least similarity at which unused rows have one direction at all


def untrained(folder: Path, tokenizer: PreTrainedTokenizerBase, tokens: list[str]) -> list[str]:
    """Those of `tokens` whose rows in the LM head are like rows that no text has used; none where the unused
    rows are too few, or too unlike each other, to tell.
    """
    path, name, size = head(folder)
    unused = [*unreachable(tokenizer), *range(len(tokenizer), size)]
    with safe_open(path, "pt") as file:
        part = file.get_slice(name)
        spare, asked = (
            torch.cat([part[i : i + 1] for i in ids]).float() if ids else torch.empty(0)
            for ids in (unused, tokenizer.convert_tokens_to_ids(tokens))
        )
    if len(spare) < 2:
        return []
    mean = spare.mean(0, keepdim=True)
    least = cosine_similarity(spare, mean).quantile(0.1).item()
    if least < COHERENT:
        return []
    like = cosine_similarity(asked, mean) > NEAR * least
    return [token for token, alike in zip(tokens, like) if alike]


def unreachable(tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of bytes that no text has, as byte-level BPE writes them or a vocabulary that falls back to
    bytes.
    """
    known = tokenizer.get_vocab()
    names = [name for byte in INVALID_BYTES for name in (chr(byte), f"<0x{byte:02X}>")]
    ids = [known[name] for name in names if name in known]
    return [token for token in ids if tokenizer.decode([token]) == "\ufffd"]  # and not the letter À


def head(folder: Path) -> tuple[Path, str, int]:
    """The file that holds the LM head, the name of its tensor, and its rows."""
    found = {}
    for path in sorted(folder.glob("*.safetensors")):
        with safe_open(path, "pt") as file:
            for name in file.keys():  # noqa: SIM118 (it is no dict)
                for place, ending in enumerate(HEADS):
                    if name.endswith(ending):
                        found[place] = (path, name, file.get_slice(name).get_shape()[0])
    return found[min(found)]
