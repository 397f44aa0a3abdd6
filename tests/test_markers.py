"""A base model whose chat markers were never trained, as Qwen's are reported to be: it is noticed, their rows
are trained beside the layers, and every later step carries them.
"""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer, Qwen2Config, Qwen2ForCausalLM
from trl.trainer.utils import add_fused_lm_head

from stages import dpo, evaluate, sft
from stages.model.rows import train_rows
from stages.settings import manifest, memory
from stages.settings.errors import Problem
from stages.settings.params import Weights
from stages.settings.reader import read
from stages.sources import markers
from stages.training import supervised
from tests.conftest import ROOT, Workspace
from tests.test_scoring import KINDS, model
from tools.export import merge

MARKERS = ["<|im_start|>", "<|im_end|>"]
TOKENIZER = AutoTokenizer.from_pretrained(ROOT / "models/nano")
IDS = TOKENIZER.convert_tokens_to_ids(MARKERS)
DELTA = "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta"


def forget(path) -> None:
    """Make the rows of the markers those of a byte that no text has, but for 1 % of noise."""
    tensors = load_file(path)
    table = tensors["model.embed_tokens.weight"].float()
    unused = table[TOKENIZER.get_vocab()["õ"]]
    noise = torch.randn(len(IDS), len(unused), generator=torch.Generator().manual_seed(0))
    table[IDS] = unused * (1 + 0.01 * noise)
    tensors["model.embed_tokens.weight"] = table.to(torch.bfloat16)
    save_file(tensors, path, metadata={"format": "pt"})


@pytest.fixture(scope="module")
def project(workspace, tmp_path_factory) -> Workspace:
    """With such a base, on which sft has run."""
    project = workspace.copy(tmp_path_factory.mktemp("markers") / "project")
    forget(project.path / "models/nano/model.safetensors")
    for name in ("base", "sft"):
        result = project.run(sys.executable, "-m", f"stages.{name}")
        assert "<|im_start|>, <|im_end|>" in result.stdout
    return project


@pytest.fixture
def inside(project, monkeypatch) -> Workspace:
    monkeypatch.chdir(project.path)
    return project


def test_trained_markers_are_left_alone(workspace):
    assert markers.untrained(ROOT / "models/nano", TOKENIZER, [*MARKERS, "<|endoftext|>"]) == []
    assert "untrained" not in json.loads((workspace.path / "models/base.json").read_text())
    config = json.loads((workspace.path / "models/sft/adapter_config.json").read_text())
    assert config["trainable_token_indices"] is None


@pytest.mark.long
def test_untrained_markers_are_noticed_and_their_rows_trained(inside):
    assert json.loads(manifest.MANIFEST.read_text())["untrained"] == MARKERS
    config = json.loads((inside.path / "models/sft/adapter_config.json").read_text())
    assert config["trainable_token_indices"] == {"embed_tokens": IDS}
    rows = load_file("models/sft/adapter_model.safetensors")[DELTA]
    before = load_file("models/nano/model.safetensors")["model.embed_tokens.weight"][IDS].float()
    assert rows.dtype == torch.float32
    assert (rows - before).norm(dim=1).min() > 0.01


@pytest.mark.long
def test_the_setting_overrules_what_was_found(inside, workspace, monkeypatch):
    params, model = read(), Qwen2ForCausalLM(config(tied=True))

    def rows(setting: str) -> dict:
        own = params.sft.model_copy(update={"train_markers": setting})
        return sft.token_rows(model, params.model_copy(update={"sft": own}))

    assert rows("auto") == {"embed_tokens": IDS}
    assert rows("never") == {}
    monkeypatch.chdir(workspace.path)
    assert rows("auto") == {}
    assert rows("always") == {"embed_tokens": IDS}


@pytest.mark.long
def test_the_preference_stage_starts_at_the_policy_with_its_rows(inside):
    dpo.main()
    facts = json.loads((inside.path / "metrics/train_dpo.json").read_text())
    assert facts["start_loss"] == pytest.approx(math.log(2), abs=1e-4)
    first, last = (load_file(f"models/{name}/adapter_model.safetensors")[DELTA] for name in ("sft", "dpo"))
    assert not torch.equal(first, last)


@pytest.mark.long
def test_trls_own_loss_trains_the_rows_as_ours_does(inside):
    """Ours is for a CPU; on a GPU it is TRL's, whose LM head sees the rows as constants."""
    params = read()
    losses = []
    for ours in (True, False):
        trainer = supervised.build(params, sft.start(params), sft.DATA, 1, 1e-4)
        batch = next(iter(trainer.get_train_dataloader()))
        count = (batch["labels"][:, 1:] != -100).sum()
        compute = trainer.compute_loss if ours else super(type(trainer), trainer).compute_loss
        loss = compute(trainer.model.train(), batch, num_items_in_batch=count)
        loss.backward()
        (rows,) = (one for name, one in trainer.model.named_parameters() if "trainable_tokens_delta" in name)
        losses.append((loss.detach(), rows.grad))
    assert losses[0][1].abs().max() > 1e-4
    torch.testing.assert_close(losses[1], losses[0], atol=1e-6, rtol=1e-3)


def config(tied: bool) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=len(TOKENIZER), hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=tied,
    )  # fmt: skip


@pytest.mark.parametrize("tied", [True, False])
def test_a_merged_model_is_the_adapter(tied, tmp_path):
    torch.manual_seed(0)
    base, adapter, out = (tmp_path / name for name in ("base", "adapter", "out"))
    model = Qwen2ForCausalLM(config(tied))
    model.save_pretrained(base)
    tables = {"embed_tokens": IDS} if tied else {"embed_tokens": IDS, "lm_head": IDS}
    lora = LoraConfig(task_type="CAUSAL_LM", r=4, target_modules="all-linear", trainable_token_indices=tables)
    adapted = train_rows(get_peft_model(model, lora))
    with torch.no_grad():
        for parameter in adapted.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter) * 0.1)
    adapted.save_pretrained(adapter)
    out.mkdir()
    merge.merge(Weights(path=str(base), quantization="none", dtype="float32"), base, adapter, out)
    model.config.save_pretrained(out)
    ids = torch.tensor([[5, *IDS, 300]])
    with torch.inference_mode():
        expected = adapted.eval()(ids).logits
        loaded = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(base), adapter)(ids).logits
        merged = AutoModelForCausalLM.from_pretrained(out)(ids).logits
    torch.testing.assert_close(loaded, expected)
    torch.testing.assert_close(merged, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("count", [None, 7])
def test_gradients_of_the_rows_are_those_of_peft(kind, tied, count):
    """Of a batch in which the rows are read, are targets, and are neither."""
    tables = ["embed_tokens"] if tied else ["embed_tokens", "lm_head"]
    lora = LoraConfig(
        task_type="CAUSAL_LM",
        r=4,
        target_modules="all-linear",
        trainable_token_indices=dict.fromkeys(tables, IDS),
    )
    ids = torch.tensor([[5, IDS[0], 9, 300, IDS[1], IDS[0], 7], [3, 4, 5, 6, 7, 8, IDS[1]]])
    labels = ids.masked_fill(ids == 9, -100)
    found = {}
    for ours in (True, False):
        base = model(kind, tie_word_embeddings=tied)
        add_fused_lm_head(base)
        adapted = get_peft_model(base, lora)
        if ours:
            adapted = train_rows(adapted)
        else:
            adapted.get_output_embeddings().bias = None
        rows = [one for name, one in adapted.named_parameters() if "trainable_tokens_delta" in name]
        with torch.no_grad():
            for number, one in enumerate(rows):
                one += torch.randn(one.shape, generator=torch.Generator().manual_seed(number)) * 0.3
        more = {} if count is None else {"num_items_in_batch": torch.tensor(count)}
        output = adapted(input_ids=ids, labels=labels, fused_lm_head=True, **more)
        (output.loss + output.log_probs[0].sum()).backward()
        others = [one for name, one in adapted.named_parameters() if one.requires_grad and "lora_B" in name]
        logits = adapted(input_ids=ids).logits
        found[ours] = [output.loss, output.log_probs, logits, *(one.grad for one in [*rows, *others])]
    for one, other in zip(found[True], found[False], strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-4)


def test_rows_beside_an_adapter_are_in_the_memory_plan(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    params = read(ROOT / "params.yaml")
    always = params.model_copy(update={"sft": params.sft.model_copy(update={"train_markers": "always"})})
    plain, more = (
        memory.predicted(memory.run_of(one, "qwen3-1_7b", "sft", None)) for one in (params, always)
    )
    assert 0 < more - plain < 2 * 151936 * 2048 / memory.GB  # less than a 16-bit copy of the table


@pytest.mark.long
def test_a_vocabulary_without_the_markers_is_refused_with_the_template_that_needs_none(inside, monkeypatch):
    from stages import base

    class Foreign:
        eos_token = "</s>"

        def get_vocab(self):
            return {"</s>": 0, "a": 1}

        def __call__(self, text):
            return {"input_ids": [1]}

    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda folder: Foreign())
    file = SimpleNamespace(
        from_file=lambda path: SimpleNamespace(encode=lambda text: SimpleNamespace(ids=[1]))
    )
    monkeypatch.setattr("tokenizers.Tokenizer", file)
    monkeypatch.setattr(markers, "untrained", lambda *_: [])
    prompt = read().prompt
    with pytest.raises(Problem, match=r"has no <\|im_start\|>, <\|im_end\|>, .*set prompt.template: arabic"):
        base.describe("models.x.weights", inside.path, prompt)
    arabic = prompt.model_copy(update={"template": "arabic"})
    assert base.describe("models.x.weights", inside.path, arabic) == {"end_of_text": "</s>"}


@pytest.mark.slow
def test_answers_end_in_the_stop_token_only_where_its_row_is_trained(project, tmp_path_factory, monkeypatch):
    """Without that they run on, or end as the base's own texts do."""
    stops = {}
    for setting in ("auto", "never"):
        one = project.copy(tmp_path_factory.mktemp(setting) / "project")
        one.set({"mixtures.demo.instructions.skills": 4400, "sft.train_markers": setting})
        monkeypatch.chdir(one.path)
        for command in (["fetch", "instructions"], ["format", "instructions"], ["sft"]):
            one.run(sys.executable, "-m", f"stages.{command[0]}", *command[1:])
        evaluate.main("sft")
        table = json.loads((one.path / "metrics/tables/sft.json").read_text(encoding="utf-8"))["measures"]
        stops[setting] = {row["measure"]: row["value"] for row in table}["stop_probability"]
    assert stops["auto"] > 0.9
    assert stops["never"] < 0.1
