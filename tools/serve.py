"""Serve what was trained to programs that speak OpenAI's protocol, and the chat page to people.

python -m tools.serve [CHECKPOINT]       the base and all its checkpoints as models, in memory once;
                                         CHECKPOINT (by default the last) where a question names none
python -m tools.serve EXPORT             a folder of `python -m tools.export --gguf`, or a GGUF file, by
                                         llama.cpp's own server

http://127.0.0.1:8000/v1 is what a client calls its base URL; the page is at http://127.0.0.1:8000/.
"""

import argparse
import ipaddress
import os
import socket
import sys
import threading
from contextlib import suppress
from pathlib import Path

from stages.settings.errors import Problem, one_line_errors
from stages.settings.reader import read
from stages.settings.stage import quiet


def main(arguments: list[str]) -> None:
    parser = argparse.ArgumentParser(
        "python -m tools.serve", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("checkpoint", nargs="?", metavar="CHECKPOINT|EXPORT")
    add_answering(parser)
    add_serving(parser)
    asked = parser.parse_args(arguments)
    quiet()
    os.environ["HF_HUB_OFFLINE"] = "1"
    try:
        with one_line_errors():
            path = Path(asked.checkpoint or "")
            if path.parent == Path("models"):
                asked.checkpoint = path.name
            if path.suffix == ".gguf" or (asked.checkpoint and Path(asked.checkpoint).exists()):
                export(path, asked)
            else:
                checkpoints(asked)
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


def checkpoints(asked: argparse.Namespace) -> None:
    """The endpoint and the page, until Ctrl-C."""
    from tools.chat import endpoint, terminal, web

    temperature = terminal.temperature(asked.temperature)
    check(asked)
    with listen(asked.host, asked.port) as listening:  # before minutes of loading
        models = loaded(asked)
        name = models.known(asked.checkpoint or models.names[-1])
        service = endpoint.Service(models, name, temperature, asked.queue)
        app = web.application(service, asked.host, asked.api_key, named=asked.checkpoint is not None)
        address = address_of(listening, asked.host)
        announce(f"{address}/" + (f"#key={asked.api_key}" if asked.api_key else ""), f"{address}/v1")
        web.serve(app, listening)


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


def export(path: Path, asked: argparse.Namespace) -> None:
    """llama.cpp's server, until Ctrl-C. The prompt's template and the stop tokens are in the file."""
    file = gguf_of(path)
    check(asked)
    if asked.against:
        raise Problem("--against goes with checkpoints, not with an export")
    with listen(asked.host, asked.port) as listening:
        port = listening.getsockname()[1]  # one that is free; llama.cpp binds it itself
    import xllamacpp

    settings = xllamacpp.CommonParams()
    settings.model.path, settings.model_alias = str(file), {file.stem}
    settings.hostnames, settings.port, settings.ui = [asked.host], port, False
    settings.n_ctx, settings.n_parallel, settings.verbosity = asked.context or 0, 1, -1
    settings.cors_origins = ""
    settings.api_keys = [asked.api_key] if asked.api_key else []
    try:
        server = xllamacpp.Server(settings)
    except RuntimeError as error:
        raise Problem(f"llama.cpp cannot serve {file}: {error}") from None
    address = server.listening_address
    announce(f"{address}/v1  ({file.stem}, by llama.cpp)")
    with suppress(KeyboardInterrupt):
        threading.Event().wait()
    del server


def gguf_of(path: Path) -> Path:
    found = [path] if path.suffix == ".gguf" else sorted(path.glob("*.gguf"))
    if not found:
        name = path.as_posix()
        raise Problem(
            f"{name} holds no GGUF file: `python -m tools.export models/{path.name} --gguf q4_k_m` makes one"
        )
    if not found[0].is_file():
        raise Problem(f"{found[0]} does not exist")
    if len(found) > 1:
        raise Problem(f"{path} holds {', '.join(one.name for one in found)}: give one of these files")
    return found[0]


def check(asked: argparse.Namespace) -> None:
    if asked.queue < 0:
        raise Problem(f"--queue is {asked.queue}: it must be 0 or more")
    if not asked.api_key.isascii() or any(map(str.isspace, asked.api_key)):
        raise Problem("--api-key must be of ASCII characters without blanks")
    if not asked.api_key and not local(asked.host):
        print(
            f"note: whoever can reach {asked.host} can use the model: see --api-key",
            file=sys.stderr,
        )


def listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise Problem(f"cannot listen on --host {host} --port {port}: {error}; give another") from None


def address_of(listening: socket.socket, host: str) -> str:
    place = f"[{host}]" if ":" in host else host
    return f"http://{place}:{listening.getsockname()[1]}"


def local(host: str) -> bool:
    with suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return host == "localhost"


def announce(page: str, endpoint: str = "") -> None:
    print(f"{page}  (Ctrl-C ends it)", flush=True)
    if endpoint:
        print(f"{endpoint} for programs that speak OpenAI's protocol", flush=True)


if __name__ == "__main__":
    with one_line_errors():
        main(sys.argv[1:])
