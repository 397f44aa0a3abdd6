"""What is trained of conversations and of raw text: from the columns of a table to the labels of a pack."""

import json

import pyarrow as pa
import pytest
from datasets import Dataset
from pyarrow import parquet
from tokenizers import Tokenizer
from tokenizers.processors import TemplateProcessing

from stages import fetch, sft
from stages.evaluation import candidate, heldout
from stages.gate import documents, leaks, quality
from stages.sample import before_last
from stages.settings.params import Mixture, Own
from stages.settings.reader import read
from stages.sources import layouts
from stages.sources.layouts import document, last_answer_alone, turn
from stages.text.prompts import TEMPLATES
from stages.training import looks, supervised
from tests.conftest import ROOT
from tests.test_catalog import messages, own

NANO = ROOT / "models/nano/tokenizer.json"
TALK = messages(
    ("system", "أجب بإيجاز"), ("assistant", "أهلا، كيف أساعدك؟"), ("user", "ما عاصمة مصر؟"),
    ("assistant", "القاهرة"), ("user", "وما عاصمة تونس؟"), ("assistant", "تونس"), ("assistant", "العاصمة"),
    ("user", "شكرا"),
)  # fmt: skip
STORY = "كان في قديم الزمان ملك يحب العلم. وكان له ثلاثة أبناء.\n\n" * 12
ENGLISH = "This is a page in English, and there is nothing else in it that I know of. " * 5


def examined(rows, template="chatml", longest=64, tokenizer=NANO, benchmark=(), **gate):
    params = read(ROOT / "params.yaml")
    runs = leaks.build(benchmark, 0.8) if benchmark else leaks.build(ROOT / "nowhere", 0.8)
    settings = quality.Settings(
        "instructions", params.text, params.prompt.model_copy(update={"max_length": longest}),
        TEMPLATES[template], params.format.model_copy(update=gate), str(tokenizer), runs,
    )  # fmt: skip
    common = {"source": "s", "fault": None, "split": None}
    rows = [common | {"id": f"s:{i}"} | row for i, row in enumerate(rows)]
    return quality.Examiner(settings).examine("s", rows)


def spans(row, tokenizer=NANO):
    """The texts that are trained of a row."""
    known = Tokenizer.from_file(str(tokenizer))
    edges = zip(row["trained"][::2], row["trained"][1::2])
    return [known.decode(row["input_ids"][a:b], skip_special_tokens=False) for a, b in edges]


@pytest.fixture
def marked(tmp_path):
    """A tokenizer that begins every text with a token of its own, as those of llama and gemma do."""
    tokenizer = Tokenizer.from_file(str(NANO))
    begin = ("<|im_start|>", tokenizer.token_to_id("<|im_start|>"))
    tokenizer.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[begin])
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path / "tokenizer.json"


# --- conversations ------------------------------------------------------------------------------------------


def test_every_answer_of_a_conversation_is_trained_or_the_last_alone(tmp_path):
    whole, last = (
        taken_rows(tmp_path, {"messages": "m"}, {"m": TALK}, train_on=which)[0] for which in ("all", "last")
    )
    assert whole["prompt"] == TALK[:3]  # what opens a conversation answers nobody
    assert whole["completion"] == TALK[3:7]
    assert (last["prompt"], last["completion"]) == (TALK[:6], TALK[6:7])
    history = {"q": "وما عاصمة تونس؟", "a": "تونس", "h": [["ما عاصمة مصر؟", "القاهرة"]]}
    columns = {"prompt": "q", "completion": "a", "history": "h"}
    (row,) = taken_rows(tmp_path, columns, history)
    assert [one["content"] for one in row["completion"]] == ["القاهرة", "وما عاصمة تونس؟", "تونس"]
    assert last_answer_alone({"fault": "empty"}) == {"fault": "empty"}
    with pytest.raises(ValueError, match=r"preferences.x.train_on is 'last': it is for instructions and"):
        Mixture(instructions={"x": 1}, preferences={"x": {"train_on": "last"}}, continued={}, benchmarks={})


def taken_rows(folder, columns, *table, train_on="all"):
    (folder / "own.jsonl").write_text("\n".join(json.dumps(row) for row in table), encoding="utf-8")
    wanted = Own(path=str(folder / "own.jsonl"), columns=columns, train_on=train_on)
    return list(fetch.published("mixtures.m.instructions.own", "instructions", "own", wanted, wanted)[0])


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("begins", [False, True])
def test_every_trained_span_is_an_answer_with_its_stop_token(template, begins, marked):
    tokenizer, stop = marked if begins else NANO, TEMPLATES[template].stop
    row = {"prompt": TALK[:3], "completion": TALK[3:7]}
    found = examined([row, last_answer_alone(row)], template, 128, tokenizer)
    all_of_it, last = found.rows.to_pylist()
    assert spans(all_of_it, tokenizer) == [answer + stop for answer in ("القاهرة", "تونس", "العاصمة")]
    assert spans(last, tokenizer) == ["العاصمة" + stop]
    same = ("prompt", "completion", "input_ids")
    assert [all_of_it[name] for name in same] == [last[name] for name in same]
    assert all_of_it["prompt"] == TEMPLATES[template].render(TALK[:6])
    assert len(set(found.exact)) == len(set(found.prompts)) == 1  # of two the first is kept


def test_a_conversation_that_is_too_long_keeps_the_turns_that_fit():
    talk = [one for i in range(6) for one in turn("user", f"عد {i}") + turn("assistant", "واحد اثنان ثلاثة")]
    row = {"prompt": talk[:1], "completion": talk[1:]}
    whole = examined([row], longest=1000).rows.to_pylist()[0]
    ends = whole["trained"][1::2]
    for longest, kept in ((ends[5], 6), (ends[5] - 1, 5), (ends[2], 3), (ends[0], 1)):
        (found,) = examined([row], longest=longest).rows.to_pylist()
        assert (found["reason"], found["cut"], found["tokens"]) == ("", 6 - kept, ends[kept - 1])
        assert found["input_ids"] == whole["input_ids"][: ends[kept - 1]]
        assert found["trained"] == whole["trained"][: 2 * kept]
        rendered = TEMPLATES["chatml"].render(before_last(row, kept))  # what `sample` asks again
        assert (found["prompt"], found["completion"]) == (rendered, "واحد اثنان ثلاثة<|im_end|>")
    (none,) = examined([row], longest=ends[0] - 1).rows.to_pylist()
    (alone,) = examined([last_answer_alone(row)], longest=ends[5] - 1).rows.to_pylist()
    assert none["reason"] == alone["reason"] == "too_long"
    end = {"prompt": talk[:1], "completion": [*talk[1:3], *turn("assistant", "")]}
    assert examined([end]).rows.to_pylist()[0]["reason"] == "empty"


# --- raw text -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("template", TEMPLATES)
@pytest.mark.parametrize("begins", [False, True])
def test_a_document_is_trained_whole_in_pieces_that_end_between_paragraphs(template, begins, marked):
    tokenizer = marked if begins else NANO
    (row,) = examined([document(STORY)], template, 64, tokenizer).rows.to_pylist()
    assert (row["reason"], row["prompt"]) == ("", "")
    texts = [piece["completion"] for piece in row["pieces"]]
    assert "".join(texts) == STORY.strip() + "<|endoftext|>"
    assert len(texts) > 3
    assert all(text.endswith("\n\n") for text in texts[:-1])
    known = Tokenizer.from_file(str(tokenizer))
    start = known.encode("").ids
    for text, piece in zip(texts, row["pieces"]):
        assert len(piece["input_ids"]) <= 64
        assert piece["input_ids"][: len(start)] == start
        assert known.decode(piece["input_ids"][begins:], skip_special_tokens=False) == text
        assert piece["trained"] == [1, len(piece["input_ids"])]  # nothing stands before the first


@pytest.mark.parametrize(
    ("text", "begins", "ends"),
    [
        ("كلمة " * 200, "كلمة", "كلمة"),  # no sentence ends: between words
        ("بيت من الشعر طويل\n" * 40, "بيت من", "طويل\n"),
        ("هذه جملة قصيرة هنا. " * 40, "هذه جملة", "هنا."),
        ("س" * 500, "س", "س"),  # one word of many
        ("😀" * 300, "😀", "😀"),  # several tokens to a character, none of which is torn
    ],
)
def test_a_piece_ends_where_the_text_does_best(text, begins, ends):
    (row,) = examined([document(text)], min_arabic=0).rows.to_pylist()
    texts = [piece["completion"] for piece in row["pieces"]]
    assert len(texts) > 1
    assert "".join(texts) == text.strip() + "<|endoftext|>"
    assert all(one.rstrip(" ").endswith(ends) for one in texts[:-1])
    assert all(one.lstrip(" ").startswith(begins) for one in texts)
    assert len(texts[-1]) > len("<|endoftext|>")


def test_documents_are_told_apart_and_checked_as_all_data(tmp_path):
    question = "ما اسم الملك الذي كان له ثلاثة أبناء في قديم الزمان كلهم"
    items = [layouts.question(question, ["نعم", "لا"], 0) | {"id": "0", "split": "test"}]
    parquet.write_table(pa.Table.from_pylist(items, layouts.SCHEMAS["benchmarks"]), tmp_path / "exam.parquet")
    texts = [STORY, STORY.replace("،", ""), STORY + question, ENGLISH, "", "نص <|im_end|> آخر"]
    found = examined([document(text) for text in texts], benchmark=tmp_path, validation=0.0001)
    reasons = [row["reason"] for row in found.rows.to_pylist()]
    assert reasons == ["", "", "leak", "wrong_language", "empty", "special_token"]
    assert found.exact[0] == found.exact[1] != found.exact[2]
    assert len(set(found.prompts)) == 5  # each is held out, or not, by itself


def test_rows_of_documents_become_rows_of_pieces():
    rows = examined([document(STORY), document("نص قصير")]).rows
    found = documents.in_pieces(rows).to_pylist()
    count = len(rows["pieces"][0])
    assert [row["id"] for row in found] == [*(f"s:0.{i + 1}" for i in range(count)), "s:1"]
    assert [row["tokens"] for row in found] == [len(row["input_ids"]) for row in found]
    talk = examined([{"prompt": TALK[:3], "completion": TALK[3:4]}]).rows
    assert documents.in_pieces(talk) is talk


def test_columns_of_raw_text(tmp_path):
    columns = {"text": ["title", "body"]}
    rows, _ = own(tmp_path, columns, {"title": "عنوان", "body": "نص"}, {"title": None, "body": ""})
    assert (rows[0]["prompt"], rows[0]["completion"]) == ([], turn("text", "عنوان\n\nنص"))
    assert rows[1]["fault"] == "empty"


# --- trained and looked at ----------------------------------------------------------------------------------


def formatted(rows, longest=64):
    found = (documents.in_pieces(examined([row], longest=longest).rows) for row in rows)
    return [row for table in found for row in table.to_pylist()]


def test_trained_tokens_of_a_pack_are_those_of_its_rows(inside, tmp_path):
    params = read()
    talk = {"prompt": TALK[:3], "completion": TALK[3:7]}
    rows = formatted([document(STORY), talk], params.prompt.max_length)
    for name in ("train", "validation"):
        parquet.write_table(pa.Table.from_pylist(rows), tmp_path / f"{name}.parquet")
    trainer = supervised.build(params, sft.start(params), tmp_path / "train.parquet", 1, 2e-3)
    trained = [one for row in rows for one in spans(row)]
    seen = []
    for batch in trainer.get_train_dataloader():
        ids, labels = batch["input_ids"][0].tolist(), batch["labels"][0].tolist()
        seen += [trainer.processing_class.decode(ids[a:b]) for a, b in supervised.spans(labels)]
    assert sorted(seen) == sorted(trained)
    measured = trainer.evaluate()
    assert set(measured) == {"eval_loss", "eval_stop_probability"}
    alone = [row for row in rows if not row["prompt"]]
    trainer.eval_dataset = trainer.eval_dataset.select(range(len(alone)))
    assert set(trainer.evaluate()) == {"eval_loss"}  # documents end in no stop token of the template
    assert looks.Answers("test", trainer, 1, tmp_path).prompts == []


def test_held_out_loss_is_of_all_that_is_trained(inside):
    model = candidate.load("base", read(), None)
    (row,) = formatted([{"prompt": TALK[:3], "completion": TALK[3:7]}], 128)
    held, stops = heldout.score_texts(model, [row])
    answers, rendered = ("القاهرة", "تونس", "العاصمة"), TEMPLATES["chatml"]
    asked = [(rendered.render(TALK[:place]), answer) for place, answer in zip((3, 5, 6), answers)]
    assert [one.logp for one in held] == pytest.approx([one.logp for one in model.score(asked, "test")], 1e-5)
    assert [one.size for one in held] == [len(answer.encode()) for answer in answers]
    ends = model.score([(prompt + answer, "<|im_end|>") for prompt, answer in asked], "test")
    assert stops == pytest.approx([one.logp for one in ends], 1e-5)
    pieces = formatted([document(STORY)])
    held, stops = heldout.score_texts(model, pieces)
    assert len(held) == len(pieces)
    assert stops == []
    assert set(heldout.text_scores(held, stops)) == {"validation_loss", "byte_perplexity"}
    assert heldout.health(model, []) == ({}, [])


def test_a_look_asks_the_last_turn_and_no_document():
    rows = formatted([{"prompt": TALK[:3], "completion": TALK[3:7]}, document("نص قصير")], 128)
    labels = [
        [token if a <= i < b else -100 for i, token in enumerate(row["input_ids"])]
        for row in rows
        for a, b in [(row["trained"][-2], row["trained"][-1])]
    ]
    held = Dataset.from_dict({"input_ids": [row["input_ids"] for row in rows], "labels": labels})
    ((prompt, answer),) = looks.prompts_and_answers(held)
    known = Tokenizer.from_file(str(NANO))
    assert known.decode(prompt, skip_special_tokens=False) == TEMPLATES["chatml"].render(TALK[:6])
    assert known.decode(answer, skip_special_tokens=False) == "العاصمة<|im_end|>"
