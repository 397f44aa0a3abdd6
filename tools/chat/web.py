"""The server: OpenAI's endpoint, the chat page that asks it, and the arena's votes. On this machine alone
unless --host says otherwise.
"""

import ipaddress
import secrets
import socket
from collections.abc import Callable
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Annotated, Literal
from urllib.parse import urlsplit

import uvicorn
from pydantic import Field
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from stages.settings.errors import Problem
from tools import votes
from tools.chat.arena import Arena, Duel
from tools.chat.endpoint import Body, Question, Service, Stream, parsed, refused
from tools.chat.models import Refusal
from tools.chat.samples import samples

PAGE = Path(__file__).parent / "page"
KINDS = {
    ".html": "text/html",
    ".css": "text/css",
    ".js": "text/javascript",
    ".mjs": "text/javascript",
    ".svg": "image/svg+xml",
}
# Path → file, of all that the page is made of.
FILES = {"/": "page.html"} | {
    f"/{path.relative_to(PAGE).as_posix()}": path.relative_to(PAGE).as_posix()
    for path in sorted(PAGE.rglob("*"))
    if path.suffix in KINDS and path.name != "page.html"
}
HEADERS = {
    # Nothing but this server's own files, no inline code, in no other page's frame; and no text is ever read
    # as HTML but by DOMPurify.
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src "
    "'self'; img-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'; "
    "trusted-types dompurify",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-store",
}

# --- the page's own routes ----------------------------------------------------------------------------------


class BattleBody(Question):
    checkpoints: Annotated[list[str], Field(min_length=2, max_length=2)]


class VoteBody(Body):
    battle: str
    vote: Literal["first", "second", "tie", "both_bad"]


class Page:
    """What the page needs beside the endpoint."""

    def __init__(self, service: Service, named: bool):
        self.service, self.models, self.named = service, service.models, named
        self.arena, self.started = Arena(), secrets.token_hex(8)
        self.samples = samples(service.name, self.models.template)

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/api/state", self.state, methods=["GET"]),
            Route("/api/battles", self.battle, methods=["POST"]),
            Route("/api/votes", self.vote, methods=["POST"]),
            Route("/api/results", self.results, methods=["GET"]),
        ]

    async def state(self, _: Request) -> Response:
        service, names = self.service, self.models.names
        chosen = {"checkpoints": names, "checkpoint": service.name, "named": self.named}
        chosen |= {"started": self.started, "rivals": rivals(names), "temperature": service.temperature}
        about = {"model": self.models.title, "system": self.models.system, "context": self.models.context}
        return JSONResponse(chosen | about | {"samples": self.samples})

    async def battle(self, request: Request) -> Response:
        asked = await parsed(request, BattleBody)
        sampling = asked.sampling(self.service.temperature)
        with ExitStack() as stack:
            stack.enter_context(self.service.place())
            duel = await self.service.worked(Duel.of, self.models, asked.checkpoints, asked.plain, sampling)
            return Stream(self.service.one_by_one(self.arena.events(duel)), stack.pop_all())

    async def vote(self, request: Request) -> Response:
        asked = await parsed(request, VoteBody)
        return JSONResponse(await self.service.worked(self.arena.vote, asked.battle, asked.vote))

    async def results(self, _: Request) -> Response:
        return JSONResponse({"results": [result.row for result in votes.results()]})


def rivals(names: list[str]) -> list[str]:
    """What is compared unless another is chosen: the last checkpoints of two runs, else the last two."""
    own = [name for name in names if "/" not in name]
    return [own[-1], names[-1]] if len(own) < len(names) else names[-2:]


# --- who may ask --------------------------------------------------------------------------------------------


class Guard:
    """Answers only requests to this server by its own name and, for those that do something, from its own
    page or from a program; where there is a key, only who has it, who may call the server by any name.
    """

    def __init__(self, app: ASGIApp, host: str, key: str = ""):
        self.app, self.host, self.key = app, host, key

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
        trusted = bool(self.key) and self.has_key(request)
        if not trusted and not self.is_ours(asked):  # a name that leads here by DNS rebinding
            return refusal("this server does not go by that name", "unknown_host", 421)
        foreign = origin is not None and origin.partition("://")[2] != asked
        if request.method == "POST" and (
            foreign or request.headers.get("sec-fetch-site", "same-origin") != "same-origin"
        ):
            return refusal("only this server's own page may ask", "foreign_page", 403)
        if self.key and not trusted and request.url.path.startswith(("/v1/", "/api/")):
            return refusal("a key is needed: Authorization: Bearer KEY", "invalid_api_key", 401)
        return None

    def has_key(self, request: Request) -> bool:
        kind, _, given = request.headers.get("authorization", "").partition(" ")
        return kind.lower() == "bearer" and secrets.compare_digest(given.encode(), self.key.encode())

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


def refusal(message: str, code: str, status: int) -> Response:
    return JSONResponse(refused(Refusal(message, code, status)), status)


def is_address(name: str) -> bool:
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


# --- the application ----------------------------------------------------------------------------------------


def application(service: Service, host: str, key: str = "", named: bool = False) -> Starlette:
    """`named`: whether the command line chose the checkpoint, which then goes before what a browser
    remembers.
    """
    return Starlette(
        routes=[*(Route(path, file(name), methods=["GET"]) for path, name in FILES.items()),
                *service.routes, *Page(service, named).routes],
        middleware=[Middleware(Guard, host=host, key=key)],
        exception_handlers={
            Problem: lambda _, problem: JSONResponse(refused(problem), getattr(problem, "status", 400)),
            HTTPException: lambda _, error: refusal(error.detail, "http", error.status_code),
        },
    )  # fmt: skip


def file(name: str) -> Callable:
    async def answer(_: Request) -> Response:
        return FileResponse(PAGE / name, media_type=KINDS[Path(name).suffix])

    return answer


def server(app: Starlette) -> uvicorn.Server:
    """Logs nothing of what is asked or answered."""
    config = uvicorn.Config(
        app,
        access_log=False,
        log_level="error",
        lifespan="off",
        server_header=False,
        proxy_headers=False,
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)


def serve(app: Starlette, listening: socket.socket) -> None:
    """Until Ctrl-C."""
    with suppress(KeyboardInterrupt):  # which uvicorn raises again when it has ended
        server(app).run(sockets=[listening])
