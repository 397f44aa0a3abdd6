"""The page and its server: chat, and blind comparison of two checkpoints. On this machine alone unless --host
says otherwise.
"""

import asyncio
import ipaddress
import json
import socket
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, suppress
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import uvicorn
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stages.settings.errors import Problem
from tools.chat.arena import Arena, Duel
from tools.chat.models import Models, Reply

FILES = {
    "page.html": "text/html",
    "page.css": "text/css",
    "page.js": "text/javascript",
    "icon.svg": "image/svg+xml",
}
LARGEST = 1_000_000  # bytes of a request
HEADERS = {
    # Nothing but this server's own files, no inline code, in no other page's frame; and no text is ever read
    # as HTML.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src "
    "'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

# --- what a request may say ---------------------------------------------------------------------------------


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


class Turn(Body):
    role: Literal["system", "user", "assistant"]
    content: str


class Question(Body):
    """A conversation that ends with the turn to be answered."""

    messages: Annotated[list[Turn], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2)]

    @model_validator(mode="after")
    def turns_alternate(self) -> "Question":
        roles = [turn.role for turn in self.messages]
        turns = roles[roles[0] == "system" :]
        if turns != ["user", "assistant"] * (len(turns) // 2) + ["user"]:
            raise ValueError(
                "messages must be turns of user and assistant, the last of the user, after at most one of "
                "system"
            )
        return self

    @property
    def plain(self) -> list[dict[str, str]]:
        return [turn.model_dump() for turn in self.messages]


class ChatBody(Question):
    checkpoint: str


class BattleBody(Question):
    checkpoints: Annotated[list[str], Field(min_length=2, max_length=2)]


class VoteBody(Body):
    battle: str
    vote: Literal["first", "second", "tie", "both_bad"]


async def parsed(request: Request, kind: type[Body]) -> Body:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise HTTPException(415, "the body must be application/json")
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST:
            raise HTTPException(413, f"a request may have {LARGEST:,} bytes")
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        raise HTTPException(400, f"{where}: {first['msg']}" if where else first["msg"]) from None


# --- answering ----------------------------------------------------------------------------------------------


class Service:
    """What the routes share. One answer or battle at a time; the models and the arena are used by one
    thread.
    """

    def __init__(self, models: Models, name: str, temperature: float):
        self.models, self.name, self.temperature = models, name, temperature
        self.arena = Arena()
        self.busy, self.worker = asyncio.Lock(), ThreadPoolExecutor(1)

    async def state(self, _: Request) -> Response:
        chosen = {"checkpoints": self.models.names, "checkpoint": self.name, "rivals": self.models.names[-2:]}
        return JSONResponse(chosen | {"temperature": self.temperature, "system": self.models.system})

    async def chat(self, request: Request) -> Response:
        asked = await parsed(request, ChatBody)
        return await self.streamed(
            lambda: self.models.reply(asked.checkpoint, asked.plain, asked.temperature), chat_events
        )

    async def battle(self, request: Request) -> Response:
        asked = await parsed(request, BattleBody)
        return await self.streamed(
            lambda: Duel.of(self.models, asked.checkpoints, asked.plain, asked.temperature), self.arena.events
        )

    async def vote(self, request: Request) -> Response:
        asked = await parsed(request, VoteBody)
        return JSONResponse(await self.worked(self.arena.vote, asked.battle, asked.vote))

    async def streamed(self, begin: Callable, events: Callable) -> Response:
        """JSON lines. What is wrong with the question is a 400 before any of them; what goes wrong later is
        the last one.
        """
        return JsonLines(self.one_by_one(events(await self.worked(begin))), media_type="application/x-ndjson")

    async def one_by_one(self, events: Iterator[dict]) -> AsyncIterator[str]:
        """Each event as soon as it is there; none is computed any more when the reader has gone."""
        async with self.busy:
            try:
                while (event := await self.worked(next, events, None)) is not None:
                    yield json.dumps(event, ensure_ascii=False) + "\n"
            except Problem as problem:
                yield json.dumps({"error": str(problem)}, ensure_ascii=False) + "\n"
            finally:
                self.worker.submit(events.close)  # after the step it may be at

    def worked(self, function: Callable, *arguments) -> asyncio.Future:
        return asyncio.get_running_loop().run_in_executor(self.worker, function, *arguments)


def chat_events(reply: Reply) -> Iterator[dict]:
    for piece in reply:
        yield {"piece": piece}
    yield {"stopped": reply.stopped, "forgotten": reply.forgotten}


class JsonLines(StreamingResponse):
    async def stream_response(self, send: Send) -> None:
        async with aclosing(
            self.body_iterator
        ):  # at once where the client goes away, and not when it is garbage
            await super().stream_response(send)


# --- who may ask --------------------------------------------------------------------------------------------


class Guard:
    """Answers only requests to this server by its own name and, for those that do something, from its own
    page.
    """

    def __init__(self, app: ASGIApp, host: str):
        self.app, self.host = app, host

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [
                    *message["headers"],
                    *((k.lower().encode(), v.encode()) for k, v in HEADERS.items()),
                ]
            await send(message)

        refusal = self.refusal(Request(scope)) if scope["type"] == "http" else None
        await (refusal or self.app)(scope, receive, with_headers)

    def refusal(self, request: Request) -> Response | None:
        asked, origin = request.headers.get("host", ""), request.headers.get("origin")
        if not self.is_ours(asked):
            return JSONResponse(
                {"error": "this server does not go by that name"}, 421
            )  # a name that leads here by DNS rebinding
        foreign = origin is not None and origin.partition("://")[2] != asked
        if request.method == "POST" and (
            foreign or request.headers.get("sec-fetch-site", "same-origin") != "same-origin"
        ):
            return JSONResponse({"error": "only this server's own page may ask"}, 403)
        return None

    def is_ours(self, asked: str) -> bool:
        """The address bound, or this machine's own names for itself; any address, but no name, where all are
        bound.
        """
        try:
            name = urlsplit(f"//{asked}").hostname or ""
        except ValueError:
            return False
        return name in ("127.0.0.1", "::1", "localhost", self.host.lower()) or (
            self.host in ("0.0.0.0", "::") and is_address(name)
        )


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


# --- the application ----------------------------------------------------------------------------------------


def application(models: Models, name: str, temperature: float, host: str) -> Starlette:
    service = Service(models, name, temperature)
    return Starlette(
        routes=[
            *(
                Route("/" if name == "page.html" else f"/{name}", file(name), methods=["GET"])
                for name in FILES
            ),
            Route("/api/state", service.state, methods=["GET"]),
            Route("/api/chat", service.chat, methods=["POST"]),
            Route("/api/battles", service.battle, methods=["POST"]),
            Route("/api/votes", service.vote, methods=["POST"]),
        ],
        middleware=[Middleware(Guard, host=host)],
        exception_handlers={
            Problem: lambda _, problem: JSONResponse({"error": str(problem)}, 400),
            HTTPException: lambda _, error: JSONResponse(
                {"error": error.detail}, error.status_code, error.headers
            ),
        },
    )


def file(name: str):
    async def answer(_: Request) -> Response:
        return FileResponse(Path(__file__).parent / name, media_type=FILES[name])

    return answer


def listen(host: str, port: int) -> socket.socket:
    try:
        return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)
    except (OSError, OverflowError) as error:
        raise Problem(f"cannot listen on --host {host} --port {port}: {error}; give another") from None


def server(models: Models, name: str, temperature: float, host: str) -> uvicorn.Server:
    """Logs nothing of what is asked or answered."""
    config = uvicorn.Config(
        application(models, name, temperature, host),
        access_log=False,
        log_level="error",
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def serve(models: Models, name: str, temperature: float, host: str, listening: socket.socket) -> None:
    """Until Ctrl-C."""
    place = f"[{host}]" if ":" in host else host
    print(f"http://{place}:{listening.getsockname()[1]}/  (Ctrl-C ends it)", flush=True)
    with suppress(KeyboardInterrupt):  # which uvicorn raises again when it has ended
        server(models, name, temperature, host).run(sockets=[listening])
