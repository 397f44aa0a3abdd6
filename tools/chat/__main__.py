"""Talk with what was trained, in the terminal or in the browser.

python -m tools.chat [CHECKPOINT]        base, sft, the preference method (dpo, kto, …) or refine-<method>; by
                                         default the last of them there is
python -m tools.chat --web               a page on http://127.0.0.1:8000, with a blind comparison of two
                                         checkpoints; it is what `python -m tools.serve` serves
"""

import argparse
import os
import sys

from stages.settings.errors import one_line_errors
from stages.settings.reader import read
from stages.settings.stage import quiet


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m tools.chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?")
    add_answering(parser)
    parser.add_argument(
        "--bidi",
        choices=("isolate", "shape", "none"),
        help="how to show right-to-left text; see docs/chat.md",
    )
    parser.add_argument("--web", action="store_true", help="serve a page instead")
    add_serving(parser.add_argument_group("with --web"))
    asked = parser.parse_args(arguments)
    quiet()
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        with one_line_errors():
            start(asked)
    except KeyboardInterrupt:  # while the model is loaded
        raise SystemExit(130) from None


def add_answering(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--temperature", default="0", help="0: always the most probable token; above, up to 2: sampled"
    )
    parser.add_argument(
        "--context", type=int, help="tokens of a conversation and its answer; prompt.max_length by default"
    )
    parser.add_argument(
        "--against",
        nargs="+",
        default=[],
        metavar="EXP",
        help="experiments or revisions, whose checkpoints are there, too: EXP/dpo, EXP/kto, …",
    )


def add_serving(parser: argparse._ArgumentGroup) -> None:
    parser.add_argument(
        "--host", default="127.0.0.1", help="who can reach this address can use the model: see --api-key"
    )
    parser.add_argument("--port", type=int, default=8000, help="0: any that is free")
    parser.add_argument(
        "--api-key",
        metavar="KEY",
        default=os.environ.get("SERVE_API_KEY", ""),
        help="answer only to those who have it; SERVE_API_KEY by default, which no list of processes shows",
    )
    parser.add_argument("--queue", type=int, default=16, help="questions that may wait for their turn")


def start(asked: argparse.Namespace) -> None:
    from tools import serve
    from tools.chat import terminal

    if asked.web:
        serve.checkpoints(asked)
        return
    temperature = terminal.temperature(asked.temperature)
    models = loaded(asked)
    name = models.known(asked.checkpoint or models.names[-1])
    terminal.run(models, name, temperature, asked.bidi)


def loaded(asked: argparse.Namespace) -> "Models":  # noqa: F821
    """The base and all checkpoints; what cannot be used is said."""
    params = read()
    from tools.chat import terminal
    from tools.chat.models import Models

    if sys.stderr.isatty():
        terminal.note(f"loading {params.model} …")
    models = Models(params, asked.context, asked.against)
    for reason in models.refused.values():
        terminal.note(f"left out: {reason}")
    if models.names == ["base"]:
        terminal.note(
            "no checkpoint is trained yet, so this is the base model, which continues texts rather than "
            "answers: run `dvc repro`"
        )
    return models


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
