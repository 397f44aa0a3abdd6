"""The page and its server: who may ask, blind votes, and the page in a real browser."""

import json
import shutil
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from stages.settings.files import sha256
from tests.fake_models import JSON, LONG, SHA256, SPOKEN, Parrot, served
from tests.test_serve import request
from tools import compare, votes
from tools.chat import arena, web

VENDOR = Path(web.__file__).parent / "page/vendor"


@pytest.fixture
def parrot(tmp_path, monkeypatch) -> Parrot:
    monkeypatch.chdir(tmp_path)
    return Parrot()


def post(port: int, path: str, body: dict) -> tuple[int, list[dict]]:
    """The status and the objects of a response, be it one or a stream of them."""
    response = request(port, "POST", path, json.dumps(body), JSON)
    lines = [line.removeprefix("data: ") for line in response.read().decode().splitlines()]
    return response.status, [json.loads(line) for line in lines if line.startswith("{")]


def question(text: str, **more) -> dict:
    return {"messages": [{"role": "user", "content": text}], "temperature": 0} | more


# --- what it is served with ---------------------------------------------------------------------------------


def test_every_response_is_locked_down(shared_port):
    for path, status in [
        ("/", 200),
        ("/page.js", 200),
        ("/api/state", 200),
        ("/nothing", 404),
        ("/v1/chat/completions", 405),
    ]:
        response = request(shared_port, "GET", path)
        policy = response.getheader("content-security-policy")
        assert (
            response.status == status
            and "default-src 'none'" in policy
            and "frame-ancestors 'none'" in policy
            and "require-trusted-types-for 'script'; trusted-types dompurify" in policy
        )
        assert (
            response.getheader("x-content-type-options") == "nosniff"
            and response.getheader("referrer-policy") == "no-referrer"
        )
        assert response.getheader("access-control-allow-origin") is None
    assert request(shared_port, "GET", "/page.js").getheader("content-type").startswith("text/javascript")


def test_libraries_are_those_of_their_packages():
    """Byte for byte, and each with its licence."""
    rows = [line.split(" | ") for line in (VENDOR / "README.md").read_text(encoding="utf-8").splitlines()]
    table = {row[3]: (row[0].strip("| "), row[6].strip("`| ")) for row in rows if len(row) == 7}
    named = {name: hashed for name, hashed in table.items() if name != "here"}
    assert set(named) == {path.name for path in VENDOR.iterdir() if path.suffix in (".js", ".mjs")}
    for name, (package, expected) in named.items():
        assert sha256(VENDOR / name) == expected and (VENDOR / f"{package}.LICENSE").exists()


def test_two_runs_are_compared_by_their_last_checkpoints():
    assert web.rivals(["base", "sft", "dpo"]) == ["sft", "dpo"]
    assert web.rivals(["base", "sft", "dpo", "trial/sft", "trial/kto"]) == ["dpo", "trial/kto"]


# --- blind votes --------------------------------------------------------------------------------------------


def battle(port: int, text: str = "كم؟", temperature: float = 0.5) -> tuple[dict[str, str], dict]:
    """Both answers, and what came last."""
    asked = question(text, checkpoints=["sft", "dpo"], temperature=temperature)
    status, events = post(port, "/api/battles", asked)
    assert status == 200 and not any(name in json.dumps(events[:-1]) for name in ("sft", "dpo"))
    choices = [choice for event in events for choice in event["choices"]]
    sides = enumerate(arena.SIDES)
    texts = {
        side: "".join(one["delta"]["content"] for one in choices if one["index"] == i) for i, side in sides
    }
    return texts, events[-1]


def stored() -> list[dict]:
    return [json.loads(line) for line in arena.VOTES.read_text(encoding="utf-8").splitlines()]


def test_vote_is_blind_and_stored_as_shown(port):
    texts, last = battle(port)
    assert not any(name in json.dumps(last) for name in ("sft", "dpo"))
    status, [names] = post(port, "/api/votes", {"battle": last["battle"], "vote": "second"})
    assert status == 200 and sorted(names.values()) == ["dpo", "sft"]
    [vote] = stored()
    assert list(vote) == ["id", "time", "prompt", "answers", "vote", "temperature"]
    assert vote["id"] == last["battle"] and vote["time"].endswith("+00:00") and vote["temperature"] == 0.5
    assert vote["prompt"] == [{"role": "user", "content": "كم؟"}] and vote["vote"] == "second"
    for side, answer in zip(("first", "second"), vote["answers"]):
        text = texts[side]
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
        last = battle(port, text)[1]
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
    assert status == 500 and str(arena.VOTES) in told["error"]["message"]
    Path("data").unlink()
    assert post(port, "/api/votes", one)[0] == 200 and len(stored()) == 1


def test_votes_are_counted_by_pair_with_an_interval(tmp_path, monkeypatch, capsys):
    """Whichever was shown first; a checkpoint trained anew is another one; what is no vote is passed over."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="holds no votes: vote in"):
        compare.main(["--votes"])
    arena.VOTES.parent.mkdir(parents=True)
    lines = [
        ("a", "b", "first"),
        ("b", "a", "first"),
        ("a", "b", "tie"),
        ("b", "a", "second"),
        ("c", "b", "first"),
    ]
    rows = [
        {"answers": [{"checkpoint": {"a": "dpo", "b": "sft", "c": "dpo"}[one], "weights_sha256": one * 64}
                     for one in pair], "vote": said}
        for *pair, said in lines
    ]  # fmt: skip
    text = "\n".join(map(json.dumps, rows)) + '\n{"vote": "first", "answers": []}\n{"vote": "fi'
    arena.VOTES.write_text(text, encoding="utf-8")
    latest, first = (result.row for result in votes.results())
    assert (latest["weights"], latest["won"], latest["lost"]) == (["cccccccc", "bbbbbbbb"], 1, 0)
    counted = [first[key] for key in ("names", "votes", "won", "ties", "lost", "win_rate")]
    assert counted == [["dpo", "sft"], 4, 2, 1, 1, 0.625]
    assert (first["ci_low"], first["ci_high"]) == (0.2194, 0.9081)  # Wilson's of 2.5 in 4
    compare.main(["--votes"])
    assert "dpo (aaaaaaaa)  sft (bbbbbbbb)" in capsys.readouterr().out


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
    context = browser.new_context(viewport={"width": 1000, "height": 700}, locale="ar")
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


MARKDOWN = """## الخطوات

نعم، هذه **كلمة** و`code` هنا:

plain English

Python لغة برمجة سهلة جدًا

- أولًا
- second

| المدينة | GDP |
|---|---:|
| القاهرة | high |

```python
print(1)
```

المعادلة $x^2$ ثم [رابط](https://ar.wikipedia.org)"""


@needs_browser
def test_markdown_is_laid_out_each_block_in_its_direction(page, port):
    opened(page, port)
    say(page, f"قل {MARKDOWN}")
    page.locator("#log math").wait_for()
    blocks = page.evaluate(
        """() => [...document.querySelectorAll("#log .text > *, #log table")].map((block) =>
            [block.tagName, getComputedStyle(block).direction])"""
    )
    assert blocks == [
        ["H2", "rtl"], ["P", "rtl"], ["P", "ltr"], ["P", "rtl"], ["UL", "rtl"],
        ["DIV", "rtl"], ["TABLE", "rtl"], ["DIV", "ltr"], ["P", "rtl"],
    ]  # fmt: skip
    left, right = (
        page.locator(f"#log th:has-text('{name}')").bounding_box()["x"] for name in ("GDP", "المدينة")
    )
    assert left < right  # the first column stands at the right
    assert page.locator("#log strong").inner_text() == "كلمة" and page.locator("#log pre").count() == 1
    link = page.locator("#log a")
    assert link.get_attribute("rel") == "noopener noreferrer"
    outer, text = (page.locator(one).first.bounding_box() for one in ("#log .text", "#log .text h2"))
    assert abs(outer["x"] + outer["width"] - text["x"] - text["width"]) < 2
    mine = page.locator("#log .user").bounding_box()
    assert mine["x"] < outer["x"] + outer["width"] / 2  # what was asked stands at the other edge
    for width in (360, 320):
        page.set_viewport_size({"width": width, "height": 640})
        assert page.evaluate("document.documentElement.scrollWidth") <= width


@needs_browser
def test_half_said_markdown_shows_no_marks_and_does_not_jump(page, shared_port):
    """Of every beginning of an answer: no mark of Markdown is shown, no block becomes one of another kind."""
    opened(page, shared_port)
    seen = page.evaluate(
        """async (text) => {
            const { show } = await import("/markdown.js"), place = document.createElement("div"), seen = [];
            for (let end = 1; end <= text.length; end++) {
                show(place, text.slice(0, end), end < text.length);
                const kinds = [...place.children].map((block) => block.firstElementChild?.tagName === "TABLE"
                    ? "TABLE" : block.tagName);
                const copy = place.cloneNode(true);
                copy.querySelectorAll("math, code").forEach((one) => one.remove());
                seen.push([kinds, copy.textContent]);
            }
            return seen;
        }""",
        MARKDOWN,
    )
    for (before, _), (kinds, _) in pairwise(seen):
        assert kinds[: len(before)] == before
    assert not [
        text for _, text in seen if any(mark in text for mark in ("**", "##", "|", "](", "```", "- "))
    ]


@needs_browser
def test_answer_is_text_and_never_html(page, port):
    opened(page, port)
    attack = '<img src=x onerror="window.hit=1"><script>window.hit=1</script><b>'
    links = "[x](javascript:window.hit=1) ![y](https://evil.example/z.png)"
    say(page, f"قل {attack} {links} $\\href{{javascript:1}}{{z}}$")
    assert attack in page.locator("#log .turn:last-child .text").inner_text()
    assert page.locator("#log img, #log script, #log b, #log a[href^=javascript]").count() == 0
    assert page.evaluate("window.hit") is None


@needs_browser
def test_stop_stops_the_server_and_keeps_what_was_said(page, parrot, port):
    opened(page, port)
    parrot.pause = 0.02
    say(page, LONG, wait=False)
    page.locator("#log .text p:has-text('كلمة')").wait_for()
    page.click("#chat-form .stop")
    page.locator("#chat-form [type=submit]").wait_for()
    before = 0
    while before != (before := parrot.words):
        time.sleep(0.3)
    assert parrot.words < 1000
    assert "أوقفتَ" in page.locator("#log .note").inner_text()
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
        with page.expect_request("**/v1/chat/completions") as sent:
            say(page, "وبعد؟")
        assert [message["content"] for message in sent.value.post_data_json["messages"]][::2] == [
            "قل مرحبا",
            "كم؟",
            "وبعد؟",
        ]
        page.click("#fresh")
        opened(page, port)
        assert page.locator("#greeting").is_visible()
        assert page.locator("#log > *").count() == 0
    say(page, "أين أنت؟", wait=False)
    page.locator("[role=alert]").wait_for()
    assert page.input_value("#message") == "أين أنت؟"  # to be sent again


@needs_browser
def test_two_tabs_lose_nothing(page, port):
    opened(page, port)
    say(page, "قل واحد")
    other = page.context.new_page()
    opened(other, port)
    assert other.locator("#log .text").all_inner_texts() == ["واحد"]
    say(page, "قل اثنان")
    other.locator("#log .text >> nth=1").wait_for()  # the idle tab sees it
    say(other, "قل ثلاثة")
    other.click("#fresh")
    say(other, "قل غير ذلك")
    other.close()
    page.reload()
    titles = page.locator("#conversations .title")
    titles.first.wait_for()
    assert titles.all_inner_texts() == ["قل غير ذلك", "قل واحد"]
    titles.nth(1).click()
    assert page.locator("#log .text").all_inner_texts() == ["واحد", "اثنان", "ثلاثة"]


@needs_browser
def test_half_an_answer_is_kept_marked_and_not_sent_back(page, parrot, port):
    opened(page, port)
    say(page, "قل واحد")
    parrot.fails = "انفجار"
    say(page, "قل اثنان ثلاثة انفجار", wait=False)
    page.locator("[role=alert]").wait_for()
    assert "امتلأت ذاكرة البطاقة" in page.locator("[role=alert]").inner_text()
    page.reload()
    page.locator("#log .text >> nth=1").wait_for()
    assert page.locator("#log .text").all_inner_texts() == ["واحد", "اثنان ثلاثة"]
    assert "انقطع" in page.locator("#log .note >> nth=1").inner_text()
    with page.expect_request("**/v1/chat/completions") as sent:
        say(page, "كم؟")
    assert [one["content"] for one in sent.value.post_data_json["messages"]] == ["قل واحد", "واحد", "كم؟"]


@needs_browser
@pytest.mark.parametrize(
    "store",
    [
        """localStorage.setItem("chat-settings", "[1"); localStorage.setItem("chat/x", '{"id": "x"}');
        localStorage.setItem("chat/y", '{"id": "y", "messages": [null, {"role": "user"}], "removed": 3}')""",
        "Storage.prototype.setItem = () => { throw new DOMException('full', 'QuotaExceededError') }",
        "Object.defineProperty(window, 'localStorage', { get() { throw new DOMException('no') } })",
    ],
    ids=["foreign", "full", "forbidden"],
)
def test_page_works_without_a_store_of_its_own(page, port, store):
    page.add_init_script(store)
    opened(page, port)
    say(page, "كم؟")
    assert page.locator("#log .text").all_inner_texts() == [SPOKEN["dpo"]]
    if "setItem(" not in store:
        assert "احفظها" in page.locator("#toast").inner_text()


@needs_browser
def test_selection_outlives_what_comes_after_it(page, parrot, port):
    opened(page, port)
    parrot.pause = 0.02
    say(page, f"قل أول **فقرة**\n\nثانية {'كلمة ' * 100}", wait=False)
    page.locator("#log .text p >> nth=1").wait_for()
    page.evaluate("""() => {
        const [first, second] = document.querySelectorAll("#log .text p");
        getSelection().setBaseAndExtent(first.firstChild, 0, second.firstChild, 5);
    }""")
    page.locator("#log .turn:last-child:not([aria-busy])").wait_for()
    assert page.evaluate("getSelection().toString()").split() == ["أول", "فقرة", "ثانية"]


@needs_browser
def test_edit_resend_and_another_answer(page, parrot, port):
    opened(page, port)
    say(page, "قل واحد")
    say(page, "قل اثنان")
    page.fill("#message", "مسودة")
    page.locator("#log [data-act=again] >> nth=1").click()
    page.locator("#log .turn:last-child:not([aria-busy])").wait_for()
    assert page.input_value("#message") == "مسودة"
    assert page.locator("#log .text").all_inner_texts() == ["واحد", "اثنان"]
    page.locator("#log .user [data-act=edit] >> nth=0").click()
    assert page.input_value("#message") == "قل واحد" and page.locator("#editing").is_visible()
    parrot.names = ["sft"]  # the server no longer has the chosen model: what was there stays
    say(page, "قل ثلاثة", wait=False)
    page.locator("[role=alert]").wait_for()
    assert "لا يوجد هذا النموذج" in page.locator("[role=alert]").inner_text()
    assert page.locator("#log .text").all_inner_texts() == ["واحد", "اثنان"]
    parrot.names = list(SPOKEN)
    page.locator("#log .user [data-act=edit] >> nth=0").click()
    say(page, "قل ثلاثة")
    page.reload()
    page.locator("#log .text").first.wait_for()
    assert page.locator("#log .text").all_inner_texts() == ["ثلاثة"]


@needs_browser
def test_conversations_are_named_saved_deleted_and_brought_back(page, port):
    opened(page, port)
    say(page, "قل **مهم**")
    item = page.locator("#conversations li")
    item.locator("summary").click()
    item.locator("[data-act=rename]").click()
    page.keyboard.type("حسابي")
    page.keyboard.press("Enter")
    assert item.locator(".title").inner_text() == "حسابي"
    for kind, expected in [("markdown", "## dpo\n\n**مهم**"), ("json", '"content": "**مهم**"')]:
        item.locator("summary").click()
        with page.expect_download() as saved:
            item.locator(f"[data-act=save_{kind}]").click()
        assert expected in Path(saved.value.path()).read_text(encoding="utf-8")
        item.locator("summary").click()
    item.locator("summary").click()
    item.locator("[data-act=remove]").click()
    assert item.count() == 0 and page.locator("#greeting").is_visible()
    page.locator("#toast button").click()
    assert item.locator(".title").inner_text() == "حسابي"
    assert page.locator("#log .text").inner_text() == "مهم"


@needs_browser
def test_page_speaks_english_and_remembers_it(page, parrot, port):
    opened(page, port)
    assert page.evaluate("document.documentElement.dir") == "rtl"
    page.click("#language")
    page.reload()
    page.locator("#checkpoint option").first.wait_for(state="attached")
    assert page.evaluate("[document.documentElement.lang, document.documentElement.dir]") == ["en", "ltr"]
    assert page.locator("#arena-tab").inner_text() == "Comparison"
    parrot.names = []
    say(page, "كم؟", wait=False)
    page.locator("[role=alert]").wait_for()
    assert "That model is not there now" in page.locator("[role=alert]").inner_text()


@needs_browser
def test_settings_are_sent_and_the_command_line_goes_before_memory(page, parrot):
    with served(parrot, named=True) as port:
        opened(page, port)
        page.select_option("#checkpoint", "sft")
        page.click("[popovertarget=settings]")
        page.fill("#system", "أجب بإيجاز.")
        page.fill("#seed", "7")
        page.fill("#max_tokens", "2")
        page.keyboard.press("Escape")
        page.reload()
        page.locator("#checkpoint option").first.wait_for(state="attached")
        assert page.input_value("#checkpoint") == "sft"  # of the same start of the server
        with page.expect_request("**/v1/chat/completions") as sent:
            say(page, "قل واحد اثنان ثلاثة")
        asked = sent.value.post_data_json
        assert asked["messages"][0] == {"role": "system", "content": "أجب بإيجاز."}
        assert (asked["seed"], asked["max_tokens"], asked["temperature"], asked["top_p"]) == (7, 2, 0, 0.95)
        assert "أقصى طول" in page.locator("#log .note").inner_text()
    with served(parrot, port, named=True):
        opened(page, port)
        assert page.input_value("#checkpoint") == "dpo"


@needs_browser
def test_page_brings_its_key(page, parrot):
    with served(parrot, key="secret") as port:
        page.goto(f"http://127.0.0.1:{port}/")
        page.locator("[role=alert]").wait_for()
        page.fill("#key", "secret")
        page.press("#key", "Enter")
        page.locator("#checkpoint option").first.wait_for(state="attached")
        say(page, "كم؟")
        page.goto(f"http://127.0.0.1:{port}/#key=secret")
        page.locator("#checkpoint option").first.wait_for(state="attached")
        assert "secret" not in page.url


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
    page.click("#results summary")
    page.locator("#results tbody tr").wait_for()
    won = vote["answers"][0]["checkpoint"]
    cells = page.locator("#results tbody tr > *").all_inner_texts()
    assert cells[0] == "dpo · sft" and cells[1:5] == ["1", *("100" if won == "dpo" else "001")]
    assert cells[5] == ("100% (21–100)" if won == "dpo" else "0% (0–79)")
