"""Talk with what was trained, in the terminal or in the browser.

python -m tools.chat [CHECKPOINT]        base, sft, dpo or refine-<method>; by default the last of them there
                                         is
python -m tools.chat --web               a page on http://127.0.0.1:8000, with a blind comparison of two
                                         checkpoints
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
    parser.add_argument(
        "--temperature", default="0", help="0: always the most probable token; above, up to 2: sampled"
    )
    parser.add_argument(
        "--context", type=int, help="tokens of a conversation and its answer; prompt.max_length by default"
    )
    parser.add_argument(
        "--bidi",
        choices=("isolate", "shape", "none"),
        help="how to show right-to-left text; see docs/chat.md",
    )
    parser.add_argument("--web", action="store_true", help="serve a page instead")
    parser.add_argument(
        "--host", default="127.0.0.1", help="of --web: who can reach this address can use the model"
    )
    parser.add_argument("--port", type=int, default=8000, help="of --web; 0: any that is free")
    asked = parser.parse_args(arguments)
    quiet()
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        with one_line_errors():
            start(asked)
    except KeyboardInterrupt:  # while the model is loaded
        raise SystemExit(130) from None


def start(asked: argparse.Namespace) -> None:
    params = read()
    from tools.chat import terminal, web
    from tools.chat.models import Models

    temperature = terminal.temperature(asked.temperature)
    listening = web.listen(asked.host, asked.port) if asked.web else None  # before minutes of loading
    if sys.stderr.isatty():
        terminal.note(f"loading {params.model} …")
    models = Models(params, asked.context)
    for reason in models.refused.values():
        terminal.note(f"left out: {reason}")
    if models.names == ["base"]:
        terminal.note(
            "no checkpoint is trained yet, so this is the base model, which continues texts rather than "
            "answers: run `dvc repro`"
        )
    name = models.known(asked.checkpoint or models.names[-1])
    if asked.web:
        web.serve(models, name, temperature, asked.host, listening)
    else:
        terminal.run(models, name, temperature, asked.bidi)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
