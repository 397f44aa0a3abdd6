"""Tables as people have them: whatever wrote a file, its rows are read, or one line says what to do."""

import bz2
import gzip
import json
import zipfile

import datasets
import pandas
import pyarrow as pa
import pytest
from pyarrow import feather

from stages import fetch
from stages.settings.errors import Problem
from stages.settings.params import Own, Rows

TABLE = [{"q": "ما عاصمة مصر، وأين تقع؟", "a": "القاهرة؛ على النيل"}, {"q": "كم 2 + 2؟", "a": "4"}]
COLUMNS = {"prompt": "q", "completion": "a"}
FRAME = pandas.DataFrame(TABLE)
LINES = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in TABLE)
CSV = FRAME.to_csv(index=False)


def taken(path, role="instructions", **source):
    """The rows that fetch makes of a file, and what it says of them."""
    source.setdefault("columns", COLUMNS)
    key = f"mixtures.demo.{role}.mine"
    rows, facts = fetch.published(key, role, "mine", Own(path=str(path), **source), Rows())
    return list(rows), facts


def pairs(rows):
    return [{"q": row["prompt"][-1]["content"], "a": row["completion"][0]["content"]} for row in rows]


FILES = {  # name: content, what is said of it
    "a.csv": (CSV.encode("utf-8-sig"), ""),
    "semicolons.csv": (FRAME.to_csv(index=False, sep=";").encode(), "delimiter ;"),
    "tabs.csv": (FRAME.to_csv(index=False, sep="\t").encode(), "delimiter tab"),
    "a.tsv": (FRAME.to_csv(index=False, sep="\t").encode(), ""),
    "excel.csv": (FRAME.to_csv(index=False, sep=";").encode("cp1256"), "cp1256, delimiter ;"),
    "unicode.txt.csv": (FRAME.to_csv(index=False, sep="\t").encode("utf-16"), "utf-16, delimiter tab"),
    "marked.csv": (CSV.encode("utf-16-le"), "utf-16-le"),
    "big.csv": (CSV.encode("utf-16-be"), "utf-16-be"),
    "OLD.CSV": (CSV.replace("\n", "\r\n").encode("cp1256"), "cp1256"),
    "mac.csv": (CSV.replace("\n", "\r").encode(), ""),
    "packed.csv.gz": (gzip.compress(CSV.encode()), ""),
    "a.jsonl": (LINES.encode(), ""),
    "a.ndjson": (LINES.encode("utf-8-sig"), ""),
    "escaped.JSONL": (FRAME.to_json(orient="records", lines=True).encode(), ""),
    "powershell.jsonl": (LINES.encode("utf-16"), "utf-16"),
    "windows.jsonl": (LINES.encode("cp1256"), "cp1256"),
    "packed.jsonl.gz": (gzip.compress(LINES.encode()), ""),
    "packed.jsonl.bz2": (bz2.compress(LINES.encode()), ""),
    "list.json": (json.dumps(TABLE, ensure_ascii=False).encode(), ""),
    "indented.json": (json.dumps(TABLE, indent=1).encode(), ""),
    "lines.json": (LINES.encode(), ""),
    "data.json": (json.dumps({"version": "1", "data": TABLE}).encode(), ""),
    "train.json": (json.dumps({"train": TABLE}, indent=2, ensure_ascii=False).encode("utf-16"), "utf-16"),
    "pandas.json": (FRAME.to_json().encode(), ""),
    "index.json": (FRAME.to_json(orient="index").encode(), ""),
    "named.json": (json.dumps(dict(zip("xy", TABLE))).encode(), ""),
    "split.json": (FRAME.to_json(orient="split").encode(), ""),
    "table.json": (FRAME.to_json(orient="table").encode(), ""),
    "lists.json": (json.dumps(FRAME.to_dict("list")).encode(), ""),
}  # fmt: skip


@pytest.mark.parametrize("name", FILES)
def test_a_file_is_read_whatever_wrote_it(tmp_path, name):
    content, said = FILES[name]
    (tmp_path / name).write_bytes(content)
    rows, facts = taken(tmp_path / name)
    assert pairs(rows) == TABLE
    assert facts["files"] == {name: said}


def excel(path, *sheets):
    """A workbook as Excel's own file format has it: a zip of XML."""
    main = "http://schemas.openxmlformats.org/spreadsheetml/2006/main"
    kinds = "http://schemas.openxmlformats.org/officeDocument/2006/relationships"
    names = [f"<sheet name='{name}' sheetId='{i}' r:id='r{i}'/>" for i, (name, _) in enumerate(sheets, 1)]
    links = [
        f"<Relationship Id='r{i}' Type='{kinds}/worksheet' Target='worksheets/sheet{i}.xml'/>"
        for i in range(1, len(sheets) + 1)
    ]
    package = "http://schemas.openxmlformats.org/package/2006/relationships"
    files = {
        "_rels/.rels": f"<Relationships xmlns='{package}'><Relationship Id='r' Type='{kinds}/officeDocument' "
        "Target='xl/workbook.xml'/></Relationships>",
        "xl/workbook.xml": f"<workbook xmlns='{main}' xmlns:r='{kinds}'><sheets>{''.join(names)}</sheets>"
        "</workbook>",
        "xl/_rels/workbook.xml.rels": f"<Relationships xmlns='{package}'>{''.join(links)}</Relationships>",
    }
    for i, (_, rows) in enumerate(sheets, 1):
        cells = "".join(f"<row>{''.join(map(excel_cell, row))}</row>" for row in rows)
        files[f"xl/worksheets/sheet{i}.xml"] = (
            f"<worksheet xmlns='{main}'><sheetData>{cells}</sheetData></worksheet>"
        )
    with zipfile.ZipFile(path, "w") as archive:
        for name, text in files.items():
            archive.writestr(name, f"<?xml version='1.0' encoding='UTF-8'?>{text}")


def excel_cell(value):
    if isinstance(value, str):
        return f"<c t='inlineStr'><is><t>{value}</t></is></c>"
    return f"<c><v>{value}</v></c>"


def test_binary_tables_are_read(tmp_path):
    table = [["q", "a"], [TABLE[0]["q"], TABLE[0]["a"]], [TABLE[1]["q"], 4]]
    excel(tmp_path / "a.xlsx", ("الأسئلة", table), ("ملاحظات", [["x"]]))
    feather.write_feather(FRAME, str(tmp_path / "a.feather"))
    with pa.output_stream(str(tmp_path / "a.jsonl.zst")) as file:
        file.write(LINES.encode())
    for name, said in (("a.xlsx", "sheet الأسئلة, and not ملاحظات"), ("a.feather", ""), ("a.jsonl.zst", "")):
        rows, facts = taken(tmp_path / name)
        assert pairs(rows) == TABLE, name
        assert facts["files"] == {name: said}
    (tmp_path / "b.xlsx").write_bytes(b"PK cut")
    with pytest.raises(Problem, match=r"b.xlsx cannot be read as xlsx: "):
        taken(tmp_path / "b.xlsx")


def test_a_folder_of_save_to_disk_is_read(tmp_path):
    data = datasets.Dataset.from_list(TABLE)
    data.save_to_disk(tmp_path / "one")
    assert pairs(taken(tmp_path / "one")[0]) == TABLE
    datasets.DatasetDict({"train": data, "test": data}).save_to_disk(tmp_path / "splits")
    rows, facts = taken(tmp_path / "splits")
    assert [row["split"] for row in rows] == ["validation", "validation", "train", "train"]
    assert facts["left_out"] == {}


def test_the_answers_of_squad_are_read(tmp_path):
    item = {"id": "7", "question": "ما عاصمة مصر؟", "answers": [{"text": "القاهرة", "answer_start": 0}]}
    article = {"title": "مصر", "paragraphs": [{"context": "القاهرة عاصمة مصر.", "qas": [item]}]}
    (tmp_path / "a.json").write_text(json.dumps({"version": "1.1", "data": [article]}), encoding="utf-8")
    columns = {"prompt": ["context", "question"], "completion": "answers"}
    ((row,), facts) = taken(tmp_path / "a.json", columns=columns)
    assert row["prompt"][0]["content"] == "القاهرة عاصمة مصر.\n\nما عاصمة مصر؟"
    assert row["completion"][0]["content"] == "القاهرة"
    assert facts["unread"] == ["id", "title"]
    columns = {"question": "question", "context": "context", "answer": "answers.text"}
    ((row,), _) = taken(tmp_path / "a.json", "benchmarks", columns=columns)
    assert (row["references"], row["context"]) == (["القاهرة"], "القاهرة عاصمة مصر.")
    article["paragraphs"][0].pop("context")
    (tmp_path / "a.json").write_text(json.dumps({"data": [article]}), encoding="utf-8")
    with pytest.raises(Problem, match=r"has paragraphs, but not as SQuAD has them: KeyError\('context'\)"):
        taken(tmp_path / "a.json")


def test_what_a_file_does_not_tell_can_be_given(tmp_path):
    bare = "".join(f"{row['q']}|{row['a']}\n" for row in TABLE).encode("iso8859-6", "replace")
    (tmp_path / "a.csv").write_bytes(bare)
    with pytest.raises(
        Problem, match=r"there is no such column, but .*القاهرة.*; where the first line is a row, name"
    ):
        taken(tmp_path / "a.csv", encoding="iso8859-6")
    rows, _ = taken(tmp_path / "a.csv", encoding="iso8859-6", header=["q", "a"])
    assert pairs(rows) == TABLE
    (tmp_path / "b.csv").write_bytes("q,a\nпривет,мир\n".encode("cp1251"))
    with pytest.raises(
        Problem, match=r"b.csv is neither UTF-8 nor UTF-16 nor Arabic in Windows-1256: name its"
    ):
        taken(tmp_path / "b.csv")
    with pytest.raises(Problem, match=r"b.csv is not in the encoding that it is read in .*ascii.*: name its"):
        taken(tmp_path / "b.csv", encoding="ascii")
    with pytest.raises(ValueError, match="'hex' is no encoding that Python knows"):
        taken(tmp_path / "b.csv", encoding="hex")


@pytest.mark.parametrize("bad", ['س,"ج', 'س,"ج"د', 'س,"ج\nس,"ج"'])
def test_a_quote_that_does_not_close_takes_no_rows_with_it(tmp_path, bad):
    lines = ["q,a", *["س,ج"] * 50, bad, *['س,"ج"'] * 150]
    (tmp_path / "a.csv").write_text("\n".join(lines), encoding="utf-8")
    with pytest.raises(
        Problem, match=r"a.csv: the row that begins in line 52 opens a quote that does not close"
    ):
        taken(tmp_path / "a.csv")
    rows, _ = taken(tmp_path / "a.csv", quote="")
    assert len(rows) == 201 + bad.count("\n")


def test_cells_too_many_and_columns_twice_are_seen(tmp_path):
    (tmp_path / "a.csv").write_text("q,a,,\nس,ج,,\nس,ج\nس,ج,,,د\n", encoding="utf-8")
    rows, facts = taken(tmp_path / "a.csv")
    assert [row.get("fault") for row in rows] == [None, None, "malformed"]
    assert facts["unread"] == []
    (tmp_path / "a.csv").write_text("q,a,a\nس,ج,د\n", encoding="utf-8")
    with pytest.raises(Problem, match=r"a.csv has two columns of the name 'a': rename one"):
        taken(tmp_path / "a.csv")


# --- folders ------------------------------------------------------------------------------------------------


def test_all_tables_of_a_folder_are_read_and_the_rest_is_named(tmp_path, capsys):
    (tmp_path / "sub").mkdir()
    for name in ("a.jsonl", "sub/B.JSONL", "twin.jsonl"):
        (tmp_path / name).write_text(LINES, encoding="utf-8")
    for name in ("b.csv", "twin.csv"):
        (tmp_path / name).write_text(CSV, encoding="utf-8")
    for name in ("c.docx", "README.md", ".gitignore"):
        (tmp_path / name).write_text("x", encoding="utf-8")
    rows, facts = taken(tmp_path)
    assert pairs(rows) == TABLE * 4
    assert facts["left_out"] == {"c.docx": "no table", "twin.csv": "twin.jsonl is the same table"}
    said = fetch.summary("instructions", "mine", facts, {})
    assert said.split("\n       ") == [
        "fetch: instructions: mine: 8 of 8 rows",
        "train and validation by prompt: a.jsonl, b.csv, sub/B.JSONL, twin.jsonl",
        "left out: c.docx (no table), twin.csv (twin.jsonl is the same table)",
    ]
    rows, facts = taken(tmp_path, files="sub/*")
    assert list(facts["files"]) == ["sub/B.JSONL"]
    assert facts["left_out"]["b.csv"] == "not sub/*"
    with pytest.raises(Problem, match=r"mine.files is \*.parquet: none of .* is so named"):
        taken(tmp_path, files=["*.parquet"])


@pytest.mark.parametrize(
    ("role", "splits"),
    [
        ("benchmarks", {"x/test-00000-of-00001.parquet": "test", "x/dev-00000-of-00001.parquet": "dev"}),
        ("benchmarks", {"data/train-00000-of-00001.parquet": "test"}),
        ("instructions", {"data/train-0.parquet": None, "data/train-1.parquet": None}),
        ("preferences", {"data/train-0.parquet": "train", "data/test-0.parquet": "validation"}),
        ("preferences", {"quora_classification.jsonl": None}),
        ("instructions", {"driving-test.jsonl": None, "train.jsonl": None}),
        ("instructions", {"train-stations.csv": None, "test_drives.csv": None}),
        ("instructions", {"arcd-train.json": "train", "arcd-test.json": "validation", "other.json": "train"}),
        ("instructions", {"train/a.jsonl": "train", "val/a.jsonl": "validation", "val-b/a.jsonl": "train"}),
        ("instructions", {"train-00000-of-00001-0123456789abcdef.parquet": "train", "dev.csv": "validation"}),
    ],
)  # fmt: skip
def test_splits_come_from_the_names_of_files(role, splits):
    assert fetch.splits_of(role, list(splits)) == splits
