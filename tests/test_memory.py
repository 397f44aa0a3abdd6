"""The memory plan against what it describes: real parameter counts, real storage, and the tensors alive in a
real training step.
"""

import json
import math
import re
import subprocess
import sys
from dataclasses import replace

import bitsandbytes as bnb
import pytest
import torch
from peft import get_peft_model
from torch._subclasses.fake_tensor import FakeTensorMode
from transformers import AutoModelForCausalLM
from trl.kernels import chunked_logprob
from trl.trainer import utils

from stages.base import TESTED
from stages.settings import memory, params, reader
from stages.settings.errors import Problem
from stages.settings.memory import GB, SHAPES, Run, Shape
from stages.settings.params import Lora
from tests import memory_probe
from tests.conftest import ROOT

LORA = Lora(r=16, alpha=32, dropout=0.05, targets="all-linear", rslora=False, dora=False)
QWEN2 = Shape(128, 2, 680, 4, 2, 32, 8192, tied=True, attention_bias=True, qk_norm=False)
QWEN3 = Shape(128, 2, 384, 4, 2, 64, 8192, tied=False, attention_bias=False, qk_norm=True)
LLAMA = Shape(128, 2, 512, 4, 2, 32, 8192, tied=False, attention_bias=False, qk_norm=False)
GEMMA3 = Shape(256, 2, 1024, 4, 1, 32, 8192, tied=True, attention_bias=False, qk_norm=True, norms=4, masks=2)
# Shapes in which the layers are the largest phase; for the log-probabilities the tile is made as wide as the
# vocabulary.
RUN = Run("sft", "models.m.sft", QWEN2, "none", "bfloat16", LORA, "adamw", True, 2, 1, 256)


def lora(**values) -> Lora:
    return LORA.model_copy(update={"r": 8, **values})


def kept_and_working(run: Run) -> tuple[float, float]:
    """What the plan says of a step: bytes left for the backward pass, and the peak, without weights and
    gradients.
    """
    found = memory.parts(run)
    kept = found["activations"] + found.get("16-bit copies", 0)
    return kept, kept + sum(
        found.get(name, 0)
        for name in ("backward of one layer", "log-probabilities", "gradient of the embedding")
    )


# --- what is held all the time ------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [*SHAPES.values(), QWEN2, QWEN3, LLAMA, GEMMA3])
def test_parameters_are_those_of_transformers(shape):
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(memory_probe.config_of(shape))
    assert shape.parameters == sum(parameter.numel() for parameter in model.parameters())
    assert memory.shape_from(model.config.to_dict()) == shape


@pytest.mark.parametrize("given", [{}, {"dora": True}, {"targets": ["q_proj", "down_proj"], "r": 4}])
@pytest.mark.parametrize("shape", SHAPES.values())
def test_adapter_parameters_are_those_of_peft(shape, given):
    """Of two layers: the count is linear in the layers."""
    run = replace(RUN, shape=replace(shape, layers=2), lora=lora(**given))
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(memory_probe.config_of(run.shape))
        model = get_peft_model(model, memory_probe.adapter_of(run.lora))
    assert memory.trained_parameters(run) == model.get_nb_trainable_parameters()[0]


def test_nf4_weights_are_those_of_bitsandbytes():
    layer = bnb.nn.Linear4bit(
        1024, 640, bias=False, compute_dtype=torch.bfloat16, compress_statistics=True, quant_type="nf4"
    ).to("cpu")
    state = layer.weight.quant_state
    stored = sum(
        tensor.numel() * tensor.element_size() for tensor in (layer.weight, state.absmax, state.state2.absmax)
    )
    shape = replace(QWEN2, layers=1)
    rate = (memory.weights_bytes(shape, "nf4", 2) - 2 * shape.other_parameters) / shape.linear_parameters
    assert stored == rate * 1024 * 640


@pytest.mark.parametrize(
    ("optimizer", "make"),
    [
        ("adamw", torch.optim.AdamW),
        ("adamw_8bit", bnb.optim.AdamW8bit),
        ("paged_adamw_8bit", bnb.optim.PagedAdamW8bit),
    ],
)
def test_optimiser_state_is_that_of_adamw(optimizer, make):
    weight = torch.nn.Parameter(torch.randn(64, 4096))
    weight.grad = torch.randn_like(weight)
    chosen = make([weight])
    chosen.step()
    moments = [
        value
        for key, value in chosen.state[weight].items()
        if torch.is_tensor(value) and not key.startswith("qmap") and key != "step"
    ]
    assert sum(tensor.numel() * tensor.element_size() for tensor in moments) == memory.optimizer_bytes(
        optimizer, weight.numel()
    )


# --- what a step keeps and needs ----------------------------------------------------------------------------


@pytest.fixture
def on_a_gpu(monkeypatch):
    memory_probe.as_on_a_gpu(monkeypatch)
    set_tile(monkeypatch, 64)


def set_tile(monkeypatch, width: int) -> None:
    monkeypatch.setattr(memory, "TILE", (memory.TILE[0], width))
    monkeypatch.setattr(utils, "_CHUNKED_LOGPROB_CHUNK_SIZE", width)


CASES = {
    "16 bit": {"lora": lora()},
    "16 bit, no dropout": {"lora": lora(dropout=0.0)},
    "16 bit, DoRA": {"lora": lora(dora=True)},
    "nf4": {"quantization": "nf4", "lora": lora()},
    "nf4, no dropout": {"quantization": "nf4", "lora": lora(dropout=0.0)},
    "nf4, DoRA": {"quantization": "nf4", "lora": lora(dora=True)},
    "nf4, two targets": {"quantization": "nf4", "lora": lora(targets=["q_proj", "v_proj"])},
    "fp32": {"dtype": "float32", "lora": lora(dropout=0.0)},
    "whole": {"lora": None},
    "whole, fp32": {"dtype": "float32", "lora": None},
    "pairs": {"lora": lora(), "rows": 2, "batch_size": 1, "length": 384},
}


@pytest.mark.parametrize("checkpointing", [True, False])
@pytest.mark.parametrize(
    ("case", "shape"),
    [
        *((case, QWEN2) for case in CASES),
        *((case, shape) for shape in (QWEN3, LLAMA, GEMMA3) for case in ("16 bit", "nf4", "whole")),
    ],
)
def test_a_step_keeps_and_needs_what_the_plan_says(on_a_gpu, case, shape, checkpointing):
    run = replace(RUN, shape=shape, checkpointing=checkpointing, **CASES[case])
    kept, peak = memory_probe.step(run)
    planned, working = kept_and_working(run)
    assert working == pytest.approx(peak, rel=0.1)
    # The plan counts with the log-probabilities what they keep: input of the final norm, hidden states, for a
    # trained norm its output.
    head = run.tokens * shape.hidden * (4 + run.residual + (0 if run.lora else 4))
    assert planned + head == pytest.approx(kept, rel=0.1)


@pytest.mark.parametrize("given", [{"lora": lora(dropout=0.0)}, {"lora": None, "dtype": "float32"}])
def test_the_log_probabilities_need_one_tile_and_never_the_whole_logits(on_a_gpu, monkeypatch, given):
    set_tile(monkeypatch, 8192)
    run = replace(RUN, shape=replace(QWEN2, intermediate=128, vocabulary=16384), **given)
    assert "log-probabilities" in memory.parts(run)
    _, peak = memory_probe.step(run)
    assert kept_and_working(run)[1] == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("case", ["16 bit", "nf4", "fp32"])
def test_trained_rows_of_the_vocabulary(on_a_gpu, monkeypatch, case, tied):
    set_tile(monkeypatch, 8192)
    shape = replace(QWEN2, intermediate=128, vocabulary=32768, tied=tied)
    run = replace(RUN, shape=shape, token_rows=True, **CASES[case])
    _, peak = memory_probe.step(run)
    assert kept_and_working(run)[1] == pytest.approx(peak, rel=0.1)


@pytest.mark.parametrize("tied", [True, False])
def test_a_whole_model_ends_in_the_gradient_of_its_embedding(on_a_gpu, tied):
    run = replace(
        RUN, lora=None, batch_size=1, shape=replace(QWEN2, intermediate=128, vocabulary=32768, tied=tied)
    )
    _, peak = memory_probe.step(run)
    assert ("gradient of the embedding" in memory.parts(run)) == tied
    assert kept_and_working(run)[1] == pytest.approx(peak, rel=0.1)


def test_the_tile_is_that_of_trl():
    assert memory.TILE == (chunked_logprob.TOKEN_CHUNK_SIZE, utils._CHUNKED_LOGPROB_CHUNK_SIZE)


@pytest.mark.parametrize("tile", [64, 8192])
@pytest.mark.parametrize("case", ["16 bit", "nf4", "fp32"])
@pytest.mark.parametrize("token_rows", [True, False])
def test_the_reference_pass(on_a_gpu, monkeypatch, case, tile, token_rows):
    set_tile(monkeypatch, tile)
    monkeypatch.setattr(memory, "REFERENCE_TOKENS", 512)
    run = replace(RUN, token_rows=token_rows, **CASES[case])
    assert memory.reference_bytes(run) == pytest.approx(memory_probe.no_grad_pass(run), rel=0.1)


@pytest.mark.parametrize("quantization", ["none", "nf4"])
@pytest.mark.parametrize("shape", [QWEN2, QWEN3, LLAMA, GEMMA3], ids=["qwen2", "qwen3", "llama", "gemma3"])
def test_generation(shape, quantization):
    run = replace(RUN, shape=shape, quantization=quantization, length=512)
    cache, peak = memory_probe.prefill(run)
    found = memory.inference(shape, quantization, run.dtype, run.length)
    assert found["key-value cache"] == cache
    assert cache + found["forward of one layer"] == pytest.approx(peak, rel=0.1)


OTHERS = {
    "Llama 3.2 1B": Shape(2048, 16, 8192, 32, 8, 64, 128256, True, False, False),
    "Gemma 3 270M": Shape(640, 18, 2048, 4, 1, 256, 262144, True, False, True, norms=4, masks=2),
    "Gemma 3 1B": Shape(1152, 26, 6912, 4, 1, 256, 262144, True, False, True, norms=4, masks=2),
}


def test_what_base_lets_in_is_planned():
    assert set(memory.ARCHITECTURES) == set(TESTED)


@pytest.mark.parametrize("case", ["16 bit", "16 bit, DoRA", "nf4"])
@pytest.mark.parametrize("name", [*SHAPES, *OTHERS])
def test_a_step_at_the_published_widths(monkeypatch, name, case):
    """One pair of 2,048 tokens through two layers, in tensors without values."""
    run = replace(
        RUN,
        shape=replace((SHAPES | OTHERS)[name], layers=2),
        batch_size=1,
        rows=2,
        length=2048,
        **CASES[case],
    )
    memory_probe.as_on_a_gpu(monkeypatch)
    monkeypatch.setattr(utils, "_use_triton", lambda device: False)  # which positions are trained is a value
    monkeypatch.setattr(
        torch.nn.Module, "to", lambda self, *args, **kwargs: self
    )  # PEFT's moves to where the tensors are already
    with FakeTensorMode(allow_non_fake_inputs=True):
        _, peak = memory_probe.step(run)
    assert kept_and_working(run)[1] == pytest.approx(peak, rel=0.05 if name in SHAPES else 0.1)


# --- the plan -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "sft", "dpo"),
    [("Qwen/Qwen3-1.7B-Base", 2.77, 3.33), ("Qwen/Qwen2.5-3B", 3.76, 4.45), ("Qwen/Qwen2.5-7B", 7.61, 8.66)],
)
def test_golden_sums_of_4_bit_training_at_2048_tokens(name, sft, dpo):
    run = replace(RUN, shape=SHAPES[name], quantization="nf4", batch_size=1, length=2048)
    assert memory.predicted(replace(run, packed=True)) == pytest.approx(sft, abs=0.005)
    assert memory.predicted(replace(run, rows=2, reference=True)) == pytest.approx(dpo, abs=0.005)


def test_packing_lays_a_batch_in_one_row_whose_mask_is_square():
    run = replace(RUN, batch_size=4, length=512)
    assert (run.tokens, run.mask) == (2048, 4 * 512**2)
    assert replace(run, packed=True).mask == 2048**2
    assert replace(run, rows=2).mask == 8 * 512**2


def test_the_reference_pass_counts_only_beyond_the_peak_of_training(monkeypatch):
    monkeypatch.setattr(memory, "REFERENCE_TOKENS", 4096)
    run = replace(RUN, shape=SHAPES["Qwen/Qwen2.5-3B"], batch_size=1, rows=2, reference=True)
    short, long = replace(run, length=32), replace(run, length=2048)
    before = [
        memory.weights_bytes(run.shape, "none", 2),
        memory.trained_parameters(run) * 4,
        memory.CONTEXT,
        memory.reference_bytes(short),
    ]
    assert memory.predicted(short) * GB == pytest.approx(sum(before))
    assert "reference pass" not in memory.parts(long)
    assert memory.parts(long) == memory.parts(replace(long, reference=False))


def configured(name: str, **changed) -> params.Params:
    """The default parameters with a model chosen, and keys of its sections, or of the prompt, changed:
    section__key=value.
    """
    found = reader.read(ROOT / "params.yaml")
    model, prompt = found.models[name], found.prompt
    for key, value in changed.items():
        section, last = key.split("__")
        if section == "prompt":
            prompt = prompt.model_copy(update={last: value})
        else:
            model = model.model_copy(
                update={section: getattr(model, section).model_copy(update={last: value})}
            )
    return found.model_copy(update={"model": name, "models": {**found.models, name: model}, "prompt": prompt})


@pytest.mark.parametrize(
    ("name", "wrong", "cured", "line"),
    [
        (
            "qwen2_5-7b",
            {"preference__batch_size": 8, "preference__accumulation": 2},
            {"preference__batch_size": 4, "preference__accumulation": 4},
            "models.qwen2_5-7b.preference.batch_size is 8: dpo needs 15.2 GB of 12 (hardware.vram_gb); "
            "batch_size 4 with accumulation 4 needs 10.8 GB",
        ),
        (
            "qwen2_5-3b",
            {"sft__gradient_checkpointing": False},
            {"sft__gradient_checkpointing": True},
            "models.qwen2_5-3b.sft.gradient_checkpointing is false: sft needs 12.9 GB of 12 "
            "(hardware.vram_gb); "
            "gradient_checkpointing true needs 7.3 GB",
        ),
        (
            "qwen2_5-7b",
            {"weights__quantization": "none"},
            {"weights__quantization": "nf4"},
            "models.qwen2_5-7b.weights.quantization is none: sft needs 16.2 GB of 12 (hardware.vram_gb); "
            "quantization nf4 needs 7.1 GB",
        ),
        (
            "qwen2_5-7b",
            {"prompt__max_length": 8192, "preference__batch_size": 1},
            {"prompt__max_length": 4992, "preference__batch_size": 1},
            "prompt.max_length is 8192: dpo needs 15.5 GB of 12 (hardware.vram_gb); prompt.max_length 4992 "
            "needs 11.9 GB",
        ),
    ],
)
def test_what_does_not_fit_is_one_line_with_a_cure_that_fits(name, wrong, cured, line):
    with pytest.raises(Problem) as caught:
        memory.check(configured(name, **wrong))
    assert str(caught.value) == f"params.yaml: {line}"
    memory.check(configured(name, **wrong | cured))


def test_every_configured_model_fits_as_it_is():
    for name in reader.read(ROOT / "params.yaml").models:
        memory.check(configured(name))
        assert len(memory.runs(configured(name))) == 2


def test_a_model_that_no_setting_makes_fit():
    with pytest.raises(
        Problem, match=r"sft needs .* GB of 12 .*: choose a smaller `model`, or give sft.lora$"
    ):
        memory.check(configured("qwen2_5-3b", sft__lora=None))


def test_advice_after_an_error_at_run_time_goes_below_what_was_predicted():
    line = memory.advice(configured("qwen2_5-7b"), "dpo")
    assert line == (
        "models.qwen2_5-7b.preference.batch_size is 2: dpo ran out of GPU memory; 8.6 GB were predicted; "
        "batch_size 1 with accumulation 16 needs 7.6 GB"
    )


def test_the_smallest_batch_of_a_method_is_kept():
    run = memory.run_of(
        configured("qwen2_5-7b", preference__batch_size=16, preference__accumulation=1),
        "qwen2_5-7b",
        "dpo",
        "dno",
    )
    assert {candidate.batch_size for candidate in memory.candidates(run)} == {16, 8, 4}
    assert {candidate.batch_size * candidate.accumulation for candidate in memory.candidates(run)} == {16}


def test_every_stage_checks_the_plan_at_its_start(tmp_path):
    text = (
        (ROOT / "params.yaml")
        .read_text(encoding="utf-8")
        .replace("model: nano", "model: qwen2_5-7b")
        .replace("data: demo", "data: cidar")
        .replace("vram_gb: 12", "vram_gb: 6")
    )
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(Problem, match=r"^params.yaml: .* needs 7\.1 GB of 6 \(hardware.vram_gb\)"):
        reader.read(tmp_path / "params.yaml")


def test_an_unknown_shape_is_not_planned_until_it_is_fetched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    asked = params.Weights(repo="me/mine", revision="main", quantization="none", dtype="bfloat16")
    assert memory.shape_of(asked) is None
    assert memory.unplanned(asked) == "not planned before its config.json is there (me/mine)"
    config = tmp_path / "models--me--mine/snapshots/0a1b/config.json"
    config.parent.mkdir(parents=True)
    config.write_text(memory_probe.config_of(QWEN3).to_json_string(use_diff=False), encoding="utf-8")
    manifest = {
        "model": "mine",
        "repo": "me/mine",
        "commit": "0a1b",
        "files": {"config.json": {"size": config.stat().st_size}},
    }
    (tmp_path / "models").mkdir()
    (tmp_path / "models/base.json").write_text(json.dumps(manifest), encoding="utf-8")
    assert memory.shape_of(asked) == QWEN3
    assert memory.shape_of(asked.model_copy(update={"repo": "me/other"})) is None
    assert memory.unplanned(asked) == ""
    config.write_text("{}", encoding="utf-8")  # not the file that was fetched
    assert memory.shape_of(asked) is None


def test_the_shape_of_a_local_model(tmp_path):
    asked = params.Weights(path=str(tmp_path), quantization="none", dtype="bfloat16")
    assert memory.shape_of(asked) is None
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mixtral"}), encoding="utf-8")
    assert memory.shape_of(asked) is None
    assert memory.unplanned(asked).startswith(
        "not planned: its architecture is mixtral, and the plan knows qwen2"
    )
    nano = reader.read(ROOT / "params.yaml").models["nano"].weights
    assert memory.shape_of(nano.model_copy(update={"path": str(ROOT / nano.path)})).parameters == 2_263_104


def test_the_plan_imports_no_library_of_models():
    heavy = "{'torch', 'transformers', 'peft', 'trl', 'bitsandbytes', 'huggingface_hub'}"
    code = (
        f"import sys; from stages.settings.reader import read; read(); assert not {heavy} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=True)


def test_a_4_bit_1_7b_model_generates_in_more_than_2_gb():
    """Of weights and cache alone it is true up to some length; the process needs more."""
    found = memory.inference(SHAPES["Qwen/Qwen3-1.7B-Base"], "nf4", "bfloat16", 2048)
    assert (found["weights"] + found["key-value cache"]) / GB == pytest.approx(1.48, abs=0.01)
    assert sum(found.values()) / GB == pytest.approx(2.3, abs=0.05)
    assert found["key-value cache"] == 2 * 28 * 2048 * 1024 * 2
    assert math.isclose(
        memory.inference(SHAPES["Qwen/Qwen3-1.7B-Base"], "nf4", "bfloat16", 4096)["key-value cache"],
        2 * found["key-value cache"],
    )


def test_the_table_in_the_docs_is_what_its_command_prints():
    text = (ROOT / "docs/hardware.md").read_text(encoding="utf-8")
    command = re.search(r"`python (-m tools.plan .* --markdown)`", text)[1]
    printed = subprocess.run(
        [sys.executable, *command.split()], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert printed in text
