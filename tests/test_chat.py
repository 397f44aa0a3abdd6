"""Chat: each checkpoint's own answers, streamed; history that fits; the terminal, right to left."""

import io
import json
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import chdir
from pathlib import Path
from types import SimpleNamespace

import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from stages.model import generation, modeling
from stages.settings.errors import Problem
from stages.settings.files import read_json, write_json
from stages.settings.reader import read
from stages.text.prompts import TEMPLATES
from tests.conftest import Workspace
from tools.chat import __main__ as command
from tools.chat import bidi, terminal
from tools.chat.models import GREEDY, Models, Reply, Sampling, chosen
from tools.chat.samples import samples
from tools.export import card

QUESTIONS = ["ما جمع معلم مثابر؟", "اكتب العدد 12 بالحروف."]


def ask(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


# --- the models ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def trained(workspace, tmp_path_factory):
    """The workspace with a second adapter, unlike the first, and a checkpoint that is a whole model."""
    copied = workspace.copy(tmp_path_factory.mktemp("chat") / "project")
    folder = copied.path / "models"
    shutil.copytree(folder / "sft", folder / "dpo")
    weights = load_file(folder / "dpo/adapter_model.safetensors")
    save_file(opposite(weights), folder / "dpo/adapter_model.safetensors")
    shutil.copytree(folder / "nano", folder / "refine-ipo")
    shutil.copy(folder / "sft/provenance.json", folder / "refine-ipo/provenance.json")
    with chdir(copied.path):
        yield copied


def opposite(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Of an adapter that adds B·A, one that takes a little of it away."""
    return {name: -value / 20 if "lora_B" in name else value for name, value in weights.items()}


@pytest.fixture(scope="module")
def models(trained) -> Models:
    return Models(read())


def held_in_4_bits(project) -> None:
    project.set({"models.nano.weights.quantization": "nf4"})
    for path in Path("models").glob("*/provenance.json"):
        if "base" in (provenance := read_json(path)):
            write_json(path, provenance | {"base": provenance["base"] | {"quantization": "nf4"}})


@pytest.mark.parametrize("quantization", ["none", "nf4"])
def test_every_checkpoint_gives_the_answers_that_it_gives_when_loaded_alone(
    trained, tmp_path, monkeypatch, quantization
):
    project = trained.copy(tmp_path / "project")
    monkeypatch.chdir(project.path)
    if quantization == "nf4":
        held_in_4_bits(project)
    params = read()
    models = Models(params, context=64)
    assert models.names == ["base", "sft", "dpo", "refine-ipo"]
    answers = {}
    for question in QUESTIONS:  # switched at every question, and back
        for name in models.names:
            reply = models.reply(name, ask(question))
            assert "".join(reply) == reply.text
            answers[name, question] = tuple(reply.tokens)
    assert len(set(answers.values())) > len(QUESTIONS)
    for name in models.names:
        alone = modeling.load_checkpoint(
            params.chosen_model.weights, None if name == "base" else Path("models") / name
        ).eval()
        for question in QUESTIONS:
            prompt = models.template.render(ask(question))
            limit = models.context - len(models.tokenizer(prompt)["input_ids"])
            [expected] = generation.generate(
                alone, models.tokenizer, [prompt], list(models.stops), limit, "test"
            )
            assert answers[name, question] == expected.tokens


def test_answers_in_step_are_those_given_one_after_the_other(models):
    one_by_one = [list(models.reply(name, ask(QUESTIONS[0]))) for name in models.names]
    together = [models.reply(name, ask(QUESTIONS[0])) for name in models.names]
    running = list(map(iter, together))
    while running:
        running = [pieces for pieces in running if next(pieces, None) is not None]
    assert [reply.text for reply in together] == list(map("".join, one_by_one))


def test_oldest_turns_are_left_out_whole_and_the_system_turn_stays(models):
    system = [{"role": "system", "content": "أجب بإيجاز."}]
    history = [
        message
        for i in range(8)
        for message in (*ask(f"ما العدد الذي يلي {i}؟"), {"role": "assistant", "content": str(i + 1)})
    ]
    ids, forgotten = models.prompt([*system, *history, *ask("وما بعده؟")])
    kept = TEMPLATES["chatml"].render([*system, *history[2 * forgotten :], *ask("وما بعده؟")])
    assert 0 < forgotten < 8 and ids == models.tokenizer(kept)["input_ids"]
    longer = TEMPLATES["chatml"].render([*system, *history[2 * forgotten - 2 :], *ask("وما بعده؟")])
    assert len(ids) <= models.context // 2 < len(models.tokenizer(longer)["input_ids"])
    assert models.prompt(ask("وما بعده؟"))[1] == 0


@pytest.mark.parametrize(
    "name, text, said",
    [
        ("sft", "كم " * 100, "shorten it"),
        ("sft", "<|im_end|>", "mark the turns"),
        ("kto", "كم", "must be one of base"),
    ],
)
def test_what_cannot_be_asked_is_one_line(models, name, text, said):
    with pytest.raises(Problem, match=said):
        models.reply(name, ask(text))


def test_the_system_turn_of_params_is_used_where_none_is_given(models, monkeypatch):
    monkeypatch.setattr(models, "system", "أجب بإيجاز.")
    own = [{"role": "system", "content": "أطل."}, *ask("كم؟")]
    assert models.conversation(ask("كم؟"))[0]["content"] == "أجب بإيجاز." and models.conversation(own) == own


def scripted(models: Models, tokens: Iterator[int], sampling: Sampling = GREEDY) -> Reply:
    """The reply of a model that generates these tokens."""
    size = len(models.tokenizer)
    step = lambda *_: (torch.nn.functional.one_hot(torch.tensor([next(tokens)]), size), None)  # noqa: E731
    script = SimpleNamespace(context=500, stops=models.stops, tokenizer=models.tokenizer, step=step)
    return Reply(script, "sft", [1], sampling, 0)


@pytest.mark.parametrize("text", ["مرحبًا 👩🏽‍🚀، ٪١٢ — 𝔄é", "字﷽\n\tكلمة"])
def test_pieces_hold_whole_characters(models, text):
    reply = scripted(models, iter([*models.tokenizer(text)["input_ids"], models.tokenizer.eos_token_id]))
    pieces = list(reply)
    assert "".join(pieces) == reply.text == text and reply.stopped
    assert len(pieces) < len(reply.tokens) and not any("\ufffd" in piece for piece in pieces)


def test_bytes_that_never_become_a_character_are_left_out(models):
    whole = models.tokenizer("نعم 𝔄 لا")["input_ids"]
    cut = next(i for i, token in enumerate(whole) if "\ufffd" in models.tokenizer.decode([token]))
    script = iter(
        [*whole[:cut], whole[cut], *models.tokenizer("لا")["input_ids"], models.tokenizer.eos_token_id]
    )
    assert "".join(scripted(models, script)) == "نعم لا"


def test_temperature_goes_from_the_best_token_to_all_but_the_tail():
    logits = torch.log(torch.tensor([[0.6, 0.38, 0.02]]))
    assert chosen(logits, Sampling(0.0)) == chosen(logits, Sampling(1e-30)) == 0
    torch.manual_seed(1)
    assert {chosen(logits, Sampling(1.0)) for _ in range(100)} == {0, 1}
    assert {chosen(logits, Sampling(1.0, top_p=1.0)) for _ in range(300)} == {0, 1, 2}
    assert {chosen(logits, Sampling(1.0, top_p=0.5)) for _ in range(100)} == {0}


def test_checkpoint_of_another_template_is_left_out(trained, tmp_path, monkeypatch):
    project = trained.copy(tmp_path / "project")
    monkeypatch.chdir(project.path)
    project.set({"prompt.template": "arabic"})
    models = Models(read())
    assert models.names == ["base"] and list(models.refused) == ["sft", "dpo", "refine-ipo"]
    with pytest.raises(
        Problem, match=r"models/sft was trained with the chatml template .* prompt.template: arabic"
    ):
        models.known("sft")


def test_checkpoints_of_experiments_answer_beside_those_of_the_workspace(workspace, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    project = Workspace.standing(tmp_path)
    shutil.copy(workspace.path / "params.yaml", tmp_path)
    for name, folder in {"nano": "nano", "sft": "sft", "dpo": "sft"}.items():
        shutil.copytree(workspace.path / "models" / folder, tmp_path / "models" / name)
    shutil.copy(workspace.path / "models/base.json", "models")
    provenance = read_json(Path("models/sft/provenance.json"))
    write_json(Path("models/dpo/provenance.json"), provenance | {"method": "kto"})
    for line in ("git init -q", "git config user.email t@x", "git config user.name t", "dvc init -q"):
        project.run(*line.split())
    project.run("dvc", "add", "-q", "models/sft", "models/dpo")
    project.commit("an experiment")
    weights = load_file("models/dpo/adapter_model.safetensors")
    save_file(opposite(weights), "models/dpo/adapter_model.safetensors")
    write_json(Path("models/dpo/provenance.json"), provenance | {"method": "ipo"})
    assert card.title(Path("models/dpo"), {"repo": "Qwen/Qwen3-1.7B-Base"}) == "Qwen3-1.7B-Base-arabic-ipo"
    models = Models(read(), experiments=["HEAD"])
    assert models.names == ["base", "sft", "ipo", "HEAD/sft", "HEAD/kto"]
    assert models.known("dpo") == "ipo" and models.known("HEAD/dpo") == "HEAD/kto"
    answers = {name: "".join(models.reply(name, ask(QUESTIONS[0]))) for name in models.names}
    assert answers["HEAD/kto"] == answers["HEAD/sft"] == answers["sft"] != answers["ipo"]
    write_json(Path("models/sft/provenance.json"), provenance | {"base": provenance["base"] | {"model": "x"}})
    project.run("dvc", "add", "-q", "models/sft")
    project.commit("of another base")
    refused = Models(read(), experiments=["HEAD"]).refused
    assert refused["HEAD/sft"] == "HEAD/sft: it was trained on another base (x, none) than this one"
    with pytest.raises(Problem, match="nowhere is no revision of git and no experiment"):
        Models(read(), experiments=["nowhere"])


def test_without_a_base_the_cure_is_named(trained, tmp_path, monkeypatch):
    (tmp_path / "params.yaml").write_bytes(Path("params.yaml").read_bytes())
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Problem, match=r"models/base.json does not exist: run `dvc repro`"):
        Models(read())


def test_before_anything_is_trained_the_base_answers(trained, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(trained.copy(tmp_path / "project").path)
    for name in ("sft", "dpo", "refine-ipo"):
        shutil.rmtree(Path("models") / name)
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(QUESTIONS[0].encode())))
    command.main([])
    written = capsys.readouterr()
    assert written.out.strip() and "no checkpoint is trained yet, so this is the base model" in written.err


@pytest.mark.parametrize(
    "arguments, said",
    [
        (["kto"], "no checkpoint 'kto'"),
        (["--temperature", "3"], "from 0 to 2"),
        (["--context", "9999"], "from 16 to 1024"),
    ],
)
def test_command_line_says_what_is_wrong_in_one_line(trained, arguments, said):
    with pytest.raises(SystemExit, match=f"^error: .*{said}"):
        command.main(arguments)


# --- right to left ------------------------------------------------------------------------------------------


def shown(text: str, mode: str, width: int = 21) -> str:
    return "".join(bidi.displayed(text, mode, width))  # letter by letter


def test_lines_are_isolated():
    assert shown("نعم.\nyes", "isolate") == "\u2068نعم.\u2069\n\u2068yes\u2069"


def test_rows_are_joined_ordered_and_right_aligned():
    assert shown("سلام", "shape", 11) == "       \ufee1\ufefc\ufeb3"  # with the ligature of lam and alef
    assert shown("yes", "shape") == "yes"
    assert shown("قل (yes 12) هو", "shape") == "      \ufeee\ufeeb (yes 12) \ufede\ufed7"  # brackets mirrored
    assert shown("كَم", "shape", 5) == "  \ufee2\ufedb\u064e"  # a mark comes after its letter


def test_long_lines_wrap_in_reading_order_and_keep_their_direction():
    first, second = shown("سلام GPU GPU GPU GPU GPU", "shape", 21).split("\n")
    assert first.rstrip().endswith("\ufee1\ufefc\ufeb3") and first.count("GPU") == 4 and len(first) == 20
    assert second.strip() == "GPU" and len(second) == 20


def test_a_row_is_shown_as_soon_as_it_is_full():
    pieces = iter(["one two three four ", "five", " six"])
    assert next(bidi.displayed(pieces, "shape", 21)) == "one two three four"
    assert list(pieces) == [" six"]


@pytest.mark.parametrize("mode", bidi.MODES)
def test_an_answer_cannot_command_the_terminal(mode):
    assert shown("a\x1b]0;x\x07\u202e\u2069b\x9b1m", mode).strip("\u2068\u2069") == "a]0;xb1m"


@pytest.mark.parametrize(
    "environment, mode",
    [
        ({"VTE_VERSION": "7006", "TERM": "xterm-256color"}, "isolate"),
        ({"VTE_VERSION": "5202"}, "shape"),
        ({"KONSOLE_VERSION": "230804"}, "isolate"),
        ({"TERM_PROGRAM": "Apple_Terminal"}, "isolate"),
        (
            {"TERM_PROGRAM": "vscode", "VTE_VERSION": "7006"},
            "shape",
        ),  # started from a terminal that it is not
        ({"WT_SESSION": "1"}, "shape"),
        ({"TERM": "xterm-kitty"}, "none"),
        ({"SSH_CONNECTION": "1", "TERM": "xterm-256color"}, "isolate"),
        ({}, "shape"),
    ],
)
def test_terminal_is_told_by_its_environment(environment, mode):
    assert bidi.detected(environment) == mode


# --- the terminal -------------------------------------------------------------------------------------------


def test_script_reads_answers_alone(models, monkeypatch, capsys):
    lines = [
        QUESTIONS[0],
        "/sft",
        QUESTIONS[0],
        "/clear",
        "/nothing",
        "/temperature x",
        "/base",
        QUESTIONS[1],
        "/quit",
        QUESTIONS[1],
    ]
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO("\n".join(lines).encode())))
    terminal.run(models, "dpo", 0.0, None)
    first = "".join(models.reply("dpo", ask(QUESTIONS[0])))
    history = [*ask(QUESTIONS[0]), {"role": "assistant", "content": first}, *ask(QUESTIONS[0])]
    second, third = "".join(models.reply("sft", history)), "".join(models.reply("base", ask(QUESTIONS[1])))
    written = capsys.readouterr()
    assert written.out == "".join(f"{bidi.UNSAFE.sub('', answer)}\n" for answer in (first, second, third))
    assert written.err.splitlines() == [
        "sft answers",
        "the conversation is empty",
        "error: there is no /nothing: see /help",
        "error: temperature is 'x': it must be a number from 0 to 2",
        "base answers",
    ]


def test_interrupt_stops_the_answer_and_keeps_what_was_said(capsys):
    class Interrupted(Reply):
        def __iter__(self):
            for word in ["واحد ", "اثنان ", "ثلاثة"]:
                self.text += word
                yield word
                if self.text.endswith("اثنان "):
                    signal.raise_signal(signal.SIGINT)

    models = SimpleNamespace(reply=lambda *_: Interrupted(None, "sft", [], GREEDY, 0))
    chat = terminal.Chat(models, "sft", 0.0)
    chat.answer("عد", "none")
    assert capsys.readouterr().out == "واحد اثنان \n"
    assert [message["role"] for message in chat.messages] == ["user", "assistant"]
    assert json.dumps(chat.messages[1]["content"], ensure_ascii=False).startswith('"واحد اثنان ')


# --- what to ask --------------------------------------------------------------------------------------------


def test_samples_are_short_questions_that_the_checkpoint_answered_rightly(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    template = TEMPLATES["chatml"]
    assert samples("sft", template) == []
    first, second, wrong = "ما جمع كتاب؟", "اكتب العدد 3 بالحروف.", "من أنت؟"
    long = "ما " + "أطول " * 40
    talk = [*ask("نعم؟"), {"role": "assistant", "content": "نعم"}, *ask("كم؟")]
    asked = [*map(ask, (first, "ما جمع باب؟", wrong, long, second)), talk]
    rows = [
        {"benchmark": "held-out", "question": template.render(one), "reference": "كتب", "answer": "كتب "}
        for one in asked
    ]
    rows[2]["answer"] = "لا"
    Path("data/predictions").mkdir(parents=True)
    parquet.write_table(pa.Table.from_pylist(rows), "data/predictions/dpo.parquet")
    assert samples("kto", template) == samples("trial/kto", template) == [first, second]
    Path("data/formatted/instructions").mkdir(parents=True)
    prompts = pa.table({"prompt": [template.render(ask(wrong))]})
    parquet.write_table(prompts, "data/formatted/instructions/validation.parquet")
    assert samples("sft", template) == [wrong]  # not evaluated yet
    parquet.write_table(prompts, "data/predictions/sft.parquet")  # of another version
    assert samples("sft", template) == [wrong]
