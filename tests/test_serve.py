"""The endpoint, asked by OpenAI's own client; who may ask; and the commands that serve."""

import http.client
import json
import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager
from pathlib import Path

import openai
import pytest

from stages.settings.errors import Problem
from tests.conftest import ROOT
from tests.fake_models import JSON, LONG, SPOKEN, Parrot, served
from tools import serve
from tools.chat import web
from tools.chat.models import Models, Sampling
from tools.export import gguf_file

PATH = "/v1/chat/completions"


@pytest.fixture
def parrot() -> Parrot:
    return Parrot()


def client(port: int, key: str = "none") -> openai.OpenAI:
    return openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=20)


def ask(text: str) -> list[dict]:
    return [{"role": "user", "content": text}]


def request(
    port: int, method: str, path: str, body: str | bytes | None = None, headers: dict | None = None
) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body.encode() if isinstance(body, str) else body, headers or {})
    return connection.getresponse()


# --- as OpenAI's client asks --------------------------------------------------------------------------------


def test_checkpoints_are_models(shared_port):
    models = client(shared_port).models
    assert [(one.id, one.object) for one in models.list()] == [("sft", "model"), ("dpo", "model")]
    assert models.retrieve("sft").id == "sft"
    with pytest.raises(openai.NotFoundError, match="must be one of sft, dpo"):
        models.retrieve("gpt-4o")


def test_answer_is_a_completion(shared_port):
    given = client(shared_port).chat.completions.create(model="sft", messages=ask("كم؟"))
    [choice] = given.choices
    assert (choice.message.role, choice.message.content) == ("assistant", SPOKEN["sft"])
    assert choice.finish_reason == "stop" and given.model == "sft"
    assert (given.usage.prompt_tokens, given.usage.completion_tokens, given.usage.total_tokens) == (1, 1, 2)


def test_answer_streams_with_its_usage_last(shared_port):
    completions = client(shared_port).chat.completions
    chunks = list(
        completions.create(
            model="dpo", messages=ask("كم؟"), stream=True, stream_options={"include_usage": True}
        )
    )
    *said, last = chunks
    assert [chunk.choices[0].delta.content for chunk in said] == ["", "الجواب", " هو", " نعم.", None]
    assert said[0].choices[0].delta.role == "assistant" and said[-1].choices[0].finish_reason == "stop"
    assert last.choices == [] and last.usage.completion_tokens == 3
    assert len({chunk.id for chunk in chunks}) == 1
    bare = list(completions.create(model="dpo", messages=ask("كم؟"), stream=True))
    assert all(chunk.choices and chunk.usage is None for chunk in bare)


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize(
    "more, said, reason",
    [
        ({"max_tokens": 2}, "واحد اثنان", "length"),
        ({"max_completion_tokens": 1}, "واحد", "length"),
        ({"stop": " ثلاثة"}, "واحد اثنان", "stop"),
        ({"stop": ["لا", "ن ثلا"]}, "واحد اثنا", "stop"),  # across two pieces
        ({"stop": ["أربعة خ"]}, "واحد اثنان ثلاثة أربعة", "stop"),  # begun at the end, and not said
        ({"stop": ["واحد"]}, "", "stop"),
    ],
)
def test_answer_ends_where_it_is_told_to(shared_port, stream, more, said, reason):
    asked = ask("قل واحد اثنان ثلاثة أربعة")
    given = client(shared_port).chat.completions.create(model="sft", messages=asked, stream=stream, **more)
    if stream:
        chunks = list(given)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert (text, chunks[-1].choices[0].finish_reason) == (said, reason)
    else:
        assert (given.choices[0].message.content, given.choices[0].finish_reason) == (said, reason)


def test_conversation_as_open_webui_sends_it(shared_port):
    """A system turn, earlier turns, content in parts, a setting of its own, and two questions in a row after
    an answer that failed.
    """
    messages = [
        {"role": "system", "content": "أجب بإيجاز."},
        *ask("من أنت؟"),
        {"role": "assistant", "content": "نموذج."},
        *ask("لم يُجَب"),
        {"role": "user", "content": [{"type": "text", "text": "قل "}, {"type": "text", "text": "مرحبا"}]},
    ]
    raw = client(shared_port).chat.completions.with_raw_response.create(
        model="dpo", messages=messages, temperature=0.7, user="u1", extra_body={"chat_id": "7"}
    )
    given = raw.parse()
    assert given.choices[0].message.content == "مرحبا" and given.usage.prompt_tokens == 5
    assert raw.headers["x-ignored"] == "user, chat_id"


@pytest.mark.parametrize(
    "more, said",
    [
        ({"temperature": 3}, "temperature: Input should be less than or equal to 2"),
        ({"top_p": 0}, "top_p: Input should be greater than 0"),
        ({"max_tokens": 0}, "max_tokens: Input should be greater than or equal to 1"),
        ({"n": 2}, "n is 2, which is not supported here"),
        ({"logprobs": True}, "logprobs is True, which is not supported here"),
        ({"frequency_penalty": 0.5}, "frequency_penalty is 0.5, which is not supported"),
        ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools is .* not supported"),
        ({"stop": [""]}, "none of them empty"),
        ({"messages": []}, "messages: List should have at least 1 item"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "end with the turn to be answered"),
        (
            {"messages": [{"role": "tool", "content": "x", "tool_call_id": "1"}]},
            "messages.0.role: .*'system'",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]},
            "messages.0.content: only text can be read",
        ),
    ],
)
def test_what_cannot_be_had_is_refused_in_one_sentence(shared_port, more, said):
    with pytest.raises(openai.BadRequestError, match=said) as refused:
        client(shared_port).chat.completions.create(**{"model": "sft", "messages": ask("كم؟")} | more)
    assert refused.value.code == "invalid_request" and "\n" not in refused.value.message


def test_settings_that_ask_for_nothing_are_taken(shared_port):
    neutral = {"n": 1, "logprobs": False, "presence_penalty": 0, "response_format": {"type": "text"}}
    given = client(shared_port).chat.completions.create(
        model="sft", messages=ask("كم؟"), **neutral, extra_body={"max_tokens": None, "stop": None}
    )
    assert given.choices[0].message.content == SPOKEN["sft"]


def test_unknown_model_and_fault_on_the_way(parrot, port):
    with pytest.raises(openai.NotFoundError, match="no checkpoint 'gpt-4o'") as unknown:
        client(port).chat.completions.create(model="gpt-4o", messages=ask("كم؟"))
    assert unknown.value.code == "model_not_found"
    parrot.fails = "ثلاثة"
    streamed = client(port).chat.completions.create(
        model="sft", messages=ask("قل واحد اثنان ثلاثة"), stream=True
    )
    with pytest.raises(openai.APIError, match="memory is full"):
        list(streamed)
    with pytest.raises(openai.InternalServerError, match="memory is full"):
        client(port).chat.completions.create(model="sft", messages=ask("قل ثلاثة"))
    assert client(port).chat.completions.create(model="sft", messages=ask("كم؟")).choices  # and goes on


def test_questions_wait_for_their_turn_and_no_more_than_so_many():
    parrot = Parrot()
    parrot.pause = 0.1
    with served(parrot, queue=2) as port, ThreadPoolExecutor(8) as pool:

        def one(_: int) -> str:
            try:
                asked = ask("قل واحد اثنان ثلاثة أربعة")
                return (
                    client(port)
                    .chat.completions.create(model="sft", messages=asked)
                    .choices[0]
                    .message.content
                )
            except openai.RateLimitError as error:
                return error.code

        answers = list(pool.map(one, range(8)))
        assert answers.count("واحد اثنان ثلاثة أربعة") == 3 and answers.count("too_many_requests") == 5
        assert one(0) == "واحد اثنان ثلاثة أربعة"  # every place is free again


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_leaves_stops_the_answer(parrot, port, stream):
    parrot.pause = 0.02
    body = json.dumps({"model": "dpo", "messages": ask(LONG), "stream": stream})
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request("POST", PATH, body.encode(), JSON)
    while parrot.words < 5:
        time.sleep(0.02)
    connection.sock.close() if not stream else connection.getresponse().close()
    connection.close()
    start = time.monotonic()
    given = client(port).chat.completions.create(model="sft", messages=ask("كم؟"))
    assert given.choices[0].message.content == SPOKEN["sft"]
    assert time.monotonic() - start < 15 and parrot.words < 1000


# --- who may ask --------------------------------------------------------------------------------------------

GOOD = json.dumps({"messages": ask("كم؟"), "temperature": 0, "model": "dpo"})


@pytest.mark.parametrize(
    "status, headers, body",
    [
        (200, {"Host": "localhost:9"}, GOOD),  # a port that leads here through a tunnel
        (421, {"Host": "x:1", "Origin": "http://x:1"}, GOOD),
        (421, {"Host": "evil.example"}, GOOD),
        (421, {"Host": "127.0.0.1.evil.example:8000"}, GOOD),
        (421, {"Host": "[::1"}, GOOD),
        (403, {"Origin": "http://evil.example"}, GOOD),
        (403, {"Origin": "null"}, GOOD),
        (403, {"Origin": "http://["}, GOOD),
        (403, {"Sec-Fetch-Site": "cross-site"}, GOOD),
        (403, {"Sec-Fetch-Site": "same-site"}, GOOD),  # another port of this machine
        (415, {"Content-Type": "text/plain"}, GOOD),
        (413, {}, '{"messages": "' + "x" * 1_100_000),
        (400, {}, "{"),
        (400, {}, b"\xff\xfe"),
        (400, {}, "[" * 100_000),
        (400, {}, GOOD.replace('"temperature": 0', '"temperature": NaN')),
        (400, {}, GOOD.replace("}]", '}, {"role": "user"}]')),
        (404, {}, GOOD.replace('"dpo"', '"kto"')),
        (400, {}, json.dumps({"messages": ask("\ud800"), "model": "dpo"})),
        (200, {}, GOOD.replace('"model": "dpo"', '"seed": 1')),
    ],
)
def test_only_its_own_page_or_a_program_may_ask(shared_port, status, headers, body):
    response = request(shared_port, "POST", PATH, body, JSON | headers)
    text = response.read().decode()
    assert response.status == status, text
    assert status == 200 or (list(json.loads(text)) == ["error"] and "\n" not in text)


@pytest.mark.parametrize(
    "host, asked, ours",
    [
        ("0.0.0.0", "192.168.1.7:8000", True),
        ("0.0.0.0", "attacker.example", False),
        ("127.0.0.1", "192.168.1.7:8000", False),
        ("gpu.lan", "gpu.lan:8000", True),
        ("::1", "[::1]:8000", True),
    ],
)
def test_a_server_goes_by_its_address_and_no_other_name(host, asked, ours):
    assert web.Guard(None, host).is_ours(asked) is ours


def test_with_a_key_only_its_owner_may_ask_and_by_any_name():
    with served(Parrot(), key="secret") as port:
        assert client(port, "secret").models.list().data
        for wrong in ("none", "secre"):
            with pytest.raises(openai.AuthenticationError) as refused:
                client(port, wrong).chat.completions.create(model="sft", messages=ask("كم؟"))
            assert refused.value.code == "invalid_api_key"
        assert request(port, "GET", "/v1/models").status == request(port, "GET", "/api/state").status == 401
        assert request(port, "GET", "/").status == 200  # the page, which asks for the key
        other = {"Host": "host.docker.internal:8000"} | JSON
        assert request(port, "POST", PATH, GOOD, other).status == 421
        owner = other | {"Authorization": "Bearer secret"}
        assert request(port, "POST", PATH, GOOD, owner).status == 200
        assert request(port, "POST", PATH, GOOD, owner | {"Origin": "http://evil.example"}).status == 403


# --- the commands -------------------------------------------------------------------------------------------


@contextmanager
def started(folder: Path, *arguments: str):
    """The base URL of `python -m tools.serve` in a process of its own."""
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.serve", "--port", "0", *arguments],
        cwd=folder,
        env=os.environ | {"PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        lines = [process.stdout.readline()]
        while lines[-1] and "/v1" not in lines[-1]:
            lines.append(process.stdout.readline())
        yield lines[-1].split()[0]
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()


@pytest.mark.long
def test_command_serves_what_was_trained_to_the_client(workspace):
    with started(workspace.path) as url:
        api = openai.OpenAI(base_url=url, api_key="none", max_retries=0, timeout=60)
        assert [one.id for one in api.models.list()] == ["base", "sft"]
        question = ask("ما جمع معلم مثابر؟")
        answer = api.chat.completions.create(model="sft", messages=question)
        drawn = [
            api.chat.completions.create(
                model="base", messages=question, temperature=1.5, top_p=1, seed=seed, max_tokens=24
            ).choices[0].message.content
            for seed in (1, 1, 2)
        ]  # fmt: skip
    assert drawn[0] == drawn[1] != drawn[2]
    with chdir(workspace.path):
        from stages.settings.reader import read

        models = Models(read())
        reply = models.reply("sft", question)
        assert answer.choices[0].message.content == "".join(reply)
        assert answer.usage.completion_tokens == len(reply.tokens)
        assert answer.usage.prompt_tokens == len(reply.ids)
        first = models.reply("base", question, Sampling(1.5, 1.0, 1, 24))
        assert drawn[0] == "".join(first)


def test_llama_cpp_serves_a_gguf(tmp_path):
    file = tmp_path / "nano-f16.gguf"
    gguf_file.write(ROOT / "models/nano", file, "f16")
    with started(ROOT, str(file), "--api-key", "secret") as url:
        api = openai.OpenAI(base_url=url, api_key="secret", max_retries=0, timeout=60)
        assert [one.id for one in api.models.list()] == ["nano-f16"]
        chunks = list(
            api.chat.completions.create(
                model="nano-f16", messages=ask("ما جمع معلم؟"), temperature=0, max_tokens=8, stream=True
            )
        )
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices).strip()
        with pytest.raises(openai.AuthenticationError):
            openai.OpenAI(base_url=url, api_key="none", max_retries=0).chat.completions.create(
                model="nano-f16", messages=ask("كم؟")
            )


def test_without_a_gguf_the_cure_is_named(tmp_path):
    with pytest.raises(Problem, match=r"holds no GGUF file: `python -m tools.export models/dpo --gguf"):
        serve.gguf_of(tmp_path / "exports/dpo")
    for name in ("a-f16.gguf", "a-q8_0.gguf"):
        (tmp_path / name).touch()
    with pytest.raises(Problem, match=r"holds a-f16.gguf, a-q8_0.gguf: give one of these files"):
        serve.gguf_of(tmp_path)
    assert serve.gguf_of(tmp_path / "a-f16.gguf") == tmp_path / "a-f16.gguf"


def test_port_in_use_is_one_line(shared_port):
    with pytest.raises(Problem, match=rf"--port {shared_port}: .*in use"):
        serve.listen("127.0.0.1", shared_port)
