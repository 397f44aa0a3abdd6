"""A tokenizer in a GGUF file's words: of bytes in pairs, as Qwen's and Llama 3's, or of pieces of text with
single bytes for what has none, as Gemma's.
"""

import json
import re

import gguf
from gguf import TokenType
from transformers import PreTrainedTokenizerBase

from stages.settings.errors import Problem

# How a text is cut before bytes are paired, which llama.cpp knows by name (src/llama-vocab.cpp): Qwen2 cuts
# digits one by one, Llama 3 three by three.
CUTS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}%s| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
    r"|\s+(?!\S)|\s+"
)
BYTE_PAIRS = {CUTS % "": ("qwen2", False), CUTS % "{1,3}": ("llama-bpe", True)}  # name, ignore_merges
NFC = {"type": "NFC"}  # of texts that are so already it changes nothing; llama.cpp leaves it out
PAIRED = {"type": "ByteLevel", "add_prefix_space": False}
BLANK = "▁"  # what pieces have for a blank


def kind_of(backend: dict) -> tuple[str, str]:
    """llama.cpp's names of a tokenizer.json's kind and of how it cuts texts. Raises Problem for one whose
    tokens llama.cpp would not make.
    """
    model, normalizer = backend["model"], backend.get("normalizer") or NFC
    if model["type"] == "BPE" and model.get("byte_fallback"):
        if normalizer == {"type": "Replace", "pattern": {"String": " "}, "content": BLANK}:
            return "llama", "default"
    elif model["type"] == "BPE" and normalizer == NFC:
        first, last = [*(backend["pre_tokenizer"] or {}).get("pretokenizers", []), {}, {}][:2]
        name, whole = BYTE_PAIRS.get(first.get("pattern", {}).get("Regex"), ("", False))
        if name and last == last | PAIRED and bool(model.get("ignore_merges")) == whole:
            return "gpt2", name
    raise Problem(
        "--gguf: its tokenizer is none that llama.cpp is known to read alike (Qwen's, Llama 3's, Gemma's): "
        "export without --gguf"
    )


def describe(writer: gguf.GGUFWriter, tokenizer: PreTrainedTokenizerBase, size: int, begins: bool) -> None:
    """Vocabulary, merges or scores, special tokens and chat template. An embedding may have more rows
    (`size`) than a tokenizer has tokens. `begins`: it puts its first token before every text.
    """
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    kind, cut = kind_of(backend)
    known = {index: token for token, index in tokenizer.get_vocab().items()}
    types = token_types(tokenizer, known, size)
    tokens = [known.get(index, f"[PAD{index}]") for index in range(size)]
    merges = [merge.split(" ") if isinstance(merge, str) else merge for merge in backend["model"]["merges"]]
    writer.add_tokenizer_model(kind)
    writer.add_tokenizer_pre(cut)
    if kind == "llama":
        types = [TokenType.BYTE if re.fullmatch(r"<0x..>", token) else of for token, of in zip(tokens, types)]
        ranks: dict[str, int] = {}
        for rank, merge in enumerate(merges):
            ranks.setdefault("".join(merge), rank)
        writer.add_token_scores([-float(ranks.get(token, len(merges))) for token in tokens])
        writer.add_add_space_prefix(False)
        tokens = [
            token.replace(BLANK, " ") if of == TokenType.USER_DEFINED else token
            for token, of in zip(tokens, types)
        ]
    else:
        writer.add_token_merges([" ".join(merge) for merge in merges])
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_pad_token_id(tokenizer.pad_token_id)
    if tokenizer.unk_token_id is not None:
        writer.add_unk_token_id(tokenizer.unk_token_id)
    if begins:
        writer.add_bos_token_id(tokenizer.bos_token_id)
    writer.add_add_bos_token(begins)
    if tokenizer.chat_template:
        writer.add_chat_template(tokenizer.chat_template)


def token_types(tokenizer: PreTrainedTokenizerBase, known: dict[int, str], size: int) -> list[TokenType]:
    added = {
        index: TokenType.CONTROL if token.special else TokenType.USER_DEFINED
        for index, token in tokenizer.added_tokens_decoder.items()
    }
    unused = TokenType.UNUSED
    return [added.get(index, TokenType.NORMAL if index in known else unused) for index in range(size)]
