"""Greedy answers of very different lengths: transformers' generate, which carries every row of a batch to the
end of the longest, and ours, which drops a row with its last token. The same batches, prompts and weights.

    python -m benchmarks.generate [--size 65m|0.5b] [--rows 48] [--limit 128] [--json FILE]

The model is a random Qwen2 (speed does not depend on the values of weights) on the GPU, or on the CPU where
there is none. A random model never stops, so each answer is ended after a length drawn from an exponential
distribution with a mean of 0.3 of the limit. Each variant runs twice; the second run counts.
"""

import argparse
import random
import time
from pathlib import Path

from stages.settings.errors import one_line_errors
from stages.settings.files import write_json
from stages.settings.stage import quiet

SIZES = {
    "tiny": {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "vocab_size": 4096},
    "65m": {"hidden_size": 512, "intermediate_size": 1536, "num_hidden_layers": 16, "vocab_size": 32000},
    "0.5b": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "vocab_size": 151936},
}
STOP, SHORTEST, LONGEST = 1, 10, 120  # tokens of a prompt


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--size", choices=list(SIZES), default="65m")
    parser.add_argument("--rows", type=int, default=48)
    parser.add_argument("--limit", type=int, default=128, help="tokens of an answer")
    parser.add_argument("--json", type=Path, metavar="FILE", help="the numbers for programs")
    asked = parser.parse_args()
    quiet()
    found = measured(asked.size, asked.rows, asked.limit)
    if asked.json:
        write_json(asked.json, found)
    print(f"{asked.size} {found['where']}: {found['tokens']:,} tokens in {asked.rows} answers")
    for name in ("transformers", "ours"):
        print(f"  {name:12} {found[name]:7.1f} s")
    print(f"  {found['equal']} of {asked.rows} answers are the same tokens")


def measured(size: str, rows: int, limit: int) -> dict:
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM

    torch.manual_seed(0)
    config = Qwen2Config(
        **SIZES[size], num_attention_heads=8 if size != "0.5b" else 14, num_key_value_heads=2,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, tie_word_embeddings=True, initializer_range=0.05,
    )  # fmt: skip
    gpu = torch.cuda.is_available()
    model = Qwen2ForCausalLM(config).eval()
    model = model.to("cuda", torch.bfloat16) if gpu else model
    rng = random.Random(1)
    prompts = [
        [rng.randrange(5, config.vocab_size) for _ in range(rng.randint(SHORTEST, LONGEST))]
        for _ in range(rows)
    ]
    lengths = [min(limit, 1 + int(rng.expovariate(1 / (0.3 * limit)))) for _ in prompts]
    answers, seconds = {}, {}
    for variant in (transformers, ours) * 2:
        start = time.perf_counter()
        answers[variant] = variant(model, prompts, lengths, limit)
        seconds[variant.__name__] = time.perf_counter() - start
    where = f"on {torch.cuda.get_device_name()}" if gpu else f"on {torch.get_num_threads()} CPU threads"
    equal = sum(answers[ours][i] == answers[transformers][i] for i in range(rows))
    return seconds | {"where": where, "tokens": sum(lengths), "equal": equal}


def ours(model, prompts: list[list[int]], lengths: list[int], limit: int) -> dict[int, list[int]]:
    import torch

    from stages.model import generation

    def choose(logits: torch.Tensor, places: list[int], step: int) -> torch.Tensor:
        last = torch.tensor([lengths[place] == step + 1 for place in places], device=logits.device)
        return logits.argmax(-1).clamp(min=STOP + 1).masked_fill(last, STOP)

    found = generation.in_batches(model, prompts, list(range(len(prompts))), [STOP], limit, choose)
    return {place: tokens for batch, rows in found for place, tokens in zip(batch, rows)}


def transformers(model, prompts: list[list[int]], lengths: list[int], limit: int) -> dict[int, list[int]]:
    import torch
    from transformers import LogitsProcessorList

    from stages.model import generation

    found, left = {}, sorted(range(len(prompts)), key=lambda place: -len(prompts[place]))
    while left:
        width = len(prompts[left[0]])
        batch = left[: max(1, generation.TOKENS // (width + limit))]
        ids, mask = generation.left_padded([prompts[place] for place in batch], 0, model.device)
        ends = torch.tensor([lengths[place] for place in batch], device=model.device)

        def ended(ids: torch.Tensor, scores: torch.Tensor, ends=ends, width=width) -> torch.Tensor:
            """The one token of each row that `ours` would choose."""
            token = scores.argmax(-1).clamp(min=STOP + 1)
            token = token.masked_fill(ends == ids.shape[1] - width + 1, STOP)
            return torch.zeros_like(scores).scatter(1, token[:, None], 1)

        with torch.inference_mode():
            output = model.generate(
                input_ids=ids, attention_mask=mask, max_new_tokens=limit, do_sample=False,
                eos_token_id=STOP, pad_token_id=0, logits_processor=LogitsProcessorList([ended]),
            )  # fmt: skip
        for place, row in zip(batch, output[:, width:].tolist()):
            found[place] = row[: lengths[place]]
        left = left[len(batch) :]
    return found


if __name__ == "__main__":
    with one_line_errors():
        main()
