"""Pretrain `nano`, the embedded base model, from the generated corpus. Its result is committed: models/nano.

Not part of `dvc repro`: on 2 cores it takes longer than everything else together, and a committed base is the
same on every machine. `python -m stages.builtin.pretrain` makes it again; a test checks that what is
committed came from this corpus.
"""

import hashlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from babel import Locale
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers
from torch.nn.functional import cross_entropy
from tqdm import tqdm
from transformers import PreTrainedTokenizerFast, Qwen3Config, Qwen3ForCausalLM, set_seed

from stages.builtin import skills
from stages.settings.errors import one_line_errors
from stages.settings.files import replace_folder, write_json
from stages.settings.params import NANO
from stages.text.prompts import END_OF_TEXT, IM_END, IM_START, TEMPLATES

QWEN_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


@dataclass(frozen=True)
class Nano:
    """The architecture and training of the built-in base."""

    seed: int = 1
    documents: int = 80_000
    vocab_size: int = 4096
    hidden_size: int = 192
    intermediate_size: int = 448
    layers: int = 4
    heads: int = 4
    key_value_heads: int = 2
    block: int = 256  # tokens per row
    batch_size: int = 16  # rows per step
    learning_rate: float = 0.003


def main(nano: Nano = Nano()) -> None:
    with one_line_errors():
        documents = list(corpus(nano.documents))
        tokenizer = build_tokenizer(nano.vocab_size, documents)
        set_seed(nano.seed)
        model = Qwen3ForCausalLM(architecture(nano, tokenizer))
        print(f"pretrain: {model.num_parameters():,} parameters, {len(documents):,} documents")
        train(model, blocks(tokenizer, documents, nano.block), nano)
        with replace_folder(Path(NANO)) as folder:
            model.to(torch.bfloat16).save_pretrained(folder)
            tokenizer.save_pretrained(folder)
            weights = hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()
            made_from = {
                "corpus_sha256": digest(documents),
                "weights_sha256": weights,
                "nano": asdict(nano),
            }
            write_json(folder / "provenance.json", made_from)


def corpus(documents: int) -> Iterator[str]:
    chatml = TEMPLATES["chatml"]
    return skills.corpus(documents, END_OF_TEXT, lambda user, assistant: (
        chatml.render([{"role": "user", "content": user}]) + chatml.complete(assistant) + END_OF_TEXT
    ))  # fmt: skip


def digest(documents: list[str]) -> str:
    """sha256 of the corpus: equal on every machine, unlike the trained weights."""
    return hashlib.sha256("\0".join(documents).encode()).hexdigest()


def build_tokenizer(vocab_size: int, documents: list[str]) -> PreTrainedTokenizerFast:
    """Byte-level BPE with Qwen's pre-tokeniser, NFC and special tokens.

    It is trained on CLDR's Arabic names beside a slice of the corpus, so that its pieces are those of the
    language rather than whole phrases of our templates.
    """
    bpe = Tokenizer(models.BPE())
    bpe.normalizer = normalizers.NFC()
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(QWEN_SPLIT), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    bpe.decoder = decoders.ByteLevel()
    specials = [END_OF_TEXT, IM_START, IM_END]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    arabic = Locale("ar")
    names = [
        name for table in (arabic.territories, arabic.languages, arabic.currencies) for name in table.values()
    ]
    bpe.train_from_iterator(itertools.chain(names * 4, documents[:2000]), trainer)
    # As in Qwen's base models: padding and end of text are one token, and chat turns end in another.
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=END_OF_TEXT, pad_token=END_OF_TEXT)


def architecture(nano: Nano, tokenizer: PreTrainedTokenizerFast) -> Qwen3Config:
    return Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=nano.hidden_size,
        intermediate_size=nano.intermediate_size,
        num_hidden_layers=nano.layers,
        num_attention_heads=nano.heads,
        num_key_value_heads=nano.key_value_heads,
        head_dim=nano.hidden_size // nano.heads,
        max_position_embeddings=1024,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def blocks(tokenizer: PreTrainedTokenizerFast, documents: list[str], length: int) -> torch.Tensor:
    """The corpus as one stream of tokens, cut into rows of `length`. Shape [rows, length]."""
    stream = list(itertools.chain.from_iterable(tokenizer(documents)["input_ids"]))
    rows = len(stream) // length
    return torch.tensor(stream[: rows * length]).view(rows, length)


def train(model: Qwen3ForCausalLM, rows: torch.Tensor, nano: Nano) -> None:
    """One pass over the rows: Muon for the matrices, AdamW for embeddings and norms; linear warm-up, cosine
    decay to 0.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed" in name]
    optimizers = [
        torch.optim.Muon(matrices, lr=nano.learning_rate, weight_decay=0.01, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=nano.learning_rate, betas=(0.9, 0.98), weight_decay=0.0),
    ]
    batches = rows[torch.randperm(len(rows))].split(nano.batch_size)
    model.train()
    for step, batch in enumerate(bar := tqdm(batches, desc="pretrain", unit="step")):
        rate = nano.learning_rate * min((step + 1) / 50, (1 + math.cos(math.pi * step / len(batches))) / 2)
        logits = model(input_ids=batch).logits
        loss = cross_entropy(logits[:, :-1].flatten(0, 1), batch[:, 1:].flatten())
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.step()
            optimizer.zero_grad()
        bar.set_postfix(loss=f"{loss.item():.3f}")


if __name__ == "__main__":
    with one_line_errors():
        main()
