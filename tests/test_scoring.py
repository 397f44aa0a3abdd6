"""Log-probabilities of answers, beside those of lm-evaluation-harness."""

import random

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import AutoTokenizer, BitsAndBytesConfig, PreTrainedModel, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

from stages import scoring, skills
from tests.conftest import ROOT

LONGEST = 256
Question = tuple[str, list[str]]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "models/nano")


def model(kind: str, **more) -> PreTrainedModel:
    """Random weights, large enough for probabilities that differ a lot."""
    torch.manual_seed(1)
    config, causal = {"qwen2": (Qwen2Config, Qwen2ForCausalLM), "qwen3": (Qwen3Config, Qwen3ForCausalLM)}[kind]
    shape = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
        "head_dim": 16, "vocab_size": 4096, "max_position_embeddings": LONGEST, "initializer_range": 0.2,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    return causal(config(**shape | more)).eval()


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    """Letters after a question with its options, whole answers of very different lengths, and what is awkward to cut."""
    rng, words = random.Random(1), " ".join(skills.corpus(300, "", lambda _, answer: answer)).split()

    def text(fewest: int, most: int) -> str:
        start = rng.randrange(len(words) - most)
        return " ".join(words[start : start + rng.randint(fewest, most)])

    def letters(count: int) -> Question:
        options = "\n".join(f"{letter}. {text(1, 6)}" for letter in "ABCDE"[:count])
        return f"This is a history question.\n\nQuestion: {text(5, 30)}\n{options}\n\nAnswer:", [f" {letter}" for letter in "ABCDE"[:count]]

    return [
        *(letters(rng.choice([4, 5])) for _ in range(100)),
        *((f"سؤال: {text(2, 40)}\nجواب:", [f" {text(1, 25)}" for _ in range(4)]) for _ in range(100)),
        ("سؤال: ما عاصمة مصر؟ ", ["القاهرة", "دمشق"]),
        ("<|im_start|>user\nأي حرف؟<|im_end|>\n<|im_start|>assistant\n", ["أ", "ب", "ج"]),
        (text(300, 300), [" القاهرة", f" {text(30, 30)}"]),  # too long for the model
    ]


def by_harness(model: PreTrainedModel | PeftModel, tokenizer, questions: list[Question]) -> list[float]:
    requests = [Instance("loglikelihood", {}, (prompt, choice), 0) for prompt, own in questions for choice in own]
    return [logp for logp, _ in HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8).loglikelihood(requests, disable_tqdm=True)]


def logps(scores: list[list[scoring.Score]]) -> list[float]:
    return [one.logp for own in scores for one in own]


def picks(values: list[float], questions: list[Question]) -> list[int]:
    values = iter(values)
    return [int(np.argmax([next(values) for _ in own])) for _, own in questions]


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_choices_score_as_in_the_harness(kind, tokenizer, questions):
    ours, theirs = model(kind), by_harness(model(kind), tokenizer, questions)
    found = logps(scoring.choices(ours, tokenizer, questions, ""))
    assert found == pytest.approx(theirs, abs=2e-4)
    assert np.abs(np.subtract(found, theirs)).mean() < 1e-5
    assert picks(found, questions) == picks(theirs, questions)


def test_an_adapter_is_part_of_the_model(tokenizer, questions):
    some = questions[::10]
    base = model("qwen3")
    plain = logps(scoring.choices(base, tokenizer, some, ""))
    adapted = get_peft_model(base, LoraConfig(target_modules="all-linear", init_lora_weights=False)).eval()
    found = logps(scoring.choices(adapted, tokenizer, some, ""))
    assert found == pytest.approx(by_harness(adapted, tokenizer, some), abs=2e-4)
    assert found != pytest.approx(plain, abs=1)
    with adapted.disable_adapter():
        assert logps(scoring.choices(adapted, tokenizer, some, "")) == plain


def test_four_bit_weights_score_alike_in_any_batch(tokenizer, questions, tmp_path):
    model("qwen3").save_pretrained(tmp_path)
    quantised = Qwen3ForCausalLM.from_pretrained(
        tmp_path, quantization_config=BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True)
    ).eval()
    together = logps(scoring.choices(quantised, tokenizer, questions[::10], ""))
    alone = [value for question in questions[::10] for value in logps(scoring.choices(quantised, tokenizer, [question], "", tokens=1))]
    assert together == pytest.approx(alone, abs=1e-3)
    assert together != pytest.approx(logps(scoring.choices(model("qwen3"), tokenizer, questions[::10], "")), abs=1e-1)
