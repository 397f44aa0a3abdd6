"""What the trainers really see and do: masks, stop tokens, start losses, references, precision, packing,
determinism.
"""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from datasets import Dataset
from pyarrow import parquet
from safetensors.torch import load_file
from transformers import TrainingArguments, get_scheduler
from trl import SFTTrainer

from stages import sft
from stages.model import modeling
from stages.preference import reference, trainers
from stages.preference import rows as rows_of
from stages.settings.errors import Problem
from stages.settings.methods import METHODS
from stages.settings.reader import read
from stages.text.prompts import END_OF_TEXT, TEMPLATES
from stages.training import run as training
from stages.training import supervised
from stages.training.looks import ROWS
from tests.conftest import ROOT

PREFERENCE = [name for name, method in METHODS.items() if method.trainer != "sft"]
OFTEN = {"dpo": [], "kto": []}  # and every kind of trainer, and of batch:
OFTEN |= dict.fromkeys(("ipo", "cpo", "orpo", "dno"), pytest.mark.long)
START_KNOWN = [name for name in PREFERENCE if METHODS[name].start]


def sft_trainer(params):
    return supervised.build(
        params, sft.start(params), sft.DATA, params.sft.epochs, params.chosen_model.sft.learning_rate
    )


def train(trainer, name, params):
    settings = params.sft if isinstance(trainer, SFTTrainer) else params.preference
    return training.train(trainer, f"test-{name}", params, settings, {"test": name, "chain": []})


def changed(params, section, epochs=0.2, **values):
    """params with values of the chosen model's section changed, and an epoch of only a few steps."""
    own = getattr(params.chosen_model, section).model_copy(update=values)
    models = {params.model: params.chosen_model.model_copy(update={section: own})}
    return params.model_copy(
        update={"models": models, "sft": params.sft.model_copy(update={"epochs": epochs})}
    )


def test_the_last_trained_token_is_the_stop_token_and_no_prompt_token_is_trained(inside):
    params = read()
    trainer = sft_trainer(params)
    tokenizer = trainer.processing_class
    rows = parquet.read_table(sft.DATA).to_pylist()
    answers = {row["completion"]: row["prompt"] for row in rows}
    trained = 0
    for batch in trainer.get_train_dataloader():
        labels, ids = batch["labels"][0], batch["input_ids"][0]
        starts = [i for i in range(len(labels)) if labels[i] != -100 and labels[i - 1] == -100]
        for start in starts:
            end = next((i for i in range(start, len(labels)) if labels[i] == -100), len(labels))
            assert (
                tokenizer.decode(labels[start:end]) in answers
            )  # one whole answer with its stop token, and nothing else
            assert labels[end - 1] == tokenizer.convert_tokens_to_ids(TEMPLATES["chatml"].stop)
            assert torch.equal(labels[start:end], ids[start:end])
            trained += 1
    assert trained == len(rows)


def test_both_answers_of_a_pair_end_in_the_stop_token(inside):
    trainer = trainers.build(read(), "dpo", Path("models/sft"))
    stop = trainer.processing_class.convert_tokens_to_ids(TEMPLATES["chatml"].stop)
    prompts = {pair["prompt"] for pair in parquet.read_table(rows_of.DATA).to_pylist()}
    for row in trainer.train_dataset:
        assert row["chosen_ids"][-1] == row["rejected_ids"][-1] == stop
        assert row["chosen_ids"].count(stop) == 1
        assert trainer.processing_class.decode(row["prompt_ids"]) in prompts


@pytest.mark.parametrize("warmup", [0.0, 0.5])
def test_a_constant_schedule_warms_up_as_the_others_do(inside, warmup):
    params = read()
    own = params.sft.model_copy(update={"schedule": "constant", "warmup": warmup})
    common = training.arguments(params, params.chosen_model.sft, own, 1, 2e-3)
    arguments = TrainingArguments(
        **{key: common[key] for key in ("output_dir", "lr_scheduler_type", "warmup_steps")}
    )
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=2e-3)
    schedule = get_scheduler(arguments.lr_scheduler_type, optimizer, arguments.get_warmup_steps(8), 8)
    rates = []
    for _ in range(8):
        rates.append(optimizer.param_groups[0]["lr"] / 2e-3)
        optimizer.step()
        schedule.step()
    assert rates == ([0.0, 0.25, 0.5, 0.75] if warmup else [1.0] * 4) + [1.0] * 4


def test_a_checkpoint_has_no_pickle_and_no_path_of_this_machine(inside):
    files = sorted(path.name for path in Path("models/sft").iterdir())
    assert "adapter_model.safetensors" in files
    assert {Path(name).suffix for name in files} == {".json", ".safetensors"}
    for path in Path("models/sft").glob("*.json"):
        assert str(inside.path) not in path.read_text(encoding="utf-8")
    assert (
        json.loads(Path("models/sft/adapter_config.json").read_text())["base_model_name_or_path"]
        == "models/nano"
    )


def test_the_pad_token_is_not_the_stop_token(inside):
    tokenizer = modeling.load_tokenizer(read().prompt)
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", END_OF_TEXT)


@pytest.mark.parametrize(
    "method", [pytest.param(name, marks=OFTEN.get(name, pytest.mark.slow)) for name in PREFERENCE]
)
def test_training_starts_at_the_known_loss_and_raises_its_margin(inside, method):
    params = read()
    trainer = trainers.build(params, method, Path("models/sft"))
    assert not Path("trainer_output").exists()  # where transformers keeps what is given no folder
    assert list(trainer.model.peft_config) == ["default"]  # no copy of the adapter stays in memory
    facts = train(trainer, method, params)
    if METHODS[method].start:
        own = params.methods[method].model_dump(exclude_none=True)
        expected = eval(METHODS[method].start, {"log": math.log, **own})
        assert facts["start_loss"] == pytest.approx(expected, rel=1e-3)
    margins = [entry["rewards/margins"] for entry in trainer.state.log_history if "rewards/margins" in entry]
    if (
        method != "apo_down"
    ):  # its terms for the chosen answer cancel at the start, and a dozen steps are not enough
        assert sum(margins[-3:]) > sum(margins[:3])


def test_every_method_names_the_source_of_its_hyperparameters():
    """And the value it names is the one in params.yaml."""
    params = read()
    for name, method in METHODS.items():
        own = params.methods[name].model_dump(exclude_none=True, exclude={"learning_rate_factor", "epochs"})
        assert {key: float(said.split()[0]) for key, said in method.hyperparameters.items()} == own, name
        if method.trainer != "sft":
            assert float((method.rate or "1").split(":")[0]) == params.methods[name].learning_rate_factor, (
                name
            )


def test_the_reference_is_the_sft_policy_and_not_the_base(inside):
    """A start loss of ln 2 alone would not tell: without the SFT adapter policy and reference are equal
    too.
    """
    from stages.model.scoring import score

    params = read()
    pairs = parquet.read_table(rows_of.DATA).to_pylist()
    texts = {pair["prompt"] + pair["chosen"]: (pair["prompt"], pair["chosen"]) for pair in pairs}
    tokenizer = modeling.load_tokenizer(params.prompt)

    def logps(rows, folder):
        model = modeling.load_checkpoint(params.chosen_model.weights, folder)
        own = [texts[tokenizer.decode(row["prompt_ids"] + row["chosen_ids"])] for row in rows]
        return [one.logp for one in score(model.eval(), tokenizer, own, "")]

    rows = trainers.build(params, "dpo", Path("models/sft")).train_dataset.select(range(8))
    assert rows["ref_chosen_logps"] == pytest.approx(logps(rows, Path("models/sft")), abs=1e-3)
    assert rows["ref_chosen_logps"] != pytest.approx(logps(rows, None), abs=1e-1)


@pytest.mark.long
def test_the_reference_is_computed_once_for_all_methods_and_never_stale(inside, monkeypatch, tmp_path):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    asked, scored = [], reference.scored

    def counted(texts, trainer):
        if texts:
            asked.append(len(texts))
        return scored(texts, trainer)

    monkeypatch.setattr(reference, "scored", counted)
    params = read()
    first = trainers.build(params, "dpo", Path("models/sft")).train_dataset
    answers = len(set(map(tuple, first["chosen_ids"])) | set(map(tuple, first["rejected_ids"])))
    assert len(asked) == 1
    assert asked[0] >= answers
    again = trainers.build(params, "sppo", Path("models/sft"), beta_factor=0.5).train_dataset
    assert again["ref_rejected_logps"] == first["ref_rejected_logps"]
    assert len(asked) == 1
    single = trainers.build(params, "kto", Path("models/sft")).train_dataset
    held_out, mismatched = asked[1:]  # of kto the mismatched answers, which estimate its KL
    assert held_out <= ROWS[0] < mismatched
    known = {tuple(row["prompt_ids"] + row["chosen_ids"]): row["ref_chosen_logps"] for row in first}
    assert all(
        known[tuple(row["prompt_ids"] + row["completion_ids"])] == row["ref_logps"]
        for row in single
        if row["label"]
    )
    trainers.build(params, "dpo", other_adapter())
    assert len(asked) == 4
    trainers.build(changed(params, "weights", dtype="bfloat16"), "dpo", Path("models/sft"))
    assert len(asked) == 5
    trainers.build(params.model_copy(update={"seed": 1}), "dpo", Path("models/sft"))
    assert sum(asked[5:]) <= params.chosen_model.preference.batch_size  # rows that filled no step before


def test_the_reference_of_a_text_is_the_same_number_beside_whichever_others(inside, monkeypatch, tmp_path):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    trainer = trainers.build(read(), "dpo", Path("models/sft"))
    rows = trainer.train_dataset
    texts = {
        (reference.packed(prompt), reference.packed(answer))
        for prompt, answer in zip(rows["prompt_ids"], rows["chosen_ids"])
    }
    ordered = sorted(texts, key=lambda text: (-reference.length(text), text))
    whole = dict(zip(ordered, reference.scored(ordered, trainer)))
    for part in (ordered[:1], ordered[1::3], ordered[-5:]):
        assert list(reference.scored(part, trainer)) == [whole[text] for text in part]
    path = tmp_path / "known.npy"
    reference.save(path, {reference.digest(text): logp for text, logp in whole.items()})
    assert reference.load(path) == {reference.digest(t): np.float32(logp) for t, logp in whole.items()}


def test_a_trainer_of_an_adapter_hashes_no_model(inside):
    for method in ("dpo", "kto", "cpo"):
        assert trainers.build(read(), method, Path("models/sft"))._precompute_model_hash is None


@pytest.mark.parametrize("method", ["dpo", "rpo", "cpo", "orpo"])
def test_a_step_has_one_gradient_however_its_pairs_are_accumulated(inside, method):
    """Also where the answers of its micro-batches are of very different lengths."""

    def gradient(batch_size, accumulation):
        params = changed(read(), "preference", batch_size=batch_size, accumulation=accumulation)
        trainer = trainers.build(params, method, Path("models/sft"))
        trainer.create_optimizer_and_scheduler(num_training_steps=1)
        texts = list(zip(trainer.train_dataset["chosen_ids"], trainer.train_dataset["prompt_ids"]))
        order = sorted(range(len(texts)), key=lambda i: (len(texts[i][0]), texts[i]))
        rows = trainer.train_dataset.select([*order[:4], *order[-4:]])
        trainer.model.train()
        trainer.current_gradient_accumulation_steps = accumulation
        collated = [
            trainer.data_collator([rows[i] for i in range(start, start + batch_size)])
            for start in range(0, 8, batch_size)
        ]
        batches, items = trainer.get_batch_samples(iter(collated), accumulation, trainer.args.device)
        for batch in batches:
            trainer.training_step(trainer.model, batch, items)
        return torch.cat([p.grad.flatten() for p in trainer.model.parameters() if p.requires_grad])

    whole, parts = gradient(8, 1), gradient(2, 4)
    assert (whole - parts).norm() / whole.norm() < 1e-5


def test_batches_come_in_another_order_every_epoch_and_stay_whole():
    order = rows_of.ShuffledBatches(12, 4, seed=7)
    epochs = []
    for epoch in range(3):
        order.set_epoch(epoch)
        epochs.append(list(order))
        assert sorted(epochs[-1]) == list(range(12))
        assert all(
            epochs[-1][start : start + 4] == list(range(first, first + 4))
            for start, first in ((start, epochs[-1][start]) for start in (0, 4, 8))
        )
    assert epochs[0] == list(range(12))
    order.set_epoch(1)
    assert list(order) == epochs[1]
    many = rows_of.ShuffledBatches(400, 4, seed=7)
    many.set_epoch(1)
    first = list(many)
    many.set_epoch(2)
    assert first != list(many) != list(range(400)) != first


def other_adapter() -> Path:
    """A checkpoint with other weights than models/sft."""
    params = changed(read(), "sft", learning_rate=1e-4)
    trainer = sft_trainer(params)
    training.train(trainer, "test-other", params, params.sft, modeling.provenance(params, sft.DATA, None))
    return Path("models/test-other")


@pytest.mark.parametrize("method", ["cpo", "simpo", "orpo"])
def test_reference_free_losses_are_those_of_trl_experimental(inside, method):
    from trl.experimental.cpo import CPOConfig, CPOTrainer
    from trl.experimental.orpo import ORPOConfig, ORPOTrainer

    params = read()
    ours = trainers.build(params, method, Path("models/sft"))
    batch = ours.data_collator([ours.train_dataset[i] for i in range(8)])
    with torch.no_grad():
        our_loss = ours.compute_loss(ours.model, batch).item()

    own = params.methods[method]
    common = {
        "per_device_train_batch_size": 8,
        "use_cpu": True,
        "bf16": False,
        "report_to": "none",
        "beta": own.beta,
    }
    if method == "orpo":
        config, trainer_class = ORPOConfig("unused", **common), ORPOTrainer
    else:
        loss = (
            {"loss_type": "simpo", "simpo_gamma": own.simpo_gamma}
            if method == "simpo"
            else {"loss_type": "sigmoid"}
        )
        config, trainer_class = (
            CPOConfig("unused", **common, cpo_alpha=own.sft_weight or 0.0, **loss),
            CPOTrainer,
        )
    model = modeling.load_checkpoint(params.chosen_model.weights, Path("models/sft"), trainable=True)
    decode = modeling.load_tokenizer(params.prompt).decode
    rows = Dataset.from_list(
        [
            {name: decode(row[f"{name}_ids"]) for name in ("prompt", "chosen", "rejected")}
            for row in ours.train_dataset.select(range(8))
        ]
    )
    theirs = trainer_class(
        model=model, args=config, train_dataset=rows, processing_class=modeling.load_tokenizer(params.prompt)
    )
    with torch.no_grad():
        their_loss, _ = theirs.get_batch_loss_metrics(
            theirs.model, theirs.data_collator([theirs.train_dataset[i] for i in range(8)])
        )
    assert our_loss == pytest.approx(their_loss.item(), abs=1e-4)


def test_kto_batches_hold_both_labels(inside):
    rows = trainers.build(read(), "kto", Path("models/sft")).train_dataset
    batches = [rows["label"][i : i + 16] for i in range(0, len(rows), 16)]
    assert all(0 < sum(batch) < len(batch) for batch in batches)
    assert sum(rows["label"]) * 2 == len(rows)


def test_preference_batches_are_of_similar_length_and_the_longest_comes_first(inside):
    rows = training.load_rows(rows_of.DATA, ["prompt", "tokens"])
    ours = rows_of.by_length(rows, 4, seed=1)
    batches = [ours["tokens"][i : i + 4] for i in range(0, len(ours), 4)]
    random = [rows["tokens"][i : i + 4] for i in range(0, len(ours), 4)]
    waste = [sum(4 * max(batch) - sum(batch) for batch in own) for own in (batches, random)]
    assert waste[0] < waste[1] / 3
    assert max(batches[0]) == max(rows["tokens"])
    assert len({tuple(batch) for batch in batches[:5]}) > 1  # not sorted over all
    assert (
        rows_of.by_length(rows, 4, seed=1)["prompt"]
        == ours["prompt"]
        != rows_of.by_length(rows, 4, seed=2)["prompt"]
    )


def test_packed_documents_give_the_padded_loss_and_do_not_see_each_other(inside):
    params = read()
    packed, padded = (
        sft_trainer(params.model_copy(update={"sft": params.sft.model_copy(update={"packing": on})}))
        for on in (True, False)
    )

    def loss_and_gradient(trainer):
        total, tokens = 0.0, 0
        for batch in trainer.get_train_dataloader():
            count = int((batch["labels"][:, 1:] != -100).sum())
            loss = trainer.compute_loss(trainer.model, dict(batch), num_items_in_batch=1)
            loss.backward()
            total, tokens = total + loss.item(), tokens + count
        gradients = [p.grad.flatten() / tokens for p in trainer.model.parameters() if p.grad is not None]
        return total / tokens, torch.cat(gradients), tokens

    (loss, gradient, tokens), (their_loss, their_gradient, their_tokens) = map(
        loss_and_gradient, (packed, padded)
    )
    assert tokens == their_tokens
    assert loss == pytest.approx(their_loss, rel=1e-5)
    assert torch.nn.functional.cosine_similarity(gradient, their_gradient, dim=0) > 0.9999

    batch = next(iter(packed.get_train_dataloader()))
    fused = SFTTrainer.compute_loss(
        packed, packed.model, dict(batch), num_items_in_batch=1
    )  # logits of prompts too
    assert packed.compute_loss(packed.model, dict(batch), num_items_in_batch=1).item() == pytest.approx(
        fused.item(), rel=1e-5
    )
    starts = (batch["position_ids"][0] == 0).nonzero().flatten().tolist()
    assert len(starts) > 2  # a pack of several documents
    ids = batch["input_ids"].clone()
    with torch.no_grad():
        before = packed.model(input_ids=ids, position_ids=batch["position_ids"]).logits
        ids[0, : starts[1]] = (ids[0, : starts[1]] + 1) % 4000
        after = packed.model(input_ids=ids, position_ids=batch["position_ids"]).logits
    assert torch.equal(before[0, starts[1] :], after[0, starts[1] :])
    assert not torch.equal(before[0, : starts[1]], after[0, : starts[1]])


def test_gradient_checkpointing_changes_memory_and_nothing_else(inside):
    adapters = []
    for on in (False, True):
        params = changed(read(), "sft", gradient_checkpointing=on)
        trainer = sft_trainer(params)
        train(trainer, "checkpointing", params)
        assert trainer.model.get_base_model().is_gradient_checkpointing == on
        assert trainer.args.gradient_checkpointing_kwargs == {"use_reentrant": False}
        adapters.append(
            torch.cat([p.detach().flatten() for p in trainer.model.parameters() if p.requires_grad])
        )
    assert torch.equal(*adapters)


@pytest.mark.slow
@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_adapters_are_trained_in_fp32_from_exactly_what_was_saved(inside, quantization):
    """On a bfloat16 base, 4-bit or not; and nothing else of it, embeddings included, is cast to fp32."""
    params = changed(read(), "weights", quantization=quantization, dtype="bfloat16")
    trainer = sft_trainer(params)
    facts = training.train(
        trainer, f"test-{quantization}", params, params.sft, modeling.provenance(params, sft.DATA, None)
    )
    assert facts["final_loss"] < facts["start_loss"]
    assert trainer.model.get_base_model().get_input_embeddings().weight.dtype == torch.bfloat16
    assert getattr(trainer.model, "is_loaded_in_4bit", False) == (quantization == "nf4")

    saved = load_file(f"models/test-{quantization}/adapter_model.safetensors")
    preference = trainers.build(params, "dpo", Path(f"models/test-{quantization}"))
    adapters = {name: p for name, p in preference.model.named_parameters() if p.requires_grad}
    assert {p.dtype for p in adapters.values()} == {torch.float32}
    assert all(torch.equal(p, saved[name.replace(".default", "")]) for name, p in adapters.items())
    before = {name: p.detach().clone() for name, p in adapters.items()}
    facts = train(preference, f"{quantization}-dpo", params)
    assert facts["start_loss"] == pytest.approx(math.log(2), abs=5e-3)  # bfloat16
    assert all((p != before[name]).float().mean() > 0.9 for name, p in adapters.items())


@pytest.mark.long
@pytest.mark.parametrize(
    "values",
    [{"rslora": True}, {"dora": True}, {"targets": ["q_proj", "v_proj"]}, {"r": 4, "dropout": 0.1}],
    ids=str,
)
def test_every_kind_of_adapter_learns(inside, values):
    params = read()
    params = changed(params, "sft", epochs=1.0, lora=params.chosen_model.sft.lora.model_copy(update=values))
    trainer = sft_trainer(params)
    config = trainer.model.peft_config["default"]
    named = {
        "rslora": "use_rslora",
        "dora": "use_dora",
        "targets": "target_modules",
        "r": "r",
        "dropout": "lora_dropout",
    }
    assert all(
        getattr(config, named[key]) == (set(value) if isinstance(value, list) else value)
        for key, value in values.items()
    )
    facts = train(trainer, "kind", params)
    assert facts["final_loss"] < facts["start_loss"]


@pytest.mark.parametrize("optimizer", training.OPTIMIZERS)
def test_every_optimizer_learns(inside, optimizer):
    params = changed(read(), "sft")
    params = params.model_copy(
        update={"training": params.training.model_copy(update={"optimizer": optimizer})}
    )
    trainer = sft_trainer(params)
    facts = train(trainer, optimizer, params)
    assert facts["final_loss"] < facts["start_loss"]
    states = [
        value.dtype
        for state in trainer.optimizer.optimizer.state.values()
        for value in state.values()
        if torch.is_tensor(value)
    ]
    assert (torch.uint8 in states) == ("8bit" in optimizer)


@pytest.mark.long
def test_a_whole_model_is_trained_where_lora_is_null(inside):
    """No adapter anywhere, and still no second model as the reference."""
    params = changed(read(), "sft", lora=None)
    training.train(
        sft_trainer(params), "test-whole", params, params.sft, modeling.provenance(params, sft.DATA, None)
    )
    preference = trainers.build(params, "dpo", Path("models/test-whole"))
    assert not hasattr(preference.model, "peft_config")
    assert preference.ref_model is None
    facts = train(preference, "whole-dpo", params)
    assert facts["start_loss"] == pytest.approx(math.log(2), abs=1e-3)
    assert facts["final_margin"] > 0


def test_an_old_gpu_computes_in_float16(inside, monkeypatch):
    weights = changed(read(), "weights", dtype="bfloat16").chosen_model.weights
    assert modeling.compute_dtype(weights) == torch.bfloat16
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation: including_emulation)
    assert modeling.compute_dtype(weights) == torch.float16


def test_an_adapter_is_refused_on_another_base(inside, monkeypatch, tmp_path):
    weights = read().chosen_model.weights
    with pytest.raises(
        Problem, match=r"models/sft was trained on nano \(.*, none\), but this base is nano \(.*, nf4\)"
    ):
        modeling.load_checkpoint(weights.model_copy(update={"quantization": "nf4"}), Path("models/sft"))
    other = json.loads(Path("models/base.json").read_text()) | {"model": "other"}
    (tmp_path / "base.json").write_text(json.dumps(other), encoding="utf-8")
    monkeypatch.setattr(modeling.manifest, "MANIFEST", tmp_path / "base.json")
    with pytest.raises(
        Problem, match=r"models/sft was trained on nano \(.*, none\), but this base is other \("
    ):
        modeling.load_checkpoint(weights, Path("models/sft"))


@pytest.mark.long
def test_an_adapter_is_refused_on_another_chain(inside):
    params = read()
    before = other_adapter()
    trainer = trainers.build(params, "dpo", before)
    training.train(
        trainer, "test-chained", params, params.preference, modeling.provenance(params, rows_of.DATA, before)
    )
    modeling.load_checkpoint(params.chosen_model.weights, Path("models/test-chained"))
    weights = before / "adapter_model.safetensors"
    weights.write_bytes(Path("models/sft/adapter_model.safetensors").read_bytes())
    with pytest.raises(
        Problem,
        match=r"test-chained was trained on models/test-other \(\w{8}\), "
        r"but models/test-other is another one \(\w{8}\)",
    ):
        modeling.load_checkpoint(params.chosen_model.weights, Path("models/test-chained"))


def test_a_lost_loss_stops_the_run(inside):
    params = changed(read(), "sft", learning_rate=1e30)
    with pytest.raises(Problem, match=r"the loss of test-lost is nan at step \d+: lower the learning rate"):
        train(sft_trainer(params), "lost", params)


def test_the_same_seed_gives_the_same_adapter_file(inside):
    params = read()
    train(sft_trainer(params), "again", params)
    for name in ("adapter_model.safetensors", "adapter_config.json"):
        assert Path("models/test-again", name).read_bytes() == Path("models/sft", name).read_bytes()


def test_the_documentation_lists_every_method_as_it_is():
    text = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
    for name in PREFERENCE:
        method = METHODS[name]
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{name}` |")]
        said = "; ".join(f"{key} {value}" for key, value in method.hyperparameters.items())
        assert all(part in row for part in (method.name, method.equation, said, method.rate)), name
        assert (f"batch_size ≥ {method.min_batch_size}" in row) == (method.min_batch_size > 1)
