"""What the trainers really see and do: masks, stop tokens, start losses, references, precision, determinism."""

import json
import math
from pathlib import Path

import pytest
import torch
from pyarrow import parquet

from stages import dpo, modeling, sft, training
from stages.methods import METHODS
from stages.params import Problem, read
from stages.prompts import END_OF_TEXT, TEMPLATES

START_LOSS = {"dpo": math.log(2), "ipo": 1 / (4 * 0.1**2), "kto": 0.5, "dno": math.log(2)}


def test_the_last_trained_token_is_the_stop_token_and_no_prompt_token_is_trained(inside):
    params = read()
    trainer = sft.build(params)
    tokenizer = trainer.processing_class
    rows = parquet.read_table(sft.DATA).to_pylist()
    answers = {row["completion"]: row["prompt"] for row in rows}
    trained = 0
    for batch in trainer.get_train_dataloader():
        labels, ids = batch["labels"][0], batch["input_ids"][0]
        starts = [i for i in range(len(labels)) if labels[i] != -100 and labels[i - 1] == -100]
        for start in starts:
            end = next((i for i in range(start, len(labels)) if labels[i] == -100), len(labels))
            assert tokenizer.decode(labels[start:end]) in answers  # one whole answer with its stop token, and nothing else
            assert labels[end - 1] == tokenizer.convert_tokens_to_ids(TEMPLATES["chatml"].stop)
            assert torch.equal(labels[start:end], ids[start:end])
            trained += 1
    assert trained == len(rows)


def test_both_answers_of_a_pair_end_in_the_stop_token(inside):
    trainer = dpo.build(read(), "dpo", Path("models/sft"))
    stop = trainer.processing_class.convert_tokens_to_ids(TEMPLATES["chatml"].stop)
    pairs = parquet.read_table(dpo.DATA).to_pylist()
    for row, pair in zip(trainer.train_dataset, pairs):
        assert row["chosen_ids"][-1] == row["rejected_ids"][-1] == stop
        assert row["chosen_ids"].count(stop) == 1
        assert trainer.processing_class.decode(row["prompt_ids"]) == pair["prompt"]


@pytest.mark.parametrize("method", METHODS)
def test_training_starts_at_the_known_loss_and_raises_its_margin(inside, method):
    trainer = dpo.build(read(), method, Path("models/sft"))
    facts = training.run(trainer, f"test-{method}")
    if method in START_LOSS:
        assert facts["start_loss"] == pytest.approx(START_LOSS[method], abs=0.01 * START_LOSS[method])
    history = [entry for entry in trainer.state.log_history if "rewards/margins" in entry]
    margins = [entry["rewards/margins"] for entry in history]
    assert sum(margins[-3:]) / 3 > sum(margins[:3]) / 3


def test_the_reference_is_the_sft_policy_and_not_the_base(inside):
    """A start loss of ln 2 alone would not tell: without the SFT adapter policy and reference are equal too."""
    from stages.scoring import score

    params = read()
    trainer = dpo.build(params, "dpo", Path("models/sft"))
    pairs = parquet.read_table(dpo.DATA).to_pylist()[:4]
    texts = [(pair["prompt"], pair["chosen"]) for pair in pairs]
    batch = trainer.data_collator([trainer.train_dataset[i] for i in range(4)])
    reference, _ = trainer.compute_ref_log_probs(trainer.model, batch)
    tokenizer = modeling.load_tokenizer(params.prompt)

    def logps(folder):
        model = modeling.load_checkpoint(params.chosen_model.weights, folder)
        return [one.logp for one in score(model.eval(), tokenizer, texts, 4, "")]

    assert reference.tolist() == pytest.approx(logps(Path("models/sft")), abs=1e-3)
    assert reference.tolist() != pytest.approx(logps(None), abs=1e-1)


def test_cpo_is_the_loss_of_trl_experimental(inside):
    from trl.experimental.cpo import CPOConfig, CPOTrainer

    params = read()
    ours = dpo.build(params, "cpo", Path("models/sft"))
    batch = ours.data_collator([ours.train_dataset[i] for i in range(8)])
    with torch.no_grad():
        our_loss = ours.compute_loss(ours.model, batch).item()

    rows = training.load_rows(dpo.DATA, ["prompt", "chosen", "rejected"]).select(range(8))
    config = CPOConfig("unused", per_device_train_batch_size=8, use_cpu=True, bf16=False, report_to="none", beta=0.1, cpo_alpha=1.0)
    model = modeling.load_checkpoint(params.chosen_model.weights, Path("models/sft"), trainable=True)
    theirs = CPOTrainer(model=model, args=config, train_dataset=rows, processing_class=modeling.load_tokenizer(params.prompt))
    with torch.no_grad():
        their_loss, _ = theirs.get_batch_loss_metrics(theirs.model, theirs.data_collator([theirs.train_dataset[i] for i in range(8)]))
    assert our_loss == pytest.approx(their_loss.item(), abs=1e-4)


def test_a_lost_loss_stops_the_run(inside):
    params = changed(read(), "sft", learning_rate=1e30)
    with pytest.raises(Problem, match=r"the loss of test-lost is nan at step \d+: lower the learning rate"):
        training.run(sft.build(params), "test-lost")


def test_kto_batches_hold_both_labels(inside):
    rows = dpo.unpaired(training.load_rows(dpo.DATA, ["prompt", "chosen", "rejected"]), seed=7)
    labels = [row["label"] for row in rows]
    batches = [labels[i : i + 16] for i in range(0, len(labels) - 15, 16)]
    assert all(0 < sum(batch) < 16 for batch in batches)
    assert sum(labels) * 2 == len(labels)


def test_the_same_seed_gives_the_same_adapter_file(inside):
    trainer = sft.build(read())
    training.run(trainer, "test-again")
    modeling.save_checkpoint(trainer.model, trainer.processing_class, Path("models/again"), {})
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert Path("models/again", name).read_bytes() == Path("models/sft", name).read_bytes()


def changed(params, section, **values):
    """params with values of the chosen model's section changed, and an epoch of only a few steps."""
    own = getattr(params.chosen_model, section).model_copy(update=values)
    models = {params.model: params.chosen_model.model_copy(update={section: own})}
    return params.model_copy(update={"models": models, "sft": params.sft.model_copy(update={"epochs": 0.2})})


def test_adapters_on_a_4_bit_base_are_trained_in_fp32(inside):
    trainer = sft.build(changed(read(), "weights", quantization="nf4"))
    assert trainer.model.get_base_model().is_loaded_in_4bit
    facts = training.run(trainer, "test-nf4")
    adapters = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
    assert adapters
    assert {parameter.dtype for parameter in adapters} == {torch.float32}
    assert facts["final_loss"] < facts["start_loss"]


def test_a_whole_model_is_trained_where_lora_is_null(inside):
    """No adapter anywhere: the preference stage then needs a second model as its reference."""
    params = changed(read(), "sft", lora=None)
    trainer = sft.build(params)
    training.run(trainer, "test-whole")
    modeling.save_checkpoint(trainer.model, trainer.processing_class, Path("models/whole"), modeling.provenance(params, sft.DATA, None))
    preference = dpo.build(params, "dpo", Path("models/whole"))
    assert not hasattr(preference.model, "peft_config")
    facts = training.run(preference, "test-whole-dpo")
    assert facts["start_loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert facts["final_margin"] > 0


def test_a_checkpoint_has_no_pickle_and_no_path_of_this_machine(inside):
    files = sorted(path.name for path in Path("models/sft").iterdir())
    assert "adapter_model.safetensors" in files
    assert not [name for name in files if name.endswith((".bin", ".pt", ".pkl"))]
    for path in Path("models/sft").glob("*.json"):
        assert str(inside.path) not in path.read_text(encoding="utf-8")
    assert json.loads(Path("models/sft/adapter_config.json").read_text())["base_model_name_or_path"] == "models/nano"


def test_an_adapter_is_refused_on_another_base(inside, monkeypatch, tmp_path):
    other = json.loads(Path("models/base.json").read_text()) | {"model": "other"}
    (tmp_path / "base.json").write_text(json.dumps(other), encoding="utf-8")
    monkeypatch.setattr(modeling.hub, "MANIFEST", tmp_path / "base.json")
    with pytest.raises(Problem, match=r"models/sft was trained on nano \(.*\), but models/base.json names other \("):
        modeling.load_checkpoint(read().chosen_model.weights, Path("models/sft"))


def test_the_pad_token_is_not_the_stop_token(inside):
    tokenizer = modeling.load_tokenizer(read().prompt)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", END_OF_TEXT)
