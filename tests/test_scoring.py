"""Log-probabilities of answers, beside those of lm-evaluation-harness."""

import random
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM
from peft import LoraConfig, PeftModel, get_peft_model
from transformers import (
    AutoTokenizer,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from stages.builtin import skills
from stages.model import scoring
from stages.model.modeling import load_base
from stages.settings.errors import Problem
from stages.settings.params import Weights
from tests.conftest import ROOT

LONGEST = 256
Question = tuple[str, list[str]]


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(ROOT / "models/nano")


KINDS = {
    "qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "llama": (LlamaConfig, LlamaForCausalLM),
    "gemma3_text": (Gemma3TextConfig, Gemma3ForCausalLM),
}


def model(kind: str, **more) -> PreTrainedModel:
    """Random weights, large enough for probabilities that differ a lot."""
    torch.manual_seed(1)
    config, causal = KINDS[kind]
    shape = {
        "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 16, "vocab_size": 4096, "max_position_embeddings": LONGEST, "initializer_range": 0.2,
        "bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0,
    }  # fmt: skip
    return causal(config(**shape | more)).eval()


@pytest.fixture(scope="module")
def questions() -> list[Question]:
    """Letters after a question with its options, whole answers of very different lengths, and what is awkward
    to cut.
    """
    rng, words = random.Random(1), " ".join(skills.corpus(300, "", lambda _, answer: answer)).split()

    def text(fewest: int, most: int) -> str:
        start = rng.randrange(len(words) - most)
        return " ".join(words[start : start + rng.randint(fewest, most)])

    def letters(count: int) -> Question:
        options = "\n".join(f"{letter}. {text(1, 6)}" for letter in "ABCDE"[:count])
        return f"This is a history question.\n\nQuestion: {text(5, 30)}\n{options}\n\nAnswer:", [
            f" {letter}" for letter in "ABCDE"[:count]
        ]

    return [
        *(letters(rng.choice([4, 5])) for _ in range(100)),
        *((f"سؤال: {text(2, 40)}\nجواب:", [f" {text(1, 25)}" for _ in range(4)]) for _ in range(100)),
        ("سؤال: ما عاصمة مصر؟ ", ["القاهرة", "دمشق"]),
        ("<|im_start|>user\nأي حرف؟<|im_end|>\n<|im_start|>assistant\n", ["أ", "ب", "ج"]),
        (text(300, 300), [" القاهرة", f" {text(30, 30)}"]),  # too long for the model
    ]


def by_harness(model: PreTrainedModel | PeftModel, tokenizer, questions: list[Question]) -> list[float]:
    requests = [
        Instance("loglikelihood", {}, (prompt, choice), 0) for prompt, own in questions for choice in own
    ]
    return [
        logp
        for logp, _ in HFLM(pretrained=model, tokenizer=tokenizer, batch_size=8).loglikelihood(
            requests, disable_tqdm=True
        )
    ]


def logps(scores: list[list[scoring.Score]]) -> list[float]:
    return [one.logp for own in scores for one in own]


def picks(values: list[float], questions: list[Question]) -> list[int]:
    values = iter(values)
    return [int(np.argmax([next(values) for _ in own])) for _, own in questions]


@pytest.mark.parametrize(
    ("kind", "more"),
    [*((kind, {}) for kind in KINDS), ("gemma3_text", {"sliding_window": 16, "num_hidden_layers": 7})],
)
def test_choices_score_as_in_the_harness(kind, more, tokenizer, questions):
    """Also where most layers see no further back than a window, which most questions are longer than."""
    ours, theirs = model(kind, **more), by_harness(model(kind, **more), tokenizer, questions)
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
    quantised = load_base(Weights(path=str(tmp_path), dtype="float32", quantization="nf4"), tmp_path).eval()
    together = logps(scoring.choices(quantised, tokenizer, questions[::10], ""))
    alone = [
        value
        for question in questions[::10]
        for value in logps(scoring.choices(quantised, tokenizer, [question], "", tokens=1))
    ]
    assert together == pytest.approx(alone, abs=1e-3)
    assert together != pytest.approx(
        logps(scoring.choices(model("qwen3"), tokenizer, questions[::10], "")), abs=1e-1
    )


def rows(sequences: list[list[int]], tokens: int) -> list[scoring.Row]:
    """Of sequences with an answer of one token each."""
    return scoring.lay_out(
        {number: scoring.Sequence(read, [9]) for number, read in enumerate(sequences)}, tokens
    )


def test_a_row_holds_what_sequences_share_once():
    first, second = rows([[1, 2, 3], [1, 2, 4, 5], [1, 6], [7], [1, 2, 3]], 100)
    assert (first.tokens, first.positions) == ([1, 2, 3, 4, 5, 6], [0, 1, 2, 2, 3, 1])
    assert first.answers == {0: [2], 4: [2], 1: [4], 2: [5]}
    assert (second.tokens, second.answers) == ([7], {3: [0]})
    seen = [[0], [0, 1], [0, 1, 2], [0, 1, 3], [0, 1, 3, 4], [0, 5]]
    assert [np.flatnonzero(row).tolist() for row in scoring.mask(first, 6)] == seen


def test_rows_end_where_sharing_costs_more_than_it_saves():
    questions = [[1] * 20 + [kind] * 80 for kind in range(2, 30)]
    assert 1 < len(rows(questions, 4096)) < len(questions)
    assert [len(row.tokens) for row in rows(questions, 200)] == [180] * 14


def test_letters_take_one_reading_of_their_question(tokenizer):
    asked = []
    letter_model = model("qwen3")
    letter_model.get_decoder().register_forward_pre_hook(
        lambda _, __, inputs: asked.append(inputs["input_ids"].shape), with_kwargs=True
    )
    scoring.choices(letter_model, tokenizer, [("أي حرف؟\nجواب:", [" أ", " ب", " ج", " د"])], "")
    assert asked == [(1, len(tokenizer("أي حرف؟\nجواب:")["input_ids"]))]


def test_the_log_probability_of_a_given_answer(tokenizer):
    """A line end that closes the prompt stays with it; the answer's stop token counts."""
    own, prompt, answer = model("qwen2"), "<|im_start|>assistant\n", "القاهرة<|im_end|>"
    [found] = scoring.score(own, tokenizer, [(prompt, answer)], "")
    start, ids = tokenizer(prompt)["input_ids"], tokenizer(prompt + answer)["input_ids"]
    logps = own(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = sum(logps[place - 1, ids[place]].item() for place in range(len(start), len(ids)))
    assert found.logp == pytest.approx(expected, abs=1e-4)
    assert (found.tokens, found.characters) == (len(ids) - len(start), len(answer))
    assert found.per_token == found.logp / found.tokens


def test_results_come_in_order_whatever_the_batches(tokenizer, questions):
    own, some = model("qwen3"), questions[::7]
    expected = [
        value for question in some for value in logps(scoring.choices(own, tokenizer, [question], ""))
    ]
    for tokens in (1, 700, 4096):
        assert logps(scoring.choices(own, tokenizer, some, "", tokens=tokens)) == pytest.approx(
            expected, abs=2e-4
        )


def test_letters_do_not_tie_in_bfloat16(tokenizer, questions):
    """Logits rounded to 8 bits tie at the top in 4 of these 100 items."""
    found = scoring.choices(model("qwen3").bfloat16(), tokenizer, questions[:100], "")
    best = [sorted((one.logp for one in own), reverse=True) for own in found]
    assert all(first > second for first, second, *_ in best)


def test_a_batch_that_does_not_fit_is_halved(tokenizer, questions):
    own, some, tried = model("qwen3"), questions[::4], []
    expected = logps(scoring.choices(own, tokenizer, some, ""))

    def full(_, __, inputs):
        tried.append(inputs["input_ids"].numel())
        if tried[-1] > limit:
            raise torch.cuda.OutOfMemoryError

    own.get_decoder().register_forward_pre_hook(full, with_kwargs=True)
    limit = 1100
    assert logps(scoring.choices(own, tokenizer, some, "", tokens=4096)) == pytest.approx(expected, abs=2e-4)
    refused = [place for place, size in enumerate(tried) if size > limit]
    assert refused and all(max(tried[place + 1 :]) <= tried[place] / 2 for place in refused)  # it stays small
    limit = 1
    with pytest.raises(Problem, match="no memory left for"):
        scoring.choices(own, tokenizer, some, "")


def test_attention_that_takes_no_mask_of_pairs_is_put_aside(tokenizer, questions):
    own = model("qwen3")
    expected = logps(scoring.choices(own, tokenizer, questions[::10], ""))
    own.set_attn_implementation("eager")  # it would add the mask instead of obeying it
    assert logps(scoring.choices(own, tokenizer, questions[::10], "")) == pytest.approx(expected, abs=1e-4)
    assert own.config._attn_implementation == "eager"


def test_a_gpu_with_more_free_memory_takes_larger_batches(monkeypatch):
    own = SimpleNamespace(
        device=torch.device("cuda"), config=SimpleNamespace(intermediate_size=18944, hidden_size=3584)
    )
    sizes = []
    for free in (0.1, 2, 4, 80):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device, free=free: (free * 2**30, None))
        sizes.append(scoring.batch_tokens(own))
    assert sizes == [512, 2048, 4096, 16384]


@pytest.mark.parametrize(("prompt", "answer"), [("", " أ"), ("سؤال:", ""), ("سؤال:", " كلمة" * 300)])
def test_what_cannot_be_scored_is_named(tokenizer, prompt, answer):
    with pytest.raises(Problem, match="cannot score"):
        scoring.choices(model("qwen3"), tokenizer, [(prompt, [answer])], "")


def test_an_answer_that_is_tokenised_for_itself_is_no_start_of_a_text(tokenizer):
    """As llama's and gemma's tokenizers mark one."""
    from copy import deepcopy

    from tokenizers.processors import TemplateProcessing

    marking = deepcopy(tokenizer)
    bos = marking.convert_ids_to_tokens(0)
    marking.backend_tokenizer.post_processor = TemplateProcessing(
        single=f"{bos} $A", special_tokens=[(bos, 0)]
    )
    pairs = [("السؤال:", " أ")]
    (plain,), (marked,) = (scoring.encode(one, pairs, LONGEST, apart=True) for one in (tokenizer, marking))
    assert marked.answer == plain.answer
    assert marked.read == [0, *plain.read]
