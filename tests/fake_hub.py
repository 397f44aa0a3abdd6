"""A small model hub on 127.0.0.1: the endpoints that huggingface_hub speaks to, a log of what was asked, and
faults to order.
"""

import hashlib
import json
import re
import tempfile
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

import pyarrow as pa
from pyarrow import parquet

LARGE = (".parquet", ".safetensors", ".bin")  # kept as LFS files: named by sha256, others by their git blob
Files = dict[str, bytes]


def blob_id(name: str, content: bytes) -> str:
    if name.endswith(LARGE):
        return hashlib.sha256(content).hexdigest()
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


class FakeHub:
    """Serves repositories given as {(kind, "owner/name"): {path: bytes}}; a licence is read from README.md's
    front matter.

    `faults` are functions (handler, path) → bool, tried on every request; one that answers the request itself
    returns True.
    """

    def __init__(self, repositories: dict[tuple[str, str], Files]):
        self.commits: dict[tuple[str, str], dict[str, Files]] = {}
        self.log: list[tuple[str, str, str]] = []  # (path, Range, Authorization)
        self.faults: list[Callable] = []
        self.lists_hashes = True  # some mirrors do not
        self.redirects = False  # large files from another host, as the real hub does
        for (kind, repo), files in repositories.items():
            self.push(kind, repo, files)

    def push(self, kind: str, repo: str, files: Files, commit: str = "") -> str:
        """Let main be these files; commits from before stay."""
        commit = (
            commit
            or hashlib.sha1(
                repr(sorted((name, blob_id(name, content)) for name, content in files.items())).encode()
            ).hexdigest()
        )
        known = self.commits.setdefault((kind, repo), {})
        known[commit] = known["main"] = files
        known["main commit"] = {"commit": commit.encode()}
        return commit

    def __enter__(self) -> "FakeHub":
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self):
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        threading.Thread(target=self.server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_):
        self.server.shutdown()
        self.server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.server_port}"

    def asked(self, word: str = "") -> list[str]:
        """The paths asked for that hold a word."""
        return [path for path, _, _ in self.log if word in path]

    # --- answers
    # --------------------------------------------------------------------------------------------------------

    def answer(self, handler: BaseHTTPRequestHandler) -> None:
        path = unquote(urlsplit(handler.path).path)
        self.log.append((path, handler.headers.get("Range", ""), handler.headers.get("Authorization", "")))
        if any(fault(handler, path) for fault in list(self.faults)):
            return
        if found := re.fullmatch(r"/api/(model|dataset)s/([^/]+/[^/]+?)(?:/revision/(.+))?", path):
            self.describe(handler, found[1], found[2], found[3] or "main")
        elif found := re.fullmatch(r"(/cdn)?/(datasets/)?([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            self.send_file(
                handler, "dataset" if found[2] else "model", *found.groups()[2:], redirected=bool(found[1])
            )
        else:
            refuse(handler, 404)

    def describe(self, handler: BaseHTTPRequestHandler, kind: str, repo: str, revision: str) -> None:
        if (kind, repo) not in self.commits:
            return refuse(handler, 404, "RepoNotFound")
        if revision not in self.commits[kind, repo]:
            return refuse(handler, 404, "RevisionNotFound")
        files = self.commits[kind, repo][revision]
        commit = (
            self.commits[kind, repo]["main commit"]["commit"].decode() if revision == "main" else revision
        )
        card = dict(re.findall(r"^(license\w*): (.+)$", files.get("README.md", b"").decode(), re.MULTILINE))
        siblings = [
            described(name, content) if self.lists_hashes else {"rfilename": name}
            for name, content in files.items()
        ]
        return send(
            handler,
            200,
            json.dumps({"id": repo, "sha": commit, "cardData": card, "siblings": siblings}).encode(),
        )

    def send_file(
        self,
        handler: BaseHTTPRequestHandler,
        kind: str,
        repo: str,
        revision: str,
        name: str,
        redirected: bool,
    ) -> None:
        if (kind, repo) not in self.commits:
            return refuse(handler, 404, "RepoNotFound")
        files = self.commits[kind, repo].get(revision)
        if files is None or name not in files:
            return refuse(handler, 404, "EntryNotFound" if files else "RevisionNotFound")
        content, start = files[name], asked_from(handler)
        tag, headers = f'"{blob_id(name, content)}"', {"X-Repo-Commit": revision, "Accept-Ranges": "bytes"}
        if name.endswith(LARGE) and self.redirects and not redirected:
            elsewhere = f"http://localhost:{self.server.server_port}/cdn{handler.path}"
            linked = {"X-Linked-Etag": tag, "X-Linked-Size": str(len(content)), "Location": elsewhere}
            return send(handler, 302, b"", headers | linked)
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
        return send(handler, 206 if start else 200, content[start:], headers | {"ETag": tag})


def asked_from(handler: BaseHTTPRequestHandler) -> int:
    """The first byte that a request asks for."""
    found = re.match(r"bytes=(\d+)-", handler.headers.get("Range", ""))
    return int(found[1]) if found else 0


def described(name: str, content: bytes) -> dict:
    file = {
        "rfilename": name,
        "size": len(content),
        "blobId": hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest(),
    }
    if name.endswith(LARGE):
        file["lfs"] = {"sha256": blob_id(name, content), "size": len(content), "pointerSize": 130}
    return file


def send(handler: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict | None = None) -> None:
    handler.send_response(status)
    for name, value in ({"Content-Length": str(len(body))} | (headers or {})).items():
        handler.send_header(name, value)
    handler.end_headers()
    if handler.command != "HEAD":
        handler.wfile.write(body)


def refuse(
    handler: BaseHTTPRequestHandler,
    status: int,
    code: str = "",
    headers: dict | None = None,
    body: bytes = b"no",
) -> None:
    send(handler, status, body, ({"X-Error-Code": code} if code else {}) | (headers or {}))


# --- faults -------------------------------------------------------------------------------------------------


def ordered(word: str, times: int, answer: Callable[[BaseHTTPRequestHandler], None]) -> Callable:
    """Lets `answer` answer the requests whose path holds `word`, `times` times."""
    left = [times]

    def fault(handler: BaseHTTPRequestHandler, path: str) -> bool:
        if word not in path or not left[0]:
            return False
        left[0] -= 1
        answer(handler)
        return True

    return fault


def failing(word: str, status: int, times: int = 10**6, code: str = "", **headers: str) -> Callable:
    """Answers with a status. Repeats the Authorization it was sent, as bad servers do."""
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return ordered(
        word, times, lambda handler: refuse(handler, status, code, named, str(handler.headers).encode())
    )


def sending(word: str, content: bytes, times: int = 10**6) -> Callable:
    """Sends another content than the repository holds."""
    return ordered(word, times, lambda handler: send(handler, 200, content))


def cutting(word: str, after: int, times: int, content: bytes) -> Callable:
    """Promises the rest of `content` and closes the connection `after` bytes later."""

    def cut(handler: BaseHTTPRequestHandler) -> None:
        start = asked_from(handler)
        handler.send_response(206 if start else 200)
        handler.send_header("Content-Length", str(len(content) - start))
        handler.end_headers()
        handler.wfile.write(content[start : start + after])
        handler.wfile.flush()
        handler.close_connection = True

    return ordered(word, times, cut)


def crawling(word: str, content: bytes, step: int) -> Callable:
    """Sends a content slowly, `step` bytes at a time, until the client is gone."""

    def crawl(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Length", str(len(content)))
        handler.end_headers()
        for start in range(0, len(content), step):
            try:
                handler.wfile.write(content[start : start + step])
                handler.wfile.flush()
            except OSError:
                break
            time.sleep(0.05)
        handler.close_connection = True

    return ordered(word, 10**6, crawl)


# --- repositories in the published layouts ------------------------------------------------------------------


def table(rows: list[dict]) -> bytes:
    sink = pa.BufferOutputStream()
    parquet.write_table(pa.Table.from_pylist(rows), sink)
    return sink.getvalue().to_pybytes()


WORDS = (
    "كتاب مدرسة مدينة جامعة حديقة شجرة سماء قمر شمس بحر نهر جبل طريق بيت باب نافذة معلم طالب طبيب مهندس"
).split()


def cidar(rows: int) -> Files:
    """arbml/CIDAR, with its line ends and its zero-width spaces."""
    asked = [
        (f"اكتب جملة فيها {a} و{b}", f"رأيت {a} قرب {b}.\u200b\r\nانتهى.")
        for a in WORDS
        for b in WORDS
        if a != b
    ][:rows]
    table_rows = [
        {"index": i, "instruction": prompt, "output": answer} for i, (prompt, answer) in enumerate(asked)
    ]
    return {
        "README.md": b"---\nlicense: cc-by-nc-4.0\n---\n",
        "data/train-00000-of-00001-b2881e1b9f14c3b1.parquet": table(table_rows),
    }


def instar(rows: int) -> Files:
    """ClusterlabAi/InstAr-500k: one English system prompt in every row, and far more of one task than of the
    other.
    """
    fixed = {"source": "CIDAR", "system": "You are a helpful assistant.", "topic": "", "uuid": ""}
    asked = [
        fixed
        | {
            "instruction": f"ما الفرق بين {a} و{b}؟",
            "output": f"{a} غير {b}.",
            "task": "QA" if i % 4 else "Classification",
        }
        for i, (a, b) in enumerate([(a, b) for a in WORDS for b in WORDS if a != b][:rows])
    ]
    return {
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        "data/train-00000-of-00001.parquet": table(asked),
    }


def arabicqa(rows: int) -> Files:
    """riotu-lab/ArabicQA_2.1M."""
    asked = [
        {"question": f"أين يقع {a} في {b}؟", "answer": f"يقع {a} قرب {b}."}
        for a in WORDS
        for b in WORDS
        if a != b
    ][:rows]
    return {
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        "data/train-00000-of-00001.parquet": table(asked),
    }


def aya(rows: int) -> Files:
    """2A2I/Aya-Command.R-DPO."""
    pairs = [
        {
            "id": i,
            "prompt": f"صف {a} في {b}",
            "chosen": f"{a} جميل في {b}.",
            "rejected": f"لا أعرف {a}.",
            "model": "c4ai-command-r",
        }
        for i, (a, b) in enumerate([(a, b) for a in WORDS for b in WORDS if a != b][:rows])
    ]
    return {
        "README.md": b"---\nlicense: apache-2.0\n---\n",
        "data/train-00000-of-00001.parquet": table(pairs),
    }


def arabicmmlu(rows: int) -> Files:
    """MBZUAI/ArabicMMLU: a csv file for each split, absent options empty."""
    header = (
        "ID,Source,Country,Group,Subject,Level,Question,Context,Answer Key,Option 1,Option 2,Option "
        "3,Option 4,Option 5,is_few_shot\n"
    )
    lines = [
        f"{i},,,STEM,Biology,High,ما هو السؤال عن {word} رقم {i}؟,,B,{word},غيره,,,,0\n"
        for i, word in enumerate(WORDS[:rows])
    ]
    return {
        "README.md": b"---\nlicense: cc-by-nc-4.0\n---\n",
        "All/test.csv": (header + "".join(lines)).encode(),
        "All/dev.csv": header.encode(),
    }


def judged_benchmarks(rows: int) -> dict[tuple[str, str], Files]:
    """The benchmarks of the Open Arabic LLM Leaderboard and of culture and instructions, in the layouts that
    their harnesses read: nested cells, JSON in cells, a folder for each subject or none.
    """
    words = WORDS[:rows]
    free, closed = b"---\nlicense: apache-2.0\n---\n", b"---\nlicense: cc-by-nc-4.0\n---\n"
    trust = {
        f"{kind}/train-00000-of-00001.parquet": [
            {
                "Question": f"هل يجوز {kind} {word}؟",
                "A": "أ) نعم",
                "B": "ب) لا",
                "C": "ج) ربما",
                "Answer": "ب",
            }
            for word in some
        ]
        for kind, some in (("Ethics", words), ("Privacy", words[:3]))
    }
    madinah = (
        "ID,Question,Context,Answer Key,Option 1,Option 2,Option 3,Option 4,Option 5,Subject,Level\n"
        + "".join(
            f"{i},ما إعراب {word}؟,نص {i // 2},A,فاعل,خبر,,,,Arabic Language,\n"
            for i, word in enumerate(words)
        )
    )
    ifeval = [
        {"key": i, "prompt": f"اكتب عن {word} بلا فواصل في أقل من 90 كلمة.", "lang": ["ar"],
            "instruction_id_list": ["punctuation:no_comma", "length_constraints:number_words"],
            "kwargs": '[{}, {"relation": "less than", "num_words": 90}]'}
        for i, word in enumerate(words)
    ]  # fmt: skip
    rage = [
        {
            "question": f"ما لون {word}؟",
            "candidates": [f"{word} أبيض.", f"{word} كبير."],
            "gold_answer": "أبيض",
        }
        for word in words
    ]
    culture = [
        {"first_statement": f"في بيتنا في {country} {word}", "country": country, "region": "Gulf",
            "sub_topic": "بيت",
            "options": {"arabic_keys": ["أ", "ب", "ج"], "english_keys": ["A", "B", "C"],
                "text": ["نعم", "لا", "ربما"]},
            "answer_key": {"arabic_answer_key": "ج", "english_answer_key": "C"}}
        for country in ("UAE", "KSA") for word in words
    ]  # fmt: skip
    human = {
        f"{subject}/test-00000-of-00001.parquet": table(
            [
                {"question": f"ما {subject} {word}؟", "choices": ["أ", "ب", "ت", "ث"], "answer": 2}
                for word in words
            ]
        )
        for subject in ("anatomy", "virology")
    }
    return {
        ("dataset", "asas-ai/AraTrust-categorized"): {
            "README.md": free, **{name: table(own) for name, own in trust.items()}
        },
        ("dataset", "MBZUAI/MadinahQA"): {
            "README.md": closed, "Arabic Language (General)/test.csv": madinah.encode()
        },
        ("dataset", "MBZUAI/human_translated_arabic_mmlu"): {"README.md": b"", **human},
        ("dataset", "MBZUAI/ArabCulture"): {
            "README.md": closed, "data/test-00000-of-00001.parquet": table(culture)
        },
        ("dataset", "inceptionai/Arabic_IFEval"): {
            "README.md": free, "data/train-00000-of-00001.parquet": table(ifeval)
        },
        ("dataset", "OALL/ALRAGE"): {"README.md": b"", "data/train-00000-of-00001.parquet": table(rage)},
    }  # fmt: skip


ARABICMMLU = "7aa530e2893ac420352b3f5c1a1310c010e9758b"  # the commit that params.yaml names


def tiny_hub(tokenizer: bytes) -> FakeHub:
    """Every repository that the workflows name, shrunken."""
    research, free = (
        "---\nlicense: other\nlicense_name: qwen-research\n---\n",
        "---\nlicense: apache-2.0\n---\n",
    )
    hub = FakeHub(
        {
            ("model", "Qwen/Qwen3-1.7B-Base"): tiny_model("qwen3", free, tokenizer),
            ("model", "Qwen/Qwen2.5-3B"): tiny_model("qwen2", research, tokenizer),
            ("model", "Qwen/Qwen2.5-7B"): tiny_model("qwen2", free, tokenizer),
            ("dataset", "arbml/CIDAR"): cidar(60),
            ("dataset", "ClusterlabAi/InstAr-500k"): instar(60),
            ("dataset", "riotu-lab/ArabicQA_2.1M"): arabicqa(60),
            ("dataset", "2A2I/Aya-Command.R-DPO"): aya(60),
        }
        | judged_benchmarks(6)
    )
    hub.push("dataset", "MBZUAI/ArabicMMLU", arabicmmlu(20), ARABICMMLU)
    return hub


def tiny_model(kind: str, licence: str, tokenizer: bytes) -> Files:
    """A random model in the layout of Qwen2.5 (`qwen2`) or Qwen3 (`qwen3`): sharded safetensors, and pickles
    nobody should want.
    """
    import torch
    from transformers import Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

    shape = {
        "vocab_size": 4096,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    shape |= {"num_key_value_heads": 2, "tie_word_embeddings": True, "bos_token_id": 0, "eos_token_id": 0}
    torch.manual_seed(0)
    make, configure = {"qwen2": (Qwen2ForCausalLM, Qwen2Config), "qwen3": (Qwen3ForCausalLM, Qwen3Config)}[
        kind
    ]
    model = make(configure(**shape, **({"head_dim": 16} if kind == "qwen3" else {}))).to(torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder, max_shard_size="300KB")
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    assert len([name for name in files if name.endswith(".safetensors")]) > 1
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "eos_token": "<|endoftext|>",
        "pad_token": "<|endoftext|>",
    }
    files |= {"tokenizer.json": tokenizer, "tokenizer_config.json": json.dumps(config).encode()}
    return files | {
        "README.md": licence.encode(),
        "pytorch_model.bin": b"pickle",
        "modeling_qwen.py": b"raise SystemExit",
    }
