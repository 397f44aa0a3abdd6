"""Judges: verdicts are read strictly, kept on disk, and asked again where a fault passes, not for ever."""

import json
import shutil

import numpy as np
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from pydantic import ValidationError

from stages.judge import chat, judges, people
from stages.judge.answered import Answered
from stages.judge.chat import ChatJudge
from stages.settings.errors import Problem
from stages.settings.files import write_json
from stages.settings.params import Judge
from stages.text import judging
from stages.text.prompts import TEMPLATES
from tests.conftest import ROOT
from tests.fake_judge import FakeJudge
from tools import compare, judged

KEY = "sk-secret-of-a-test"


@pytest.fixture
def endpoint(tmp_path, monkeypatch):
    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.setenv(chat.KEY, KEY)
    with FakeJudge(lambda messages: "7") as judge:
        yield judge


def judge_of(url: str, waits: list | None = None) -> ChatJudge:
    settings = Judge(kind="chat", base_url=url, model="judge-1", max_tokens=16)
    return ChatJudge("evaluate.judge", settings, (waits if waits is not None else []).append)


def answers(count: int) -> list[Answered]:
    return [Answered(f"سؤال {i}", f"جواب {i}", ["جواب"]) for i in range(count)]


@pytest.mark.parametrize(
    ("verdict", "score"),
    [
        ("7", 0.7), (" 10\n", 1.0), ("0", 0.0), ("٨", 0.8), ("7.5", 0.75), ("٧٫٥", 0.75), ("8/10", 0.8),
        ("**9**", 0.9), ("<think>السؤال 3 صعب</think>\n\n6", 0.6), ("9.", 0.9), ("11", None), ("10.5", None),
        ("-1", None), ("التقييم: 7", None), ("7 من 10", None), ("سبعة", None), ("", None), ("7\n8", None),
    ],
)  # fmt: skip
def test_a_verdict_is_the_number_alone(verdict, score):
    assert judging.read_score(verdict) == score


def test_a_run_again_asks_nothing(endpoint, tmp_path):
    first = judge_of(endpoint.url)
    assert first.scores([*answers(5), *answers(5)], "alrage") == [0.7] * 10
    assert len(endpoint.log) == 5  # what is asked twice is asked once
    assert (first.counts["prompt_tokens"], first.counts["completion_tokens"]) == (250, 5)
    path, body = endpoint.log[0]
    assert path == "/v1/chat/completions"
    assert {key: body[key] for key in ("model", "temperature", "max_tokens")} == {
        "model": "judge-1", "temperature": 0, "max_tokens": 16
    }  # fmt: skip
    assert set(endpoint.keys) == {f"Bearer {KEY}"}
    again = judge_of(endpoint.url)
    assert again.scores(answers(6), "alrage") == [0.7] * 6
    assert len(endpoint.log) == 6
    assert again.report() == (
        "judge-1: 1 requests (50 tokens asked, 1 answered), 5 verdicts known from before, 0 invalid"
    )
    files = list(tmp_path.rglob("*.json"))
    assert len(files) == 6
    assert not any(KEY in file.read_text(encoding="utf-8") for file in files)
    files[0].write_text(files[0].read_text(encoding="utf-8")[:40], encoding="utf-8")  # of a full disk, say
    judge_of(endpoint.url).scores(answers(6), "alrage")
    assert len(endpoint.log) == 7


def test_faults_that_pass_are_waited_for(endpoint, monkeypatch):
    monkeypatch.setattr(chat, "PARALLEL", 1)
    monkeypatch.setattr(chat, "TIMEOUT", 0.3)
    waits = []
    endpoint.faults = [503, b'{"choices": [{"mess', b"{}", 1.0, 429]
    judge = judge_of(endpoint.url, waits)
    assert judge.scores(answers(2), "alrage") == [0.7, 0.7]
    assert len(endpoint.log) == 7
    assert judge.counts["requests"] == 7
    assert waits == [7.0, 2.0, 4.0, 8.0, 7.0]  # doubled, or what Retry-After says


@pytest.mark.parametrize(
    ("faults", "asked", "said"),
    [
        ([500] * 9, chat.TRIES, f"status 500, {chat.TRIES} times in a row; verdicts given so far are kept"),
        ([b"<html>"] * 9, chat.TRIES, "no chat completion"),
        ([401], 1, "answers with status 401: is JUDGE_API_KEY set and right?"),
        ([404], 1, "answers with status 404"),
    ],
)
def test_faults_that_do_not_pass_end_the_run(endpoint, faults, asked, said):
    endpoint.faults = list(faults)
    with pytest.raises(Problem, match=said.replace("?", r"\?")) as raised:
        judge_of(endpoint.url).scores(answers(1), "alrage")
    assert len(endpoint.log) == asked
    assert KEY not in str(raised.value)


def test_a_server_that_is_not_there_is_said(endpoint):
    with pytest.raises(Problem, match=r"http://127.0.0.1:9/v1/chat/completions: not reached"):
        judge_of("http://127.0.0.1:9/v1/").scores(answers(1), "alrage")


def test_invalid_verdicts_are_counted_and_no_score(endpoint):
    endpoint.reply = lambda messages: "لا أدري" if "سؤال 1" in messages[1]["content"] else "٩"
    judge = judge_of(endpoint.url)
    assert judge.scores(answers(3), "alrage") == [0.9, None, 0.9]
    assert judge.counts["invalid"] == 1
    endpoint.finish = "length"  # 1 may be what came of 10
    with pytest.raises(Problem, match="none of 2 answers of judge-1 is a verdict; the first is cut"):
        judge_of(endpoint.url).scores(answers(9)[7:], "alrage")


def test_a_pair_is_asked_in_both_orders(endpoint):
    def reply(messages):
        asked = messages[1]["content"]
        if "ترتيب" in asked:
            return "1"  # whatever stands first
        return "1" if asked.index("جيد") < asked.index("سيئ") else "2"

    endpoint.reply = reply
    pairs = [("س", "جيد", "سيئ"), ("س", "سيئ", "جيد"), ("ترتيب", "أ", "ب")]
    assert judge_of(endpoint.url).preferences(pairs, "pairs") == [1.0, 0.0, 0.5]
    assert len(endpoint.log) == 4  # the second pair is the first one turned


def test_the_reference_judge():
    judge = judges.open_judge("evaluate.judge", Judge(kind="reference"))
    given = [
        Answered("س", "القاهرة.", ["القاهره"]),
        Answered("س", "مدينة القاهرة", ["القاهرة"]),
        Answered("س", "لا"),
    ]
    right, near, none = judge.scores(given, "exam")
    assert (right, none) == (1.0, None)
    assert near == pytest.approx(1 / 3)
    assert judges.open_judge("evaluate.judge", Judge(kind="none")) is None


def test_people_score_the_answers_they_were_shown(tmp_path, monkeypatch):
    settings = Judge(kind="people")
    monkeypatch.setattr(people, "VERDICTS", tmp_path / "verdicts.jsonl")
    with pytest.raises(Problem, match=r"verdicts.jsonl is not there: sample with another judge first"):
        judges.open_judge("sample.judge", settings)
    rows = [("س", "نعم", 1), ("س", "نعم", 0.5), ("س", "لا", None), ("ص", "لا", 0)]
    lines = [json.dumps(dict(zip(("question", "answer", "score"), row))) for row in rows]
    people.VERDICTS.write_text("\n".join([*lines, "", ""]), encoding="utf-8")
    judge = judges.open_judge("sample.judge", settings)
    given = [Answered(*one) for one in (("س", "نعم"), ("س", "لا"), ("ص", "لا"), ("ص", "نعم"))]
    assert judge.scores(given, "sample") == [0.75, None, 0.0, None]
    assert judge.report() == "2 answers with a score of people; 2 sampled ones without"
    for torn in ('{"question": "س"', '{"question": "س", "answer": "لا", "score": "جيد"}', "[]", "{}",
            '{"question": "س", "answer": "لا", "score": true}', '{"question": [], "answer": "", "score": 1}',
            '{"question": "س", "answer": "لا", "score": NaN}'):  # fmt: skip
        people.VERDICTS.write_text("\n".join([lines[0], torn]), encoding="utf-8")
        with pytest.raises(Problem, match="line 2 is no verdict"):
            judges.open_judge("sample.judge", settings)


def test_a_judge_needs_its_own_keys():
    for given, said in (
        ({"kind": "chat", "model": "m", "max_tokens": 8}, "needs `base_url`"),
        ({"kind": "reference", "model": "m"}, "takes no `model`"),
        ({"kind": "reward", "model": "m"}, "needs `max_length`"),
        ({"kind": "chat", "model": "m", "max_tokens": 8, "base_url": "localhost"}, "base_url"),
    ):
        with pytest.raises(ValidationError, match=said):
            Judge(**given)


def test_a_reward_model_of_a_folder_scores_each_answer_alone(tmp_path):
    from transformers import AutoTokenizer, Qwen3Config, Qwen3ForSequenceClassification

    torch.manual_seed(0)
    shape = {"vocab_size": 4096, "hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1,
        "num_attention_heads": 2, "num_key_value_heads": 1, "head_dim": 16, "num_labels": 1}  # fmt: skip
    Qwen3ForSequenceClassification(Qwen3Config(**shape)).save_pretrained(tmp_path)
    tokenizer = AutoTokenizer.from_pretrained(ROOT / "models/nano")
    tokenizer.save_pretrained(tmp_path)
    settings = Judge(kind="reward", model=str(tmp_path), max_length=16)
    judge = judges.open_judge("evaluate.judge", settings)
    given = [Answered("ما عاصمة مصر؟", text) for text in ("القاهرة", "لا أعرف " * 20, "تونس")]
    together = judge.scores(given, "pairs")
    assert together == pytest.approx([judge.scores([one], "pairs")[0] for one in given], abs=1e-5)
    assert len(set(together)) == 3
    assert judge.cut == 2
    for model, said in (
        (tmp_path / "none", "neither a folder nor in the hub's cache"),
        (ROOT / "models/nano", "nano"),
    ):
        with pytest.raises(Problem, match=said):
            judges.open_judge("evaluate.judge", Judge(kind="reward", model=str(model), max_length=16))


def test_a_reward_model_with_code_of_its_own_is_refused_without_a_question(tmp_path, monkeypatch):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(ROOT / "models/nano" / name, tmp_path)
    evil = {"AutoConfig": "evil.Config", "AutoModelForSequenceClassification": "evil.Model"}
    write_json(tmp_path / "config.json", {"model_type": "evil", "auto_map": evil})
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'run')!r}, 'w')", encoding="utf-8")
    monkeypatch.setattr("builtins.input", lambda *asked: "y")
    with pytest.raises(Problem, match="contains custom code"):
        judges.open_judge("evaluate.judge", Judge(kind="reward", model=str(tmp_path), max_length=16))
    assert not (tmp_path / "run").exists()


def test_llama_cpps_server_is_asked_and_asked_no_more(tmp_path, monkeypatch):
    """The endpoint that most people have: llama.cpp, here with nano, which can judge nothing but answers."""
    import xllamacpp

    from tools.export import gguf_file

    monkeypatch.setenv("DVC_ROOT", str(tmp_path))
    monkeypatch.delenv(chat.KEY, raising=False)
    gguf_file.write(ROOT / "models/nano", tmp_path / "nano.gguf", "f16")
    asked = xllamacpp.CommonParams()
    asked.model.path, asked.n_ctx, asked.n_parallel = str(tmp_path / "nano.gguf"), 2048, 1
    asked.warmup, asked.verbosity, asked.chat_template = False, -1, "chatml"
    server = xllamacpp.Server(asked)
    judge = judge_of(f"{server.listening_address}/v1")
    questions = [judging.messages("أجب بإيجاز", f"ما جمع {word}؟") for word in ("كتاب", "قلم")]
    said = judge.verdicts(questions, lambda text: text or None, "nano")
    assert len(said) == 2
    assert judge.counts["requests"] == 2
    assert judge.counts["completion_tokens"] > 0
    again = judge_of("http://127.0.0.1:9/v1")
    assert again.verdicts(questions, lambda text: text or None, "nano") == said
    assert again.counts["requests"] == 0


# --- tools.judged -------------------------------------------------------------------------------------------


def predictions(folder, name: str, answers: dict[str, str]) -> None:
    asked = TEMPLATES["chatml"].render([{"role": "user", "content": "سؤال"}])
    rows = [
        {"benchmark": "held-out", "id": one, "question": asked.replace("سؤال", f"سؤال {one}"), "answer": text,
            "tokens": 3}
        for one, text in answers.items()
    ]  # fmt: skip
    parquet.write_table(pa.Table.from_pylist(rows), folder / f"{name}.parquet")


def test_two_checkpoints_are_compared_prompt_by_prompt(endpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(judged, "PREDICTIONS", tmp_path)
    predictions(tmp_path, "dpo", {"a": "جيد", "b": "جيد", "c": "نفسه", "d": "سيئ"})
    predictions(tmp_path, "sft", {"a": "سيئ", "b": "سيئ", "c": "نفسه", "d": "جيد", "e": "x"})

    def reply(messages):
        asked = messages[1]["content"]
        assert "im_start" not in asked
        return "1" if asked.index("جيد") < asked.index("سيئ") else "2"

    endpoint.reply = reply
    lines = list(judged.duel(judge_of(endpoint.url), "dpo", "sft", "held-out"))
    assert lines[0] == "dpo against sft on held-out: 4 prompts"
    assert lines[1].startswith("win rate 0.625, 95 % ")
    assert lines[1].endswith("(2 won, 1 tied, 1 lost)")
    assert len(endpoint.log) == 6  # equal answers need no judge
    with pytest.raises(Problem, match="holds no answers in words of alrage: it has held-out"):
        list(judged.duel(judge_of(endpoint.url), "dpo", "sft", "alrage"))


def test_a_comparison_shows_what_the_judge_says_beside_the_scores(endpoint, tmp_path, monkeypatch):
    """Between revisions as between checkpoints: the answers are read from where the scores are."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(judged, "of_pairs", lambda: judge_of(endpoint.url))
    (tmp_path / "data/predictions").mkdir(parents=True)
    (tmp_path / "data/feedback").mkdir()
    predictions(tmp_path / "data/predictions", "dpo", {"a": "جيد", "b": "جيد جدا", "c": "نفسه", "d": "سيئ"})
    predictions(tmp_path / "data/predictions", "sft", {"a": "سيئ", "b": "سيئ", "c": "نفسه", "d": "؟"})
    vote = {"prompt": [{"role": "user", "content": "س"}], "vote": "first",
        "answers": [{"answer": "جيد"}, {"answer": "سيئ"}]}  # fmt: skip
    votes = f"{json.dumps(vote)}\n{json.dumps(vote)[:40]}"
    (tmp_path / "data/feedback/preferences.jsonl").write_text(votes, encoding="utf-8")

    def reply(messages):
        asked = messages[1]["content"]
        if "؟" in asked:
            return "لا أدري"
        return "1" if asked.index("جيد") < asked.index("سيئ") else "2"

    endpoint.reply = reply
    sides = (("workspace", "sft"), ("workspace", "dpo"))
    [header, row], notes = compare.by_judge(*sides, "held-out")
    assert header[:6] == ["judged", "n", "B won", "ties", "A won", "B's win rate"]
    assert row[:6] == ["held-out", "3", "2", "1", "0", "0.833"]
    assert notes.splitlines()[:3] == [
        "- B's answers are +0 characters longer (median)",
        "- 1 prompts without a verdict, or asked otherwise, are left out",
        "- the judge beside people: 1 votes; both decided 1; agreement 1.000, 95 % 0.206 … 1.000",
    ]
    asked = len(endpoint.log)
    list(compare.by_judge(*sides, "held-out"))
    assert len(endpoint.log) == asked


def test_a_judge_that_likes_length_is_seen_through():
    """Wins that length explains are none at equal length."""
    rng = np.random.default_rng(0)
    differences = rng.normal(40, 40, 4000)
    likely = 1 / (1 + np.exp(-2 * np.tanh(differences / np.std(differences))))
    wins = (rng.random(4000) < likely).astype(float)
    assert np.mean(wins) > 0.7
    assert judged.length_controlled(list(wins), list(differences)) == pytest.approx(0.5, abs=0.05)
    assert judged.length_controlled([1.0] * 20, [0] * 20) > 0.95
    assert judged.length_controlled([0.5] * 20, list(range(20))) == pytest.approx(0.5)


def test_a_judge_stands_beside_the_votes(endpoint, tmp_path, monkeypatch):
    monkeypatch.setattr(judged, "VOTES", tmp_path / "votes.jsonl")
    rows = [
        {"prompt": [{"role": "user", "content": f"س{i}"}], "vote": vote,
            "answers": [{"answer": first}, {"answer": second}]}
        for i, (first, second, vote) in enumerate(
            [("جيد", "سيئ", "first"), ("سيئ", "جيد", "first"), ("سيئ", "جيد", "second"),
                ("جيد", "سيئ", "tie")]
        )
    ]  # fmt: skip
    (tmp_path / "votes.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    endpoint.reply = lambda messages: (
        "1" if messages[1]["content"].index("جيد") < messages[1]["content"].index("سيئ") else "2"
    )
    lines = list(judged.beside_votes(judge_of(endpoint.url)))
    assert lines[0] == "4 votes; both decided 3"
    assert lines[1].startswith("agreement 0.667, 95 % ")
    assert lines[2] == "of 1 ties of people 0 are ties of the judge"
