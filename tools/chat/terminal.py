"""A conversation in a terminal, or with a script that writes lines and reads answers."""

import os
import shutil
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from itertools import takewhile
from threading import Event

from stages.settings.errors import Problem
from stages.text.prompts import Message
from tools.chat import bidi
from tools.chat.models import Models, Sampling

HELP = """\
{names:<20} answer with this checkpoint from now on
/clear               forget the conversation
/system TEXT         a system turn before it; without a text: none
/temperature X       0: always the most probable; above: sampled
/help  /quit         (Ctrl-C stops an answer, Ctrl-D leaves)"""


@dataclass
class Chat:
    models: Models
    name: str
    temperature: float
    system: str = ""
    messages: list[Message] = field(default_factory=list)

    def command(self, line: str) -> str:
        """Do what a line with a slash says, and tell what was done. Raises EOFError to leave."""
        name, _, value = line[1:].partition(" ")
        value = value.strip()
        match name:
            case "quit":
                raise EOFError
            case "help":
                return HELP.format(names=" ".join(f"/{name}" for name in self.models.names))
            case "clear":
                self.messages = []
                return "the conversation is empty"
            case "system":
                self.system = value
                return f"system turn: {value or self.models.system or 'none'}"
            case "temperature":
                self.temperature = temperature(value)
                return f"temperature {self.temperature:g}"
        if name not in [*self.models.names, *self.models.refused, *self.models.aliases]:
            raise Problem(f"there is no /{name}: see /help")
        self.name = self.models.known(name)
        return f"{self.name} answers"

    def answer(self, line: str, mode: str) -> None:
        """Write the answer to a line as it comes. What a person stopped stays in the conversation as far as
        it went.
        """
        asked = [*self.messages, {"role": "user", "content": line}]
        reply = self.models.reply(self.name, system_turn(self.system) + asked, Sampling(self.temperature))
        if reply.forgotten:
            note(
                f"the oldest {reply.forgotten} of {len(asked) // 2 + 1} turns no longer fit into the context"
            )
        with interruptible() as interrupted:
            pieces = takewhile(lambda _: not interrupted.is_set(), reply)
            for text in bidi.displayed(pieces, mode, shutil.get_terminal_size().columns):
                print(text, end="", flush=True)
        print(flush=True)
        self.messages = [*asked, {"role": "assistant", "content": reply.text}]


def run(models: Models, name: str, temperature: float, mode: str | None) -> None:
    """Until the input ends. Answers alone go to stdout where it is not a terminal's, and all else to
    stderr.
    """
    for stream in (sys.stdin, sys.stdout):
        stream.reconfigure(encoding="utf-8", errors="replace")
    with suppress(ImportError):
        import readline  # noqa: F401 (line editing in input())
    chat = Chat(models, name, temperature)
    mode = mode or (bidi.detected(os.environ) if sys.stdout.isatty() else "none")
    if person():
        note(f"{name} answers; /help tells what else there is")
    for line in lines(chat):
        try:
            if line.startswith("/"):
                note(chat.command(line))
            elif line:
                chat.answer(line, mode)
        except Problem as problem:
            note(f"error: {problem}")
        except EOFError:
            return


def lines(chat: Chat) -> Iterator[str]:
    while True:
        try:
            yield input(f"{chat.name} › " if person() else "").strip()
        except KeyboardInterrupt:
            if not person():
                raise SystemExit(130) from None
            print()
        except EOFError:
            if person():
                print()
            return


def person() -> bool:
    """Whether one types and reads here, rather than a script."""
    return sys.stdin.isatty() and sys.stdout.isatty()


def note(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def system_turn(text: str) -> list[Message]:
    return [{"role": "system", "content": text}] if text else []


def temperature(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1
    if not 0 <= value <= 2:
        raise Problem(f"temperature is {text!r}: it must be a number from 0 to 2")
    return value


@contextmanager
def interruptible() -> Iterator[Event]:
    """Ctrl-C sets the event instead of raising wherever the program is, be it in the middle of a forward
    pass.
    """
    interrupted = Event()
    before = signal.signal(signal.SIGINT, lambda *_: interrupted.set())
    try:
        yield interrupted
    finally:
        signal.signal(signal.SIGINT, before)
