"""The engine vllm, beside a stand-in with the signatures of vLLM 0.11 and later; vLLM itself was not run."""

import json
import sys
from dataclasses import dataclass
from types import ModuleType, SimpleNamespace
from typing import ClassVar

import pytest
import torch

from stages.model import vllm_engine
from stages.model.generation import Sampling, Wanted
from stages.settings.errors import Problem
from stages.settings.reader import read

STOP = 2
SETTINGS = Sampling(count=2, temperature=0.8, top_p=0.9, limit=5, seed=7)


@dataclass
class SamplingParams:
    """Those that are given, of vllm/sampling_params.py."""

    temperature: float = 1.0
    top_p: float = 1.0
    max_tokens: int | None = 16
    seed: int | None = None
    stop_token_ids: list[int] | None = None
    ignore_eos: bool = False
    detokenize: bool = True


@dataclass
class LoRARequest:
    """vllm/lora/request.py"""

    lora_name: str
    lora_int_id: int
    lora_path: str = ""


class LLM:
    """vllm/entrypoints/llm.py; it says how it was made and asked."""

    made: ClassVar[list["LLM"]] = []

    def __init__(
        self, model, *, skip_tokenizer_init=False, dtype="auto", max_model_len=None, enable_lora=False,
        max_lora_rank=16,
    ):  # fmt: skip
        self.how, self.asked = dict(locals()), []
        self.made.append(self)

    def generate(self, prompts, sampling_params=None, *, use_tqdm=True, lora_request=None):
        assert len(prompts) == len(sampling_params)
        ids = [prompt["prompt_token_ids"] for prompt in prompts]
        self.asked += [(*one, lora_request) for one in zip(ids, sampling_params)]
        ends = [([10, 11], "stop", STOP), ([10, STOP], "stop", STOP), ([10] * 5, "length", None)]
        return [
            SimpleNamespace(outputs=[SimpleNamespace(token_ids=ids, finish_reason=why, stop_reason=stop)])
            for ids, why, stop in (ends[i % 3] for i in range(len(prompts)))
        ]


@pytest.fixture
def vllm(monkeypatch):
    package, lora, request = (ModuleType(name) for name in ("vllm", "vllm.lora", "vllm.lora.request"))
    package.LLM, package.SamplingParams, request.LoRARequest = LLM, SamplingParams, LoRARequest
    for module in (package, lora, request):
        monkeypatch.setitem(sys.modules, module.__name__, module)
    package.__spec__ = SimpleNamespace(name="vllm")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(vllm_engine, "compute_dtype", lambda weights: torch.bfloat16)
    monkeypatch.setattr(vllm_engine.manifest, "base_folder", lambda: "the/base")
    LLM.made = []


def wanted(folder):
    return Wanted(list(Tokenizer.ids), Tokenizer(), SETTINGS, folder)


class Tokenizer:
    ids: ClassVar = {"أ": [5, 6, 7], "ب": [8]}

    def __call__(self, texts):
        return {"input_ids": [self.ids[text] for text in texts]}

    def decode(self, tokens):
        return " ".join(map(str, tokens))


def adapter(tmp_path, **config):
    (tmp_path / "sft").mkdir()
    (tmp_path / "sft/adapter_config.json").write_text(json.dumps({"r": 24} | config))
    return tmp_path / "sft"


def test_it_is_asked_for_the_same_tokens_stops_and_seeds(vllm, tmp_path, monkeypatch):
    monkeypatch.setattr(vllm_engine, "CHUNK", 3)
    folder, asked = adapter(tmp_path), wanted(tmp_path / "kept")
    vllm_engine.require(folder)
    vllm_engine.sample(read().chosen_model.weights, folder, asked, [STOP, 0])
    (engine,) = LLM.made
    assert engine.how | {"self": None} == {
        "self": None, "model": "the/base", "skip_tokenizer_init": True, "dtype": "bfloat16",
        "max_model_len": 8, "enable_lora": True, "max_lora_rank": 32,
    }  # fmt: skip
    assert [ids for ids, _, _ in engine.asked] == [[5, 6, 7], [5, 6, 7], [8], [8]]
    assert [how.seed for _, how, _ in engine.asked] == asked.seeds
    assert len(set(asked.seeds)) == 4
    first = engine.asked[0]
    assert first[1] == SamplingParams(0.8, 0.9, 5, asked.seeds[0], [STOP, 0], True, False)
    assert first[2] == LoRARequest("sft", 1, str(folder))
    given = asked.answers([STOP, 0])
    assert [(one.tokens, one.stopped) for own in given for one in own] == [
        ((10, 11), True), ((10,), True), ((10,) * 5, False), ((10, 11), True)
    ]  # fmt: skip
    assert len(list((tmp_path / "kept").iterdir())) == 2  # a file for each chunk
    again = wanted(tmp_path / "kept")
    assert (again.known, again.left) == (4, [])


def test_a_whole_model_is_served_without_an_adapter(vllm, tmp_path):
    folder = tmp_path / "sft"
    folder.mkdir()
    vllm_engine.sample(read().chosen_model.weights, folder, wanted(tmp_path / "kept"), [STOP])
    (engine,) = LLM.made
    assert (engine.how["model"], engine.how["enable_lora"]) == (str(folder), False)
    assert engine.asked[0][2] is None


@pytest.mark.parametrize("key", ["use_dora", "modules_to_save", "trainable_token_indices"])
def test_adapters_that_it_cannot_serve_are_refused(vllm, tmp_path, key):
    with pytest.raises(Problem, match=f"serves no adapter with {key}"):
        vllm_engine.require(adapter(tmp_path, **{key: True}))


def test_without_it_or_a_gpu_the_cure_is_named(vllm, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(Problem, match=r"needs a GPU, and .* or take sample.engine: transformers"):
        vllm_engine.require(tmp_path)
    monkeypatch.delitem(sys.modules, "vllm")
    with pytest.raises(
        Problem, match=r"not installed: pip install vllm, or take sample.engine: transformers"
    ):
        vllm_engine.require(tmp_path)
