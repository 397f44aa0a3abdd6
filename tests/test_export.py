"""Exports: merged weights, GGUF files and templates that answer as the checkpoint does."""

import base64
import getpass
import hashlib
import json
import os
import re
import shutil
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import gguf
import numpy as np
import pyarrow as pa
import pytest
import torch
from bitsandbytes.functional import dequantize_4bit
from jinja2.sandbox import ImmutableSandboxedEnvironment
from peft import LoraConfig, PeftModel, get_peft_model
from pyarrow import parquet
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tokenizers.processors import TemplateProcessing
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM

from stages.model.modeling import load_base
from stages.settings import reader
from stages.settings.errors import Problem
from stages.settings.files import read_json, write_json
from stages.settings.params import Weights
from stages.text.prompts import TEMPLATES
from tests.conftest import ROOT
from tests.fake_hub import send
from tests.test_scoring import KINDS
from tests.test_scoring import model as random_of
from tools.export import __main__ as export
from tools.export import card, checks, gguf_file, importance, merge, owned, templates, vocabulary

NANO = ROOT / "models/nano"
TALKS = [
    [("user", "ما عاصمة مصر؟\n")],
    [
        ("system", 'أنت "مساعد"\\n'),
        ("user", " {{ x }} "),
        ("assistant", "القاهرة."),
        ("user", "و<b>تونس</b>؟"),
    ],
]


# --- templates ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES.values(), ids=TEMPLATES)
@pytest.mark.parametrize("system", ["", 'أجب "بإيجاز".\n'])
def test_the_chat_template_renders_what_training_saw(template, system):
    # As transformers, and vLLM with it, sets up Jinja.
    chat = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True).from_string(
        templates.jinja(template, system)
    )
    for talk in TALKS:
        messages = [{"role": role, "content": content} for role, content in talk]
        rendered = template.render(messages, system)
        assert chat.render(messages=messages, add_generation_prompt=True) == rendered
        assert chat.render(messages=messages) + template.assistant == rendered


def test_the_modelfile_says_the_same_in_the_language_of_ollama():
    text = templates.modelfile(TEMPLATES["chatml"], "أجب بإيجاز.", "dpo-q8_0.gguf", 1024)
    assert text.splitlines()[0] == "FROM ./dpo-q8_0.gguf"
    assert (
        '{{- if eq .Role "system" -}}{{- "<|im_start|>system\\n" }}{{ .Content }}{{ "<|im_end|>\\n" -}}'
        in text
    )
    assert text.count("PARAMETER stop") == 2
    assert text.endswith('SYSTEM """أجب بإيجاز."""\n')


# --- merging ------------------------------------------------------------------------------------------------


def weights(quantization: str = "none", dtype: str = "float32") -> Weights:
    return Weights(path=str(NANO), quantization=quantization, dtype=dtype)


def adapter(folder: Path, **settings) -> Path:
    """A random adapter on nano that changes what it says."""
    torch.manual_seed(3)
    model = get_peft_model(
        load_base(weights(), NANO), LoraConfig(r=8, lora_alpha=16, target_modules="all-linear", **settings)
    )
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    model.save_pretrained(folder)
    return folder


def exported(weights: Weights, lora: Path | None, folder: Path) -> Path:
    """What an export holds that a model is loaded from."""
    folder.mkdir()
    merge.merge(weights, NANO, lora, folder)
    shutil.copy(NANO / "tokenizer.json", folder)
    shutil.copy(NANO / "tokenizer_config.json", folder)
    export.describe(folder, read_json(NANO / "config.json"), weights.dtype, [2, 0], 0)
    return folder


def logits(model: torch.nn.Module) -> torch.Tensor:
    ids = torch.tensor(
        [AutoTokenizer.from_pretrained(NANO)("<|im_start|>user\nما جمع كلمة كتاب؟<|im_end|>\n")["input_ids"]]
    )
    with torch.inference_mode():
        return model(input_ids=ids).logits[0].float()


def divergence(expected: torch.Tensor, other: torch.Tensor) -> float:
    before, after = expected.log_softmax(-1), other.log_softmax(-1)
    return (before.exp() * (before - after)).sum(-1).mean().item()


@pytest.mark.parametrize(
    "settings", [{}, {"use_rslora": True}, {"use_dora": True}], ids=["lora", "rslora", "dora"]
)
def test_a_merged_adapter_answers_like_the_adapter(tmp_path, settings):
    lora = adapter(tmp_path / "adapter", **settings)
    expected = logits(PeftModel.from_pretrained(load_base(weights(), NANO), lora).eval())
    assert divergence(expected, logits(load_base(weights(), NANO))) > 0.1  # it does change the base
    merged, _ = checks.load(exported(weights(), lora, tmp_path / "merged"))
    assert torch.allclose(logits(merged), expected, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_names_and_class_are_those_that_every_loader_knows(tmp_path, kind):
    """Also of a base that was saved without its head and with more than the model has. vLLM takes the class
    from config.json and refuses weights whose names it does not know.
    """
    own, base = random_of(kind, tie_word_embeddings=True), tmp_path / "base"
    own.model.save_pretrained(base)
    config, held = read_json(base / "config.json"), load_file(base / "model.safetensors")
    assert config["architectures"] != [type(own).__name__] and "embed_tokens.weight" in held
    save_file(held | {"layers.0.rotary_emb.inv_freq": torch.ones(8)}, base / "model.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    merge.merge(Weights(path=str(base), quantization="none", dtype="float32"), base, None, out)
    export.describe(out, config, "float32", [0], 0)
    assert read_json(out / "config.json")["architectures"] == [type(own).__name__]
    assert load_file(out / "model.safetensors").keys() == dict(own.named_parameters()).keys()
    back = AutoModelForCausalLM.from_pretrained(out)
    ids = torch.arange(5, 25)[None]
    assert torch.equal(back(ids).logits, own(ids).logits)


def test_an_adapter_on_4_bits_merges_into_what_the_4_bits_stand_for(tmp_path):
    lora = adapter(tmp_path / "adapter")
    four_bits = weights("nf4", "bfloat16")
    base = load_base(four_bits, NANO)
    held = base.model.layers[1].mlp.down_proj.weight
    with safe_open(NANO / "model.safetensors", framework="pt") as file:
        original = file.get_tensor("model.layers.1.mlp.down_proj.weight")
    assert torch.equal(
        merge.through_nf4(original, torch.bfloat16), dequantize_4bit(held.data, held.quant_state)
    )
    expected = logits(PeftModel.from_pretrained(base, lora).eval())
    right, _ = checks.load(exported(four_bits, lora, tmp_path / "right"))
    wrong, _ = checks.load(exported(weights("none", "bfloat16"), lora, tmp_path / "wrong"))
    assert divergence(expected, logits(right)) < checks.LIMIT < divergence(expected, logits(wrong))


# --- GGUF ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def qwen2(tmp_path_factory) -> Path:
    """A random model in the layout of Qwen2.5-7B: biases, a head of its own, rows that are multiples of 256,
    in two shards.
    """
    folder = tmp_path_factory.mktemp("qwen2")
    shape = {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    torch.manual_seed(0)
    config = Qwen2Config(
        **shape,
        vocab_size=4100,
        max_position_embeddings=512,
        initializer_range=0.08,
        tie_word_embeddings=False,
    )
    model = Qwen2ForCausalLM(config)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.1)
    model.to(torch.bfloat16).save_pretrained(folder, max_shard_size="6MB")
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    tokenizer.eos_token, tokenizer.chat_template = "<|im_end|>", templates.jinja(TEMPLATES["chatml"], "")
    tokenizer.save_pretrained(folder)
    write_json(folder / "generation_config.json", {"eos_token_id": [2, 0], "pad_token_id": 0})
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def test_llama_cpp_and_transformers_read_the_file_as_the_model_it_was(qwen2, tmp_path):
    gguf_file.write(qwen2, tmp_path / "model.gguf", "f16")
    original, tokenizer = checks.load(qwen2)
    prompts = [
        TEMPLATES["chatml"].render([{"role": "user", "content": text}])
        for text in ("ما عاصمة مصر؟", "عدّد 3 مدن: a, b.\n\n  نعم")
    ]
    expected = checks.record(original.float(), tokenizer, prompts, [2, 0], 8)
    assert checks.check_gguf(tmp_path / "model.gguf", expected, [2, 0], 8) == {
        "prompts": 2,
        "same_answers": 2,
    }
    other = replace(expected, logps=[logps.roll(1, dims=-1) for logps in expected.logps])
    with pytest.raises(Problem, match="another probability than the checkpoint does"):
        checks.check_gguf(tmp_path / "model.gguf", other, [2, 0], 8)
    back = AutoModelForCausalLM.from_pretrained(tmp_path, gguf_file="model.gguf", dtype=torch.float32).eval()
    assert torch.allclose(logits(back), logits(original), atol=0.02)


def test_answers_of_tokens_that_are_parts_of_letters_are_counted_as_they_are(qwen2, tmp_path):
    """llama.cpp gives no probability of such a token; a random model writes many."""
    gguf_file.write(qwen2, tmp_path / "model.gguf", "f16")
    model, tokenizer = checks.load(qwen2)
    prompts = [TEMPLATES["chatml"].render([{"role": "user", "content": f"عدّد {i} مدن"}]) for i in range(32)]
    expected = checks.record(model.float(), tokenizer, prompts, [2, 0], 4)
    parts = [any("\ufffd" in tokenizer.decode([token]) for token in answer) for answer in expected.answers]
    best = [logps.topk(2).values for logps in expected.logps]
    ties = [bool((two[:, 0] - two[:, 1]).min() < 0.01) for two in best]  # which rounding may decide
    assert any(part and not tie for part, tie in zip(parts, ties))
    same = checks.check_gguf(tmp_path / "model.gguf", expected, [2, 0], 4)["same_answers"]
    assert same >= 32 - sum(ties)


def test_the_first_probability_is_compared_after_the_same_tokens_alone():
    logps = torch.tensor([[-1.0, -2.0, -3.0], [-4.0, -5.0, -6.0]])
    scored = [{"id": 2, "logprob": -6.5}]  # of the second token: the first is a part of a letter
    assert checks.first_gap(scored, [1, 2], (1, 0), logps) == [0.5]
    assert checks.first_gap(scored, [1, 2], (0, 2), logps) == []
    assert checks.first_gap(scored, [], (), logps) == [3.5]  # a stop token, which is all of the answer
    assert checks.first_gap([], [1], (1,), logps) == []


@pytest.mark.parametrize(
    "kind, bits, error",
    [("q8_0", 9.0, 0.01), ("q6_k", 7.2, 0.03), ("q5_k_m", 6.4, 0.05), ("q4_k_m", 5.6, 0.1)],
)
def test_rounded_weights_are_close_to_the_models(qwen2, tmp_path, kind, bits, error):
    gguf_file.write(qwen2, tmp_path / "model.gguf", kind)
    read = {tensor.name: tensor for tensor in gguf.GGUFReader(tmp_path / "model.gguf").tensors}
    model = checks.load(qwen2)[0].float()
    assert (tmp_path / "model.gguf").stat().st_size * 8 / sum(
        parameter.numel() for parameter in model.parameters()
    ) < bits
    for name, parameter in (("blk.1.attn_v.weight", model.model.layers[1].self_attn.v_proj.weight),
                            ("blk.3.ffn_down.weight", model.model.layers[3].mlp.down_proj.weight),
                            ("token_embd.weight", model.model.embed_tokens.weight),
                            ("output.weight", model.lm_head.weight)):  # fmt: skip
        original, kept = parameter.detach().numpy(), read[name]
        rounded = gguf.quants.dequantize(kept.data, kept.tensor_type)
        assert np.linalg.norm(rounded - original) / np.linalg.norm(original) < error
        if kind == "q8_0":  # the one kind that the gguf package can write by itself
            assert np.array_equal(kept.data, gguf.quants.quantize(original, kept.tensor_type))


def test_which_tensors_get_more_bits():
    """Those that llama-quantize gave them in a file of this shape."""
    sensitive = [layer for layer in range(28) if gguf_file.is_sensitive(f"blk.{layer}.attn_v.weight", 28)]
    assert sensitive == [0, 1, 2, 5, 8, 11, 14, 17, 20, 23, 24, 25, 26, 27]
    kinds = [gguf_file.type_of(*of).name for of in (
        ("token_embd.weight", (4096, 2048), "q4_k_m", 28, True),
        ("token_embd.weight", (4096, 2048), "q4_k_m", 28, False),
        ("output.weight", (4096, 2048), "q4_k_m", 28, False),
        ("blk.0.ffn_down.weight", (2048, 448), "q4_k_m", 28, False),
        ("blk.3.ffn_down.weight", (2048, 448), "q4_k_m", 28, False),
        ("blk.0.attn_q.bias", (2048,), "q4_k_m", 28, False),
        ("blk.0.attn_q.weight", (64, 40), "q8_0", 28, False),
        ("blk.0.attn_q.weight", (64, 64), "f16", 28, False),
    )]  # fmt: skip
    assert kinds == ["Q6_K", "Q4_K", "Q6_K", "Q8_0", "Q5_0", "F32", "F16", "F16"]


LLAMA3 = {
    "rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
    "high_freq_factor": 4.0, "original_max_position_embeddings": 64,
}  # fmt: skip
LINEAR = {
    "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e6},
    "sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
}
GEMMA3 = {"query_pre_attn_scalar": 16, "num_hidden_layers": 7, "sliding_window": 16}


def random_model(folder: Path, kind: str, **more) -> Path:
    model = random_of(kind, vocab_size=4100, max_position_embeddings=512, **more)
    model.to(torch.float32).save_pretrained(folder)
    AutoTokenizer.from_pretrained(NANO, eos_token="<|im_end|>").save_pretrained(folder)
    return folder


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("qwen3", {}), ("llama", {"tie_word_embeddings": True}), ("llama", {"rope_parameters": LLAMA3}),
        ("gemma3_text", GEMMA3), ("gemma3_text", GEMMA3 | {"rope_parameters": LINEAR}),
    ],
)  # fmt: skip
def test_llama_cpp_computes_what_every_architecture_does(tmp_path, kind, more):
    """Beyond Gemma's window and the context Llama 3 was first trained on: a prompt has some 90 tokens."""
    folder = random_model(tmp_path, kind, **more)
    gguf_file.check(folder)
    gguf_file.write(folder, tmp_path / "model.gguf", "f16")
    model, tokenizer = checks.load(folder)
    texts = ("ما عاصمة مصر؟", "كتاب " * 80, "عدّد 3 مدن: a, b.\n\n  نعم")
    prompts = [TEMPLATES["chatml"].render([{"role": "user", "content": text}]) for text in texts]
    expected = checks.record(model.float(), tokenizer, prompts, [2, 0], 8)
    best = [logps.topk(2).values for logps in expected.logps]
    ties = sum(bool((two[:, 0] - two[:, 1]).min() < 0.01) for two in best)  # which rounding may decide
    found = checks.check_gguf(tmp_path / "model.gguf", expected, [2, 0], 8)
    assert found["same_answers"] >= 3 - ties > 0


@pytest.mark.parametrize(
    ("kind", "more", "says"),
    [
        ("llama", {"attention_bias": True}, "the model has attention_bias"),
        ("llama", {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}}, "dynamic"),
        ("gemma3_text", GEMMA3 | {"query_pre_attn_scalar": 256}, "query_pre_attn_scalar 256"),
        ("gemma3_text", GEMMA3 | {"layer_types": ["full_attention"] * 7}, "layer_types other than"),
    ],
)
def test_what_llama_cpp_computes_otherwise_is_refused(tmp_path, kind, more, says):
    with pytest.raises(Problem, match=f"{says}.*: export without --gguf"):
        gguf_file.check(random_model(tmp_path, kind, **more))


def test_a_tokenizer_that_llama_cpp_cuts_otherwise_is_refused(tmp_path):
    """A file of an older version, as Qwen2.5's, lacks some keys and is read all the same."""
    backend = read_json(NANO / "tokenizer.json")
    older = backend | {"model": {key: backend["model"][key] for key in ("type", "vocab", "merges")}}
    assert vocabulary.kind_of(older) == ("gpt2", "qwen2")
    for change in ({"normalizer": {"type": "Lowercase"}}, {"pre_tokenizer": {"type": "Whitespace"}}):
        with pytest.raises(Problem, match="its tokenizer is none"):
            vocabulary.kind_of(older | change)
    folder = random_model(tmp_path, "qwen3")
    text = (folder / "tokenizer.json").read_text(encoding="utf-8")
    (folder / "tokenizer.json").write_text(text.replace("\\\\p{N}", "\\\\p{N}{1,2}"), encoding="utf-8")
    with pytest.raises(Problem, match=r"its tokenizer is none that llama\.cpp is known to read alike"):
        gguf_file.check(folder)


def test_an_unknown_architecture_is_refused_before_any_work(inside, monkeypatch):
    """Its config alone tells: answering and merging take minutes."""
    monkeypatch.setattr(gguf_file, "read_json", lambda path: {"model_type": "qwen3_5"})
    export.check(Path("models/sft"), Path("exports/sft"), None, reader.read())
    with pytest.raises(Problem, match="model_type is qwen3_5: a GGUF can be written of qwen2, qwen3"):
        export.check(Path("models/sft"), Path("exports/sft"), "f16", reader.read())


def test_columns_that_matter_are_rounded_better(qwen2, tmp_path, monkeypatch):
    """The inputs of a layer are large in few columns: there the weights come out nearer to what they were."""
    rows = [[(7 * i + 13 * j) % 4000 + 5 for j in range(40)] for i in range(200)]
    parquet.write_table(pa.table({"input_ids": rows}), tmp_path / "train.parquet")
    monkeypatch.setattr(importance, "DATA", tmp_path / "train.parquet")
    matrix, name = importance.measure(qwen2), "model.layers.1.mlp.down_proj"
    assert (matrix.rows, len(matrix.columns)) == (100, 4 * 7)
    (original,) = [file.get_tensor(f"{name}.weight").float().numpy() for file in shards(qwen2, name)]
    errors = []
    for weighed in (None, matrix):
        gguf_file.write(qwen2, tmp_path / "model.gguf", "q4_k_m", weighed)
        read = gguf.GGUFReader(tmp_path / "model.gguf")
        kept = next(tensor for tensor in read.tensors if tensor.name == "blk.1.ffn_down.weight")
        rounded = gguf.quants.dequantize(kept.data, kept.tensor_type)
        errors.append(float(((rounded - original) ** 2 * matrix.columns[name]).sum()))
    assert errors[1] < errors[0]
    assert read.fields["quantize.imatrix.chunks_count"].contents() == 100


def shards(folder: Path, name: str) -> Iterator:
    """The files of a model that hold a layer's weights."""
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            if f"{name}.weight" in file.keys():  # noqa: SIM118 (it is no dict)
                yield file


@pytest.mark.parametrize("adds", [True, False])
@pytest.mark.parametrize("name", ["chatml", "arabic"])
@pytest.mark.parametrize("system", ["", "أجب بإيجاز."])
def test_a_text_begins_by_the_chat_template_as_it_did_in_training(adds, name, system):
    tokenizer, template = AutoTokenizer.from_pretrained(NANO), TEMPLATES[name]
    if adds:
        tokenizer.bos_token = "<|im_start|>"
        first = [("<|im_start|>", tokenizer.bos_token_id)]
        tokenizer.backend_tokenizer.post_processor = TemplateProcessing("<|im_start|> $A", None, first)
    assert checks.begins(tokenizer) == adds
    tokenizer.chat_template = templates.jinja(template, system, adds)
    checks.check_template(tokenizer, template, system)
    if adds:
        tokenizer.chat_template = templates.jinja(template, system)
        with pytest.raises(
            Problem, match=r"makes other tokens of a conversation than training saw, from . on"
        ):
            checks.check_template(tokenizer, template, system)


# --- the whole ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def export_of_sft(workspace) -> Path:
    result = workspace.run("python", "-m", "tools.export", "models/sft", "--gguf", "q8_0")
    merged, rounded = map(int, re.findall(r"(\d+) of 15 greedy answers are the checkpoint's", result.stdout))
    assert merged == 15 and rounded >= 13, result.stdout
    assert result.stderr == ""
    return workspace.path / "exports/sft"


def test_an_export_runs_with_nothing_but_its_folder(export_of_sft):
    model, tokenizer = checks.load(export_of_sft)
    named = read_json(export_of_sft / "tokenizer_config.json")["tokenizer_class"]
    assert named == "PreTrainedTokenizerFast"  # which transformers 4 knows, too
    assert model.generation_config.eos_token_id == [2, 0]
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "ما جمع كتاب؟"}], add_generation_prompt=True, tokenize=False
    )
    assert prompt == "<|im_start|>user\nما جمع كتاب؟<|im_end|>\n<|im_start|>assistant\n"
    assert {path.suffix for path in export_of_sft.iterdir()} == {
        ".json",
        ".safetensors",
        ".jinja",
        ".gguf",
        ".md",
        "",
    }


def test_an_export_tells_what_it_is_and_nothing_of_the_machine(export_of_sft, workspace):
    card = (export_of_sft / "README.md").read_text(encoding="utf-8")
    kept = read_json(workspace.path / "data/reports/instructions.json")["train"]
    for expected in (
        "language:\n- ar",
        "vllm serve sft",
        "generated by the project, Apache-2.0",
        "sha256 `",
        '<div dir="rtl">',
        "Not measured",
        "commit of the project: not committed",
        "learning_rate: 0.002",
        f"| instructions | skills |  | 330 | {kept} |",
        "vLLM (not run here)",
    ):
        assert expected in card
    private = {
        str(workspace.path),
        str(Path.home()),
        str(ROOT),
        socket.gethostname(),
        f"/{getpass.getuser()}/",
    }
    for path in export_of_sft.iterdir():
        content = path.read_bytes()
        assert not [word for word in private if len(word) > 4 and word.encode() in content], path


def test_the_example_of_the_card_answers_as_it_says(export_of_sft):
    card = (export_of_sft / "README.md").read_text(encoding="utf-8")
    program, answer = (re.search(rf"```{kind}\n(.*?)```", card, re.S)[1] for kind in ("python", "text"))
    result = subprocess.run(
        [sys.executable, "-c", program], cwd=export_of_sft.parent, capture_output=True, encoding="utf-8",
        env=os.environ | {"PYTHONIOENCODING": "utf-8"},
    )  # fmt: skip
    assert result.stdout == answer, result.stderr


def test_the_card_names_each_step_by_its_method(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name, method in (("sft", None), ("dpo", "kto"), ("refine-ipo", "ipo")):
        folder = Path("models", name)
        folder.mkdir(parents=True)
        before = [{"checkpoint": f"models/{one}"} for one in ("sft", "dpo") if name == "refine-ipo"]
        write_json(folder / "provenance.json", {"chain": before} | ({"method": method} if method else {}))
    assert export.named(Path("models/dpo")) == "kto"
    last = Path("models/refine-ipo")
    passed = card.steps(last, read_json(last / "provenance.json"))
    said = card.summary(last, passed, {"model": "nano"})
    assert said == "nano for Arabic: supervised fine-tuning and then `kto`, then `ipo` (the whole model).\n"
    shutil.rmtree("models/dpo")
    lost = card.steps(last, read_json(last / "provenance.json"))
    assert "step 2: its settings are not known, for its checkpoint is no longer there" in card.training(
        {"sft": {"params": {}, "step": 1}, "dpo": lost["dpo"]}
    )


def test_the_card_names_the_commit_whose_lock_names_the_checkpoint(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("models/sft")
    folder.mkdir(parents=True)
    (folder / "model.safetensors").write_text("weights", encoding="utf-8")
    assert card.commit_of(folder) is None  # no repository
    for command in ("init -q", "config user.email a@b.c", "config user.name a"):
        subprocess.run(["git", *command.split()], check=True)
    md5 = hashlib.md5(b"weights").hexdigest()
    listed = f'[{{"md5": "{md5}", "relpath": "model.safetensors"}}]'
    commits = []
    for lock in (hashlib.md5(listed.encode()).hexdigest() + ".dir", "another run since"):
        Path("dvc.lock").write_text(lock, encoding="utf-8")
        subprocess.run("git add dvc.lock && git commit -qm run", shell=True, check=True)
        commits.append(subprocess.check_output(["git", "rev-parse", "HEAD"], text=True).strip())
    assert card.commit_of(folder) == commits[0]
    (folder / "model.safetensors").write_text("others", encoding="utf-8")
    assert card.commit_of(folder) is None


def test_what_cannot_be_exported_is_refused_in_one_line(inside):
    settings = reader.read()
    with pytest.raises(Problem, match=r"models/none is no trained checkpoint; there is models/sft"):
        export.check(Path("models/none"), Path("exports/none"), None, settings)
    other = settings.model_copy(update={"prompt": settings.prompt.model_copy(update={"template": "arabic"})})
    with pytest.raises(
        Problem, match=r"models/sft was trained with the chatml template as it was then, but params.yaml says"
    ):
        export.check(Path("models/sft"), Path("exports/sft"), None, other)
    for place in ("models", "models/sft", "models/../models/new", ".", "..", "/"):
        with pytest.raises(Problem, match="is where the project itself has its files"):
            export.check(Path("models/sft"), Path(place), None, settings)


def test_an_export_takes_the_place_of_its_own_files_alone(tmp_path):
    out = tmp_path / "model"
    owned.require_own(out)
    out.mkdir()
    owned.require_own(out)
    for name in ("config.json", "chat_template.jinja", "sub/weights.bin"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text(name, encoding="utf-8")
    with pytest.raises(Problem, match="holds something else than an export"):
        owned.require_own(out)  # a model that somebody keeps there
    owned.mark(out)
    owned.require_own(out)
    (out / "notes.md").write_text("mine", encoding="utf-8")
    with pytest.raises(Problem, match=r"holds notes\.md, which no export wrote"):
        owned.require_own(out)
    (out / "notes.md").unlink()
    (out / "sub/weights.bin").write_text("better", encoding="utf-8")
    with pytest.raises(Problem, match=r"sub/weights\.bin was changed since it was exported"):
        owned.require_own(out)
    (out / "sub/weights.bin").unlink()  # what is no longer there cannot be lost
    owned.require_own(out)
    file = tmp_path / "file"
    file.write_text("x", encoding="utf-8")
    with pytest.raises(Problem, match="holds something else"):
        owned.require_own(file)


@pytest.mark.parametrize("text", ["", "{", "[]", "{}", '{"files": []}', "\ufeff\x00"])
def test_a_folder_that_only_looks_like_an_export_is_left_alone(tmp_path, text):
    (tmp_path / owned.MARK).write_text(text, encoding="utf-8")
    for asked in (owned.require_own, owned.require_untouched):
        with pytest.raises(Problem, match=r"export\.json is not as an export writes it"):
            asked(tmp_path)
    assert (tmp_path / owned.MARK).read_text(encoding="utf-8") == text


def test_a_merge_that_answers_differently_is_not_written(inside, tmp_path):
    settings = reader.read()
    model = load_base(settings.chosen_model.weights)
    tokenizer = AutoTokenizer.from_pretrained(NANO)
    expected = checks.record(
        model, tokenizer, export.held_out(), [2, 0], 8
    )  # the base's answers, not those of sft
    other = exported(weights(), Path("models/sft"), tmp_path / "merged")
    with pytest.raises(Problem, match="nats per token from the checkpoint, more than rounding explains"):
        checks.check_merged(other, expected, 8)


# --- uploading ----------------------------------------------------------------------------------------------


class TakingHub:
    """A hub that takes commits: what was posted where. `private`: of the one repository it has."""

    def __init__(self):
        self.received, self.private = {}, True
        hub = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                send(self, 200, json.dumps({"id": "me/model", "private": hub.private}).encode())

            def do_POST(self):
                body = self.rfile.read(int(self.headers["Content-Length"]))
                hub.received[self.path] = body
                allowed = self.headers["Authorization"] == "Bearer hf_right"
                here = f"{hub.url}/me/model"
                answer = {"url": here, "commitUrl": f"{here}/commit/1", "commitOid": "1"}
                if "/preupload/" in self.path:
                    answer["files"] = [
                        {**file, "uploadMode": "regular", "shouldIgnore": False}
                        for file in json.loads(body)["files"]
                    ]
                made = "/repos/create" in self.path and not hub.private
                status = 401 if not allowed else 409 if made else 200  # 409: it is there already
                send(self, status, json.dumps(answer if allowed else {"error": "no"}).encode())

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"


@pytest.fixture
def taking_hub():
    hub = TakingHub()
    with hub.server as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()


@pytest.fixture
def finished(tmp_path) -> Path:
    """An export, as far as uploading it goes."""
    folder = tmp_path / "exported"
    folder.mkdir()
    (folder / "README.md").write_text("بطاقة", encoding="utf-8")
    owned.mark(folder)
    return folder


def exporting(*arguments: str | Path, url: str = "http://127.0.0.1:9", token: str = "hf_right"):
    """The command, with a hub at `url`."""
    environment = os.environ | {
        "HF_ENDPOINT": url,
        "HF_TOKEN": token,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    }
    command = [sys.executable, "-m", "tools.export", *arguments]
    result = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert not token or token not in result.stdout + result.stderr
    return result


@pytest.mark.parametrize("private", [True, False])
def test_a_push_uploads_a_finished_export_and_says_who_sees_it(finished, taking_hub, private):
    taking_hub.private = private
    result = exporting(finished, "--push", "me/model", url=taking_hub.url)
    seen = "private" if private else "public"
    assert f"push: 2 files, 0.0 MB, to me/model ({seen})\n" in result.stdout, result.stderr
    assert json.loads(taking_hub.received["/api/repos/create"])["visibility"] == "private"
    commit = next(body for path, body in taking_hub.received.items() if "/commit/" in path).decode()
    assert base64.b64encode("بطاقة".encode()).decode() in commit


def test_a_token_that_may_not_write_is_said(finished, taking_hub):
    result = exporting(finished, "--push", "me/model", url=taking_hub.url, token="hf_wrong")
    cure = "set HF_TOKEN to a token that may write there"
    assert result.stderr == f"error: --push me/model: refused (401): {cure}\n"


def test_a_dry_run_lists_what_would_go_and_asks_nobody(finished, taking_hub):
    before = {path: path.stat().st_mtime_ns for path in finished.iterdir()}
    result = exporting(finished, "--push", "me/model", "--dry-run", url=taking_hub.url, token="")
    listed = [line.split()[-1] for line in result.stdout.splitlines()[:-1]]
    assert listed == ["README.md", "export.json"], result.stderr
    assert result.stdout.endswith("push: me/model would get 2 files, 0.0 MB; nothing was sent\n")
    assert taking_hub.received == {}
    assert {path: path.stat().st_mtime_ns for path in finished.iterdir()} == before


def test_what_cannot_be_pushed_is_refused_before_any_work(finished):
    """Before the checkpoint is looked for, even."""
    wrong = {"me/a/b": "must be in the form", "me/نموذج": "must use alphanumeric", "model": "Give OWNER/NAME"}
    for repo, why in wrong.items():
        result = exporting("models/none", "--push", repo)
        assert result.returncode == 1 and why in result.stderr and result.stderr.count("\n") == 1
    assert (
        "set HF_TOKEN to a token that may write"
        in exporting("models/none", "--push", "me/x", token="").stderr
    )
    assert "is an export: --push OWNER/NAME uploads it" in exporting(finished).stderr
    assert "leave --gguf, --out out" in exporting(finished, "--gguf", "f16", "--push", "me/x").stderr
    assert "--dry-run goes with" in exporting("models/none", "--push", "me/x", "--dry-run").stderr


def test_an_export_that_was_touched_is_not_pushed(finished):
    owned.require_untouched(finished)
    (finished / "notes.md").write_text("mine", encoding="utf-8")
    with pytest.raises(Problem, match=r"notes\.md was added since it was exported: export it again"):
        owned.require_untouched(finished)
    (finished / "notes.md").unlink()
    (finished / "README.md").write_text("other", encoding="utf-8")
    with pytest.raises(Problem, match=r"README\.md was changed since"):
        owned.require_untouched(finished)
    (finished / "README.md").unlink()
    with pytest.raises(Problem, match=r"README\.md was removed since"):
        owned.require_untouched(finished)
    (finished / owned.MARK).unlink()
    with pytest.raises(Problem, match=r"is no export: `python -m tools.export models/…` makes one"):
        owned.require_untouched(finished)
