"""tools.compare on a small git and DVC repository with two commits and two experiments, whose predictions lie
on the remote alone.

Expected p-values are golden: scipy 1.17's binomtest and ttest_rel on the same counts, times Holm's factor by
hand.
"""

import re
import shutil
import sys
from pathlib import Path

import pyarrow as pa
import pytest
from conftest import ROOT, Workspace
from pyarrow import parquet

from tools import compare

ROW = {
    "rotation": 0, "group": "", "level": "", "country": "", "answer": "", "picked": None, "gold": None,
    "choices": None,
    "confidence": None, "logps": None, "tokens": None, "stopped": None, "leaked": False, "fault": None,
}  # fmt: skip
STAGE = """
stages:
  evaluate:
    cmd:
      - cp inputs/${method}.parquet data/predictions/dpo.parquet
      - cp inputs/sft.parquet data/predictions/sft.parquet
    deps: [inputs]
    params: [method]
    outs: [data/predictions/dpo.parquet, data/predictions/sft.parquet]
"""


def rows(benchmark: str, scores: list[float | None], start: int = 0, **columns) -> list[dict]:
    return [
        ROW
        | {
            "benchmark": benchmark,
            "id": f"{benchmark}-{n}",
            "question": f"سؤال {n}",
            "reference": f"جواب {n}",
            "score": score,
        }
        | {"subject": "النحو" if n < 100 else "الصرف"}
        | columns
        for n, score in enumerate(scores, start)
    ]


def binary(won: int, lost: int, n: int) -> tuple[list[float], list[float]]:
    """Scores of A and B: `won` items that only B has right, `lost` that only A has, of the rest every third
    wrong in both.
    """
    rest = [float(item % 3 > 0) for item in range(n - won - lost)]
    return [0.0] * won + [1.0] * lost + rest, [1.0] * won + [0.0] * lost + rest


def shares(change: float, n: int = 60) -> list[float]:
    return [0.2 + (item % 5) / 10 + change * (item % 3) for item in range(n)]


def write(path: Path, table: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(pa.Table.from_pylist(table), path)


def predictions(side: int) -> list[dict]:
    """What the first (0) and the second (1) commit hold."""
    odd = [
        *rows("mmlu", [1.0] * 4, 300, leaked=not side),
        *rows("mmlu", [1.0] * 3, 304, leaked=True),
        *rows("mmlu", [0.0] * 2, 307, fault="overwritten"),
        *rows("mmlu", [None if side else 1.0], 309),
        *rows("mmlu", [1.0] * 5, 400 + 100 * side),
        *rows("mmlu", [1.0] * 300, rotation=1 + side),
    ]
    return [
        *rows("skills", binary(30, 8, 400)[side]),
        *rows("mmlu", binary(12, 10, 300)[side]),
        *odd,
        *rows("qa", shares(0.02 * side)),
        *rows("changed", [1.0] * 10, question="قديم" if side else "جديد"),
        *rows("held-out", [None] * 6),
        *rows("acva" if side else "exams", [1.0]),
    ]


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> Workspace:
    """Commits `first` and `second`, and experiment `try-kto` of the second; the workspace holds another
    result, of orpo.
    """
    repo = object.__new__(Workspace)
    repo.path, repo.environment = tmp_path_factory.mktemp("compare") / "repo", {"PYTHONPATH": str(ROOT)}
    inputs, outputs, remote = (
        repo.path / "inputs",
        repo.path / "data/predictions",
        repo.path.parent / "remote",
    )
    shutil.copytree(
        ROOT / ".dvc", repo.path / ".dvc", ignore=shutil.ignore_patterns("cache", "tmp", "config.local")
    )
    (repo.path / "params.yaml").write_text("method: dpo\nsft:\n  epochs: 1\n")
    (repo.path / "dvc.yaml").write_text(STAGE)
    outputs.mkdir(parents=True)
    write(inputs / "sft.parquet", rows("skills", binary(30, 8, 400)[0]))
    write(inputs / "kto.parquet", [*rows("skills", binary(34, 8, 400)[1]), *rows("qa", shares(0.02))])
    write(inputs / "dpo.parquet", predictions(0))
    repo.under_git(remote)
    repo.run("dvc", "repro", "-q")
    repo.commit("first")
    repo.run("git", "tag", "first")
    write(inputs / "dpo.parquet", predictions(1))
    repo.run("dvc", "repro", "-q")
    repo.commit("second")
    repo.run("git", "tag", "second")
    repo.run("dvc", "exp", "run", "-q", "-n", "try-kto", "-S", "method=kto", "-S", "sft.epochs=2")
    repo.run("git", "reset", "-q", "--hard")
    write(outputs / "dpo.parquet", [*rows("skills", [0.0] * 200 + [1.0] * 200), *rows("qa", shares(-0.05))])
    # what `dvc push` does, in no time: a remote has the layout of the cache
    shutil.move(repo.path / ".dvc/cache/files", remote / "files")
    return repo


@pytest.fixture
def repo(original, monkeypatch) -> Workspace:
    monkeypatch.chdir(original.path)
    return original


def printed(capsys, *arguments: str) -> list[list[str]]:
    """The cells of every line."""
    compare.main(list(arguments))
    return [re.split(r" {2,}", line.strip()) for line in capsys.readouterr().out.splitlines() if line]


def test_two_commits(repo, capsys):
    title, header, *table = printed(capsys, "first", "second")
    assert title == ["A: dpo of first", "B: dpo of second"]
    assert header == ["benchmark", "n", "A", "B", "B − A", "95 % interval", "p (Holm)", "B is"]
    assert table == [
        ["mmlu", "300", "0.650 ± 0.028", "0.657 ± 0.027", "+0.007", "-0.025 … +0.038", "0.8318",
            "not significant"],
        ["qa", "60", "0.400 ± 0.018", "0.420 ± 0.018", "+0.020", "+0.016 … +0.024", "<0.0001", "better"],
        ["skills", "400", "0.623 ± 0.024", "0.677 ± 0.023", "+0.055", "+0.024 … +0.085", "0.0009", "better"],
        ["- changed: not compared: the benchmark changed, 10 questions or answers of the same id differ"],
        ["- held-out: 6 answers that nothing scored: --judge asks a judge"],
        ["- mmlu: left out: 7 leaked, 3 with a fault or without a score, unpaired 5 of A and 5 of B"],
        ["- exams: only in A"],
        ["- acva: only in B"],
    ]  # fmt: skip


def test_a_revision_and_the_workspace(repo, capsys):
    """REV_B is the workspace's own file, whatever dvc.lock says."""
    _, _, *table = printed(capsys, "second")
    assert [line[0] for line in table[:2]] == ["qa", "skills"]
    assert [line[-1] for line in table[:2]] == ["worse", "worse"]


def test_two_checkpoints_of_one_revision(repo, capsys):
    title, header, line, *_ = printed(capsys, "second", "--against", "sft")
    assert title == ["A: sft of second", "B: dpo of second"]
    assert dict(zip(header, line))["B − A"] == "+0.055"


def test_the_groups_that_differ_most_clearly(repo, capsys):
    """The name, which is Arabic, ends its line, where it cannot reorder numbers."""
    printed_lines = printed(capsys, "first", "second", "--by", "subject")
    by = [line for line in printed_lines if line[-1] in ("النحو", "الصرف")]
    assert [(line[0], line[1], line[6], line[-1]) for line in by] == [
        ("qa", "60", "<0.0001", "النحو"),
        ("skills", "100", "0.0019", "النحو"),  # 4 x 0.000472, which also stands among the p of all 400
        ("mmlu", "100", "1.0000", "النحو"),
        ("mmlu", "200", "1.0000", "الصرف"),
        ("skills", "300", "1.0000", "الصرف"),
    ]
    assert ["the clearest 5 of 5"] in printed_lines


def test_tournament(repo, capsys):
    _, header, *table = printed(capsys, "--tournament")
    assert header == ["experiment", "mean rank", "qa (60)", "skills (400)", "changed params"]
    assert table[:3] == [
        ["try-kto", "1.2", "0.420 ± 0.018 ▲", "0.680 ± 0.023 ▲", "method=kto, sft.epochs=2"],
        ["HEAD", "1.8", "0.420 ± 0.018 ▲", "0.677 ± 0.023"],
        ["workspace", "3.0", "0.350 ± 0.019 ▼", "0.500 ± 0.025 ▼"],
    ]


def test_tournament_of_named_revisions_in_markdown(repo, capsys):
    """A benchmark that not all have is shown, and does not count for the rank."""
    compare.main(["--tournament", "first", "second", "--markdown"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[2:7] == [
        "| experiment | mean rank | mmlu (300) | qa (60) | skills (400) | changed params |",
        "|---|---|---|---|---|---|",
        "| second | 1.0 | 0.657 ± 0.027 ▲ | 0.420 ± 0.018 ▲ | 0.677 ± 0.023 ▲ |  |",
        "| first | 2.0 | 0.650 ± 0.028 | 0.400 ± 0.018 ▼ | 0.623 ± 0.024 ▼ |  |",
        "| workspace | 3.0 | – | 0.350 ± 0.019 ▼ | 0.500 ± 0.025 ▼ |  |",
    ]
    assert (
        "- mmlu: left out: 7 leaked, 3 with a fault or without a score, unpaired 5 of first and 5 of second"
        in lines
    )


def test_a_workspace_that_holds_one_of_the_results_is_not_another(repo, tmp_path, monkeypatch, capsys):
    clone = repo.copy(tmp_path / "clone")
    write(clone.path / "data/predictions/dpo.parquet", predictions(1))
    monkeypatch.chdir(clone.path)
    _, _, *table = printed(capsys, "--tournament")
    assert [line[0] for line in table if line[0][0] != "-"] == ["try-kto", "HEAD"]


def test_the_command_prints_the_table_and_nothing_else(repo):
    done = repo.run(sys.executable, "-m", "tools.compare", "first", "second")
    assert done.stdout.startswith("A: dpo of first")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nosuch"], r"error: nosuch is no revision of git and no experiment: .*dvc exp list"),
        (
            ["first", "--checkpoint", "refine-ipo"],
            r"error: first has no data/predictions/refine-ipo.parquet; it has dpo, sft",
        ),
        (
            ["second", "workspace", "--checkpoint", "base"],
            r"error: second has no data/predictions/base.parquet",
        ),
        (
            ["workspace", "--checkpoint", "base"],
            r"error: data/predictions/base.parquet does not exist: `dvc repro` makes it",
        ),
    ],
)
def test_errors_are_one_line_that_names_the_cure(repo, arguments, message):
    with pytest.raises(SystemExit, match=message) as error:
        compare.main(arguments)
    assert "\n" not in str(error.value)


def test_what_was_never_pushed(repo, tmp_path, monkeypatch):
    clone = repo.copy(tmp_path / "clone")
    clone.run("dvc", "remote", "modify", "local", "url", str(tmp_path / "empty"))
    monkeypatch.chdir(clone.path)
    with pytest.raises(
        SystemExit,
        match=r"dpo\.parquet of first are neither in DVC's cache nor on its remote: .*`git add -A && git ",
    ):
        compare.main(["first"])


def test_an_older_layout_of_the_predictions(repo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("data/predictions/dpo.parquet"), [{"id": "1", "right": True}])
    with pytest.raises(
        SystemExit, match="no column benchmark: another version of the evaluate stage made it"
    ):
        compare.main(["--against", "dpo"])


def test_an_item_that_stands_twice(repo, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write(Path("data/predictions/dpo.parquet"), rows("skills", [1.0, 0.0]) + rows("skills", [1.0], 1))
    with pytest.raises(
        SystemExit, match=r"dpo\.parquet of workspace holds skills-1 of skills twice: evaluate again"
    ):
        compare.main(["--against", "dpo"])
