"""An OpenAI-compatible endpoint on 127.0.0.1 that judges as it is told, counts requests, and has faults to
order.
"""

import json
import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Reply = Callable[[list[dict]], str]


class FakeJudge:
    """`faults` are tried first, one a request: a status, bytes sent as they are, or seconds to wait."""

    def __init__(self, reply: Reply):
        self.reply, self.log, self.keys = reply, [], []
        self.faults: list[int | bytes | float] = []
        self.finish = "stop"
        self.lock = threading.Lock()

    def __enter__(self) -> "FakeJudge":
        judge = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with judge.lock:
                    judge.log.append((self.path, body))
                    judge.keys.append(self.headers.get("Authorization"))
                    fault = judge.faults.pop(0) if judge.faults else None
                if isinstance(fault, int):
                    # Repeats the key it was sent, as bad servers do.
                    return self.answer(fault, str(self.headers).encode(), {"Retry-After": "7"})
                if isinstance(fault, float):
                    time.sleep(fault)
                choice = {"message": {"role": "assistant", "content": judge.reply(body["messages"])}}
                whole = {"choices": [choice | {"finish_reason": judge.finish}],
                    "usage": {"prompt_tokens": 50, "completion_tokens": 1}}  # fmt: skip
                return self.answer(200, fault if isinstance(fault, bytes) else json.dumps(whole).encode())

            def answer(self, status: int, content: bytes, headers: dict | None = None) -> None:
                self.send_response(status)
                for name, value in ({"Content-Length": str(len(content))} | (headers or {})).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(content)

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
        return f"http://127.0.0.1:{self.server.server_port}/v1"
