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
from stages.settings.stage import quiet
from tools import serve


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m tools.chat", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?")
    serve.add_answering(parser)
    parser.add_argument(
        "--bidi",
        choices=("isolate", "shape", "none"),
        help="how to show right-to-left text; see docs/chat.md",
    )
    parser.add_argument("--web", action="store_true", help="serve a page instead")
    serve.add_serving(parser.add_argument_group("with --web"))
    asked = parser.parse_args(arguments)
    quiet()
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        with one_line_errors():
            start(asked)
    except KeyboardInterrupt:  # while the model is loaded
        raise SystemExit(130) from None


def start(asked: argparse.Namespace) -> None:
    from tools.chat import terminal

    if asked.web:
        serve.checkpoints(asked)
        return
    temperature = terminal.temperature(asked.temperature)
    models = serve.loaded(asked)
    name = models.known(asked.checkpoint or models.names[-1])
    terminal.run(models, name, temperature, asked.bidi)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
