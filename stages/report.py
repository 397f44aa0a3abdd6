"""What became of every row: the reports of both roles in one file → metrics/data.json."""

import json
from pathlib import Path

from stages.files import write_json
from stages.params import stage

FORMATTED = Path("data/formatted")


def main() -> None:
    with stage("report"):
        roles = ("instructions", "preferences")
        write_json(Path("metrics/data.json"), {role: json.loads((FORMATTED / role / "report.json").read_text()) for role in roles})


if __name__ == "__main__":
    main()
