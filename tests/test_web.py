"""The page and its server: who may ask, blind votes, and the page in a real browser."""

import http.client
import json
import os
import shutil
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import chdir, contextmanager
from pathlib import Path
from threading import Thread

import pytest

from stages.settings.errors import Problem
from tools.chat import arena, web
from tools.chat.models import Models, Reply

SPOKEN = {"sft": "نعم", "dpo": "الجواب هو نعم."}
LONG = "قل " + "كلمة " * 2000
SHA256 = {"sft": "a" * 64, "dpo": "b" * 64}
JSON = {"Content-Type": "application/json"}


class Parrot:
    """Says a word every `pause` seconds: what it is asked after "قل ", or what the checkpoint always says."""

    conversation = Models.conversation

    def __init__(self):
        self.names, self.system, self.weights_sha256 = list(SPOKEN), "", SHA256
        self.words, self.pause = 0, 0.0

    def reply(self, name: str, messages: list[dict], temperature: float) -> Reply:
        if name not in self.names:
            raise Problem(f"there is no checkpoint {name!r}")
        asked = messages[-1]["content"]
        return Said(
            self, asked.removeprefix("قل ") if asked.startswith("قل ") else SPOKEN[name], name, temperature
        )


class Said(Reply):
    def __init__(self, parrot: Parrot, says: str, name: str, temperature: float):
        super().__init__(parrot, name, [], temperature, 0)
        self.says = says

    def __iter__(self):
        for word in self.says.split(" "):
            time.sleep(self.models.pause)
            self.models.words += 1
            piece = f" {word}" if self.text else word
            self.text += piece
            yield piece
        self.stopped = True


@contextmanager
def served(parrot: Parrot, port: int = 0):
    """The port of a server in a thread."""
    with web.listen("127.0.0.1", port) as listening:
        server = web.server(parrot, "dpo", 0.0, "127.0.0.1")
        thread = Thread(target=server.run, kwargs={"sockets": [listening]})
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join()


@pytest.fixture
def parrot(tmp_path, monkeypatch) -> Parrot:
    monkeypatch.chdir(tmp_path)
    return Parrot()


@pytest.fixture
def port(parrot):
    with served(parrot) as port:
        yield port


@pytest.fixture(scope="module")
def shared_port():
    """Of a server for tests that leave nothing behind."""
    with served(Parrot()) as port:
        yield port


def request(
    port: int, method: str, path: str, body: str | bytes | None = None, headers: dict | None = None
) -> http.client.HTTPResponse:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    connection.request(method, path, body.encode() if isinstance(body, str) else body, headers or {})
    return connection.getresponse()


def post(port: int, path: str, body: dict) -> tuple[int, list[dict]]:
    response = request(port, "POST", path, json.dumps(body), JSON)
    return response.status, [json.loads(line) for line in response.read().decode().splitlines()]


def question(text: str, **more) -> dict:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0} | more


def chat(port: int, text: str) -> tuple[int, list[dict]]:
    return post(port, "/api/chat", question(text, checkpoint="dpo"))


# --- chat, and who may ask ----------------------------------------------------------------------------------


def test_answer_comes_in_pieces(shared_port):
    expected = [{"piece": "الجواب"}, {"piece": " هو"}, {"piece": " نعم."}, {"stopped": True, "forgotten": 0}]
    assert chat(shared_port, "كم؟") == (200, expected)


def test_every_response_is_locked_down(shared_port):
    for path, status in [
        ("/", 200),
        ("/page.js", 200),
        ("/api/state", 200),
        ("/nothing", 404),
        ("/api/chat", 405),
    ]:
        response = request(shared_port, "GET", path)
        policy = response.getheader("content-security-policy")
        assert (
            response.status == status
            and "default-src 'none'" in policy
            and "frame-ancestors 'none'" in policy
        )
        assert (
            response.getheader("x-content-type-options") == "nosniff"
            and response.getheader("referrer-policy") == "no-referrer"
        )
        assert response.getheader("access-control-allow-origin") is None
    assert request(shared_port, "GET", "/page.js").getheader("content-type").startswith("text/javascript")


GOOD = json.dumps(question("كم؟", checkpoint="dpo"))


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
        (400, {}, GOOD.replace('"temperature": 0', '"temperature": 3')),
        (400, {}, GOOD.replace('"user"', '"assistant"')),
        (400, {}, GOOD.replace('"user"', '"tool"')),
        (400, {}, GOOD.replace('"dpo"', '"kto"')),
        (400, {}, GOOD.replace("{", '{"more": 1, ', 1)),
        (400, {}, '{"messages": [], "temperature": 0, "checkpoint": "dpo"}'),
        (400, {}, json.dumps(question("\ud800", checkpoint="dpo"))),
    ],
)
def test_only_its_own_page_may_ask_and_only_what_can_be_asked(shared_port, status, headers, body):
    response = request(shared_port, "POST", "/api/chat", body, JSON | headers)
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


def test_port_in_use_is_one_line(shared_port):
    with pytest.raises(Problem, match=rf"--port {shared_port}: .*in use"):
        web.listen("127.0.0.1", shared_port)


def test_a_client_that_leaves_stops_the_answer(parrot, port):
    parrot.pause = 0.02
    response = request(port, "POST", "/api/chat", json.dumps(question(LONG, checkpoint="dpo")), JSON)
    response.readline()
    waiting = ThreadPoolExecutor(1).submit(
        chat, port, "كم؟"
    )  # its turn comes at once then, not after forty seconds
    response.close()
    start = time.monotonic()
    assert waiting.result()[1][-1] == {"stopped": True, "forgotten": 0}
    assert time.monotonic() - start < 15 and parrot.words < 1000


# --- comparison ---------------------------------------------------------------------------------------------


def battle(port: int, text: str = "كم؟", temperature: float = 0.5) -> list[dict]:
    asked = question(text, checkpoints=["sft", "dpo"], temperature=temperature)
    status, events = post(port, "/api/battles", asked)
    assert status == 200
    return events


def stored() -> list[dict]:
    return [json.loads(line) for line in arena.VOTES.read_text(encoding="utf-8").splitlines()]


def test_vote_is_blind_and_stored_as_shown(port):
    *pieces, last = battle(port)
    assert all(set(event) <= {"first", "second"} for event in pieces) and set(last) == {"battle"}
    assert not any(name in json.dumps([*pieces, last]) for name in ("sft", "dpo"))
    status, [names] = post(port, "/api/votes", {"battle": last["battle"], "vote": "second"})
    assert status == 200 and sorted(names.values()) == ["dpo", "sft"]
    [vote] = stored()
    assert list(vote) == ["id", "time", "prompt", "answers", "vote", "temperature"]
    assert vote["id"] == last["battle"] and vote["time"].endswith("+00:00") and vote["temperature"] == 0.5
    assert vote["prompt"] == [{"role": "user", "content": "كم؟"}] and vote["vote"] == "second"
    for side, answer in zip(("first", "second"), vote["answers"]):
        text = "".join(event.get(side, "") for event in pieces)
        assert answer == {"checkpoint": names[side], "weights_sha256": SHA256[names[side]], "answer": text}
        assert text == SPOKEN[names[side]]


def test_system_turn_of_params_is_part_of_the_prompt(parrot, port):
    parrot.system = "أجب بإيجاز."
    post(port, "/api/votes", {"battle": battle(port)[-1]["battle"], "vote": "tie"})
    assert [message["role"] for message in stored()[0]["prompt"]] == ["system", "user"]


def test_second_vote_and_unknown_battle_are_refused(port, monkeypatch):
    monkeypatch.setattr(arena, "KEPT", 1)
    first, second = (battle(port)[-1]["battle"] for _ in range(2))
    assert post(port, "/api/votes", {"battle": first, "vote": "tie"})[0] == 404  # too old
    assert post(port, "/api/votes", {"battle": second, "vote": "best"})[0] == 400
    assert [post(port, "/api/votes", {"battle": second, "vote": "tie"})[0] for _ in range(2)] == [200, 409]
    assert len(stored()) == 1


def test_nothing_to_choose_between_is_no_battle(port):
    names = {"first", "second"}
    for text, reason in [("قل سواء", "equal"), ("قل ", "empty")]:
        last = battle(port, text)[-1]
        assert last["undecidable"] in (reason, "equal") and set(last["names"]) == names
    asked = question("كم؟", checkpoints=["sft", "sft"])
    assert post(port, "/api/battles", asked)[0] == 400


def test_order_is_shuffled(shared_port):
    assert {battle(shared_port)[0]["first"] for _ in range(20)} == set(SPOKEN.values())


def test_killed_vote_leaves_nothing_in_the_next(port):
    arena.VOTES.parent.mkdir(parents=True)
    arena.VOTES.with_name(f".{arena.VOTES.name}.tmp").write_text('{"id": "ha', encoding="utf-8")
    post(port, "/api/votes", {"battle": battle(port)[-1]["battle"], "vote": "first"})
    assert len(stored()) == 1


def test_concurrent_votes_are_all_kept_after_a_line_without_end(port):
    arena.VOTES.parent.mkdir(parents=True)
    arena.VOTES.write_text('{"id": "old"}', encoding="utf-8")
    battles = [battle(port)[-1]["battle"] for _ in range(12)]
    with ThreadPoolExecutor(6) as pool:
        results = list(
            pool.map(lambda one: post(port, "/api/votes", {"battle": one, "vote": "first"})[0], battles)
        )
    assert set(results) == {200}
    assert stored()[0] == {"id": "old"} and {vote["id"] for vote in stored()[1:]} == set(battles)


def test_vote_that_cannot_be_written_can_be_given_again(port):
    one = {"battle": battle(port)[-1]["battle"], "vote": "first"}
    Path("data").write_text("in the way", encoding="utf-8")
    status, [told] = post(port, "/api/votes", one)
    assert status == 500 and str(arena.VOTES) in told["error"]
    Path("data").unlink()
    assert post(port, "/api/votes", one)[0] == 200 and len(stored()) == 1


# --- in a browser -------------------------------------------------------------------------------------------

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
ARGUMENTS = ["--no-sandbox", "--disable-gpu", "--disable-quic", "--disable-background-networking"]
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this machine")


@pytest.fixture(scope="module")
def browser():
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=ARGUMENTS)
        yield browser
        browser.close()


@pytest.fixture
def page(browser):
    """A page of its own history, that has met no fault and asked no other server in the end."""
    context = browser.new_context(viewport={"width": 1000, "height": 700})
    page, asked, faults = context.new_page(), [], []
    page.set_default_timeout(20_000)
    page.on("request", lambda request: asked.append(request.url))
    page.on("pageerror", lambda error: faults.append(error))
    yield page
    context.close()
    assert asked and all(url.startswith("http://127.0.0.1:") for url in asked)
    assert faults == []


def opened(page, port: int):
    page.goto(f"http://127.0.0.1:{port}/")
    page.locator("#checkpoint option").first.wait_for(state="attached")


def say(page, text: str, wait: bool = True):
    page.fill("#message", text)
    page.press("#message", "Enter")
    if wait:
        page.locator("#log .turn:last-child:not([aria-busy])").wait_for()
        page.locator("#chat-form [type=submit]").wait_for()


@needs_browser
def test_arabic_is_right_to_left_and_code_is_not(page, port):
    opened(page, port)
    say(page, "قل نعم،\nplain English\n```\nprint(1)\n```\nو`code` هنا")
    boxes = page.evaluate(
        """() => [...document.querySelectorAll("#log .turn:last-child .text > *")].map((block) => {
            const range = document.createRange(), outer = block.closest(".text").getBoundingClientRect();
            range.selectNodeContents(block);
            const text = range.getBoundingClientRect();
            const direction = getComputedStyle(block).direction;
            return [block.tagName, direction, text.left - outer.left, outer.right - text.right];
        })"""
    )
    (arabic, english, code, mixed) = boxes
    assert arabic[:2] == ["P", "rtl"] and arabic[3] < 2 < arabic[2]
    assert english[:2] == ["P", "ltr"] and english[2] < 2 < english[3]
    assert code[:2] == ["PRE", "ltr"] and mixed[:2] == ["P", "rtl"] and mixed[3] < 2
    mine = page.locator("#log .user").bounding_box()
    assert mine["x"] + mine["width"] < 1000 * 3 / 4  # what was asked stands at the other edge
    page.set_viewport_size({"width": 360, "height": 640})
    assert page.evaluate("document.documentElement.scrollWidth") <= 360


@needs_browser
def test_answer_is_text_and_never_html(page, port):
    opened(page, port)
    attack = '<img src=x onerror="window.hit=1"><script>window.hit=1</script>`<b>`'
    say(page, f"قل {attack}")
    assert attack.replace("`", "") in page.locator("#log .turn:last-child .text").inner_text()
    assert page.locator("#log img, #log script, #log b").count() == 0 and page.evaluate("window.hit") is None


@needs_browser
def test_stop_stops_the_server_and_keeps_what_was_said(page, parrot, port):
    opened(page, port)
    parrot.pause = 0.02
    say(page, LONG, wait=False)
    page.locator("#log .text p").wait_for()
    page.click("#chat-form .stop")
    page.locator("#chat-form [type=submit]").wait_for()
    before = 0
    while before != (before := parrot.words):
        time.sleep(0.3)
    assert parrot.words < 1000
    assert "أُوقف" in page.locator("#log .note").inner_text()
    assert 0 < page.locator("#log .text").inner_text().count("كلمة") <= parrot.words


@needs_browser
def test_conversation_outlives_page_and_server_and_is_sent_along(page, parrot):
    with served(parrot) as port:
        opened(page, port)
        say(page, "قل مرحبا")
        say(page, "كم؟")
    with served(parrot, port):
        opened(page, port)
        assert page.locator("#log .text").all_inner_texts() == ["مرحبا", SPOKEN["dpo"]]
        with page.expect_request("**/api/chat") as sent:
            say(page, "وبعد؟")
        assert [message["content"] for message in sent.value.post_data_json["messages"]][::2] == [
            "قل مرحبا",
            "كم؟",
            "وبعد؟",
        ]
        page.click("#clear")
        page.reload()
        page.locator("#greeting").wait_for()
        assert page.locator("#log > *").count() == 0
    say(page, "أين أنت؟", wait=False)
    page.locator("[role=alert]").wait_for()
    assert page.input_value("#message") == "أين أنت؟"  # to be sent again


@needs_browser
def test_names_are_shown_after_the_vote_and_not_before(page, port):
    opened(page, port)
    page.click("#arena-tab")
    page.fill("#prompt", "كم؟")
    page.press("#prompt", "Enter")
    page.locator("#votes").wait_for()
    assert not any(name in page.locator("#duel").inner_html() for name in SPOKEN)
    page.click("#votes [value=first]")
    page.locator("#duel bdi").nth(1).wait_for()
    [vote] = stored()
    assert vote["vote"] == "first" and vote["answers"][0]["answer"] == page.locator("#first").inner_text()
    assert page.locator("#duel bdi").all_inner_texts() == [answer["checkpoint"] for answer in vote["answers"]]


@needs_browser
def test_command_serves_what_was_trained(page, workspace):
    process = subprocess.Popen(
        [sys.executable, "-m", "tools.chat", "--web", "--port", "0"],
        cwd=workspace.path,
        env=os.environ | {"PYTHONPATH": ""},
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        port = int(process.stdout.readline().split(":")[2].split("/")[0])
        opened(page, port)
        assert page.locator("#checkpoint option").all_inner_texts() == ["base", "sft"]
        say(page, "ما جمع معلم مثابر؟")
        answer = page.locator("#log .text").inner_text()
        with chdir(workspace.path):
            from stages.settings.reader import read

            assert answer == "".join(
                Models(read()).reply("sft", [{"role": "user", "content": "ما جمع معلم مثابر؟"}], 0.0)
            )
    finally:
        process.terminate()
        process.wait()
        process.stdout.close()
