"""What stands for models where only their server is tested: words come as fast as a test wants them."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Thread

from stages.text.prompts import TEMPLATES
from tools import serve
from tools.chat import web
from tools.chat.endpoint import QUEUE, Service
from tools.chat.models import GREEDY, Models, Refusal, Reply, Sampling

SPOKEN = {"sft": "نعم", "dpo": "الجواب هو نعم."}
SHA256 = {"sft": "a" * 64, "dpo": "b" * 64}
LONG = "قل " + "كلمة " * 2000  # of which the parrot says all words
JSON = {"Content-Type": "application/json"}


class Parrot:
    """Says a word every `pause` seconds: what it is asked after "قل ", or what the checkpoint always says.

    `fails` is the word that it chokes on.
    """

    conversation, known = Models.conversation, Models.known
    title, template, context = "parrot", TEMPLATES["chatml"], 1000

    def __init__(self):
        self.names, self.system, self.weights_sha256 = list(SPOKEN), "", SHA256
        self.refused, self.aliases = {}, {}
        self.words, self.pause, self.fails = 0, 0.0, None

    def reply(self, name: str, messages: list[dict], sampling: Sampling = GREEDY) -> Reply:
        name, asked = self.known(name), messages[-1]["content"]
        says = asked.removeprefix("قل ") if asked.startswith("قل ") else SPOKEN[name]
        said = Said(self, name, [0] * len(messages), sampling, 0)
        said.says = says
        return said


class Said(Reply):
    def decoded(self) -> Iterator[str]:
        for place, word in enumerate(self.says.split(" ")):
            if place == self.sampling.max_tokens:
                return
            time.sleep(self.models.pause)
            if word == self.models.fails:
                raise Refusal("the GPU's memory is full", "out_of_memory", 503)
            self.models.words += 1
            self.tokens.append(place)
            yield f" {word}" if place else word
        self.stopped = True


@contextmanager
def served(parrot: Parrot, port: int = 0, key: str = "", queue: int = QUEUE, named: bool = False):
    """The port of a server in a thread."""
    with serve.listen("127.0.0.1", port) as listening:
        service = Service(parrot, "dpo", 0.0, queue)
        server = web.server(web.application(service, "127.0.0.1", key, named))
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()
