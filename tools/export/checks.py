"""Does what was exported answer as the checkpoint does?"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from stages.model import generation
from stages.settings.errors import Problem
from stages.text.prompts import Template

# Nats per token: rounding to bfloat16 stays below, a merge into another base than the adapter's does not
# (tests/test_export.py).
LIMIT = 0.01
GGUF_LIMIT = 1.0  # nats: wide, as 4 bits round much more; it is to catch a file that is read as another model


@dataclass(frozen=True)
class Record:
    """What a model makes of prompts: its greedy answers as token ids without the stop token, whether each
    stopped, and at every token of each answer the log-probabilities of the next one, [tokens + 1,
    vocabulary].
    """

    prompts: list[str]
    answers: list[tuple[int, ...]]
    stopped: list[bool]
    logps: list[torch.Tensor]


def record(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    prompts: list[str],
    stops: list[int],
    limit: int,
) -> Record:
    answers = generation.generate(model, tokenizer, prompts, stops, limit, "checkpoint")
    logps = [of_answer(model, tokenizer, prompt, answer.tokens) for prompt, answer in zip(prompts, answers)]
    return Record(
        prompts, [answer.tokens for answer in answers], [answer.stopped for answer in answers], logps
    )


def of_answer(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, prompt: str, answer: tuple[int, ...]
) -> torch.Tensor:
    """next_tokens from the prompt's last token on."""
    return next_tokens(model, [*tokenizer(prompt)["input_ids"], *answer], len(answer) + 1)


@torch.inference_mode()
def next_tokens(model: PreTrainedModel, ids: list[int], last: int) -> torch.Tensor:
    """Log-probabilities of what comes next, at the `last` of a text's token ids: float (last, vocabulary)."""
    asked = torch.tensor([ids], device=model.device)
    return model(input_ids=asked, logits_to_keep=last).logits[0].float().log_softmax(-1).cpu()


def divergence(before: Iterable[torch.Tensor], after: Iterable[torch.Tensor]) -> float:
    """Mean KL(before ‖ after) of a token, in nats, of log-probabilities as next_tokens gives them: one text
    at a time, as a real vocabulary makes gigabytes of all.
    """
    kl = [nats for one, other in zip(before, after) for nats in (one.exp() * (one - other)).sum(-1).tolist()]
    return sum(kl) / len(kl)


def begins(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether it puts a token before every text, as Llama's and Gemma's do and Qwen's does not."""
    return tokenizer.bos_token_id is not None and tokenizer("")["input_ids"][:1] == [tokenizer.bos_token_id]


def check_template(tokenizer: PreTrainedTokenizerBase, template: Template, system: str) -> None:
    """Raise Problem where a conversation has other tokens by the chat template than it had in training."""
    turns = [("user", "ما عاصمة مصر؟"), ("assistant", "القاهرة."), ("user", "وأين تقع؟")]
    messages = [{"role": role, "content": content} for role, content in turns]
    served = tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False)
    trained = tokenizer(template.render(messages, system))["input_ids"]
    if served != trained:
        place = next(
            i for i, (one, other) in enumerate(zip([*served, None], [*trained, None])) if one != other
        )
        raise Problem(
            f"the chat template makes other tokens of a conversation than training saw, from {place} on"
        )


def check_merged(folder: Path, expected: Record, limit: int) -> dict[str, float | int]:
    """How far the exported model is from the checkpoint. Raises Problem where that is more than rounding."""
    model, tokenizer = load(folder)
    answers = generation.generate(
        model, tokenizer, expected.prompts, model.generation_config.eos_token_id, limit, "merged"
    )
    logps = (
        of_answer(model, tokenizer, prompt, answer)
        for prompt, answer in zip(expected.prompts, expected.answers)
    )
    nats = abs(divergence(expected.logps, logps))  # of equal distributions it rounds to either side of 0
    if not nats <= LIMIT:  # so that NaN fails, too
        raise Problem(
            f"the merged model is {nats:.3f} nats per token from the checkpoint, more than rounding "
            f"explains ({LIMIT}), "
            "so it was not written. An adapter on embeddings that are tied to the head cannot be merged: "
            "leave embed_tokens out of sft.lora.targets"
        )
    facts = {"divergence": round(nats, 6), "prompts": len(answers)}
    same = [one.tokens == answer for one, answer in zip(answers, expected.answers)]
    facts["same_answers"] = sum(same)
    return facts | {
        "stopped": sum(one.stopped for one in answers),
        "checkpoint_stopped": sum(expected.stopped),
    }


def load(folder: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """As a user would, with nothing but the folder. On the GPU where the 16-bit weights leave a quarter of
    its memory free.
    """
    size = sum(path.stat().st_size for path in folder.glob("*.safetensors"))
    fits = torch.cuda.is_available() and torch.cuda.mem_get_info()[0] * 0.75 > size
    model = AutoModelForCausalLM.from_pretrained(
        folder, dtype="auto", use_safetensors=True, device_map={"": 0} if fits else None
    )
    return model.eval(), AutoTokenizer.from_pretrained(folder)


def check_gguf(path: Path, expected: Record, stops: list[int], limit: int) -> dict[str, float | int]:
    """llama.cpp's greedy answers to the same prompts, tokenised by itself. Raises Problem for a file that it
    reads as another model.
    """
    import xllamacpp

    asked = xllamacpp.CommonParams()
    asked.model.path, asked.n_ctx, asked.n_parallel = str(path), 4096, 1
    asked.warmup, asked.verbosity = False, -1
    server = xllamacpp.Server(asked)
    same, gaps = 0, []
    for prompt, answer, logps in zip(expected.prompts, expected.answers, expected.logps):
        given = server.handle_completions(
            {"prompt": prompt, "max_tokens": limit, "temperature": 0, "logprobs": 1}
            | {"verbose": True, "return_tokens": True}
        )
        tokens = [token for token in given["__verbose"]["tokens"] if token not in stops]
        same += tokens == list(answer)
        gaps += first_gap(given["choices"][0]["logprobs"]["content"], tokens, answer, logps)
    if not (gaps and sum(gaps) / len(gaps) <= GGUF_LIMIT):
        raise Problem(
            f"{path.name}: llama.cpp gives the first token of an answer another probability than the "
            "checkpoint does, so it was not written"
        )
    return {"prompts": len(expected.prompts), "same_answers": same}


def first_gap(
    scored: list[dict], tokens: list[int], answer: tuple[int, ...], logps: torch.Tensor
) -> list[float]:
    """By how many nats the first log-probability that llama.cpp gives differs from the checkpoint's, if it is
    after the same tokens. It gives none of a token that is only a part of a letter.
    """
    if not scored:
        return []
    token = scored[0]["id"]
    place = tokens.index(token) if token in tokens else 0  # 0: a stop token, which is all of the answer
    if tuple(tokens[:place]) != answer[:place]:
        return []
    return [abs(scored[0]["logprob"] - logps[place, token].item())]
