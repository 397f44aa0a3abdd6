"""OpenAI's chat completions, in front of the checkpoints: /v1/models and /v1/chat/completions.

https://platform.openai.com/docs/api-reference/chat. What a request asks for and cannot have is refused in one
sentence; what it says beyond that is ignored, and named in the header X-Ignored.
"""

import asyncio
import json
import secrets
import time
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, aclosing, contextmanager
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    model_validator,
)
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from starlette.types import Receive, Scope, Send

from stages.settings.errors import Problem
from stages.text.prompts import Message
from tools.chat.models import TOP_P, Models, Refusal, Reply, Sampling

LARGEST = 1_000_000  # bytes of a request
QUEUE = 16  # questions that wait for their turn

# --- what a request may say ---------------------------------------------------------------------------------


class Body(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)


def text_of(content: Any) -> Any:
    """Of a list of parts, which some clients send for a text."""
    if not isinstance(content, list):
        return content
    if not all(isinstance(part, dict) and part.get("type") == "text" for part in content):
        raise ValueError("only text can be read")
    return "".join(str(part.get("text", "")) for part in content)


class Turn(BaseModel):
    model_config = ConfigDict(extra="ignore", strict=True)

    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, BeforeValidator(text_of)]

    @property
    def plain(self) -> Message:
        return {"role": "system" if self.role == "developer" else self.role, "content": self.content}


class StreamOptions(BaseModel):
    include_usage: bool = False


# Settings that would change an answer, and the values that ask for nothing.
NEUTRAL: dict[str, tuple] = {
    "n": (1,),
    "best_of": (1,),
    "logprobs": (False,),
    "top_logprobs": (0,),
    "frequency_penalty": (0,),
    "presence_penalty": (0,),
    "repetition_penalty": (1,),
    "logit_bias": ({},),
    "tools": ([],),
    "functions": ([],),
    "tool_choice": ("none", "auto"),
    "function_call": ("none", "auto"),
    "response_format": ({"type": "text"},),
    "modalities": (["text"],),
    "min_p": (0,),
    "top_k": (0, -1),
}


class Question(BaseModel):
    """A conversation that ends with the turn to be answered, and how the answer is to be chosen."""

    model_config = ConfigDict(extra="allow", strict=True)

    messages: Annotated[list[Turn], Field(min_length=1)]
    temperature: Annotated[float, Field(ge=0, le=2, allow_inf_nan=False)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=-(2**63), lt=2**63)] | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = Field(
        None, validation_alias=AliasChoices("max_completion_tokens", "max_tokens")
    )
    stop: Annotated[list[str], BeforeValidator(lambda one: [one] if isinstance(one, str) else one)] | None = (
        None
    )
    stream: bool | None = False
    stream_options: StreamOptions | None = None

    @model_validator(mode="after")
    def can_be_answered(self) -> "Question":
        roles = [turn.role for turn in self.messages]
        if "user" not in roles or roles[-1] == "assistant":
            raise ValueError("messages must hold a turn of the user, and end with the turn to be answered")
        for name, neutral in NEUTRAL.items():
            value = self.model_extra.get(name)
            if value is not None and value not in neutral:
                raise ValueError(f"{name} is {value!r}, which is not supported here: leave it out")
        if len(self.stop or []) > 16 or not all(self.stop or []):
            raise ValueError("stop takes up to 16 texts, none of them empty")
        return self

    @property
    def ignored(self) -> list[str]:
        return [name for name in self.model_extra if name not in NEUTRAL and name.isascii()]

    @property
    def plain(self) -> list[Message]:
        return [turn.plain for turn in self.messages]

    def sampling(self, temperature: float) -> Sampling:
        """`temperature` is the server's own, for a question that names none."""
        return Sampling(
            temperature if self.temperature is None else self.temperature,
            TOP_P if self.top_p is None else self.top_p,
            self.seed,
            self.max_tokens,
            tuple(self.stop or ()),
        )


class Completion(Question):
    model: str = ""  # the server's own where it is not said


async def parsed(request: Request, kind: type[BaseModel]) -> BaseModel:
    if request.headers.get("content-type", "").partition(";")[0].strip().lower() != "application/json":
        raise Refusal("the body must be application/json", "not_json", 415)
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LARGEST:
            raise Refusal(f"a request may have {LARGEST:,} bytes", "too_large", 413)
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where, what = ".".join(map(str, first["loc"])), first["msg"].removeprefix("Value error, ")
        raise Refusal(f"{where}: {what}" if where else what, "invalid_request") from None


def refused(problem: Problem) -> dict:
    """How OpenAI's clients are told."""
    code, status = getattr(problem, "code", "problem"), getattr(problem, "status", 400)
    kind = "invalid_request_error" if status < 500 else "server_error"
    return {"error": {"message": str(problem), "type": kind, "param": None, "code": code}}


# --- what is answered ---------------------------------------------------------------------------------------


class Answering:
    """The form of one answer: an object, or chunks of it."""

    def __init__(self, model: str):
        self.model = model
        self.id, self.created = f"chatcmpl-{secrets.token_hex(12)}", int(time.time())

    def whole(self, reply: Reply) -> dict:
        message = {"role": "assistant", "content": reply.text}
        choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish(reply)}
        return self.object("chat.completion", [choice], usage=usage(reply), forgotten=reply.forgotten)

    def chunk(self, delta: dict, index: int = 0, finish: str | None = None, **more: Any) -> dict:
        choice = {"index": index, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self.object("chat.completion.chunk", [choice], **more)

    def chunks(self, reply: Reply, counted: bool) -> Iterator[dict]:
        """`forgotten`, in the last one that has a choice, is ours: how many of the oldest turns were left
        out.
        """
        yield self.chunk({"role": "assistant", "content": ""})
        for piece in reply:
            yield self.chunk({"content": piece})
        yield self.chunk({}, finish=finish(reply), forgotten=reply.forgotten)
        if counted:
            yield self.object("chat.completion.chunk", [], usage=usage(reply))

    def object(self, kind: str, choices: list[dict], **more: Any) -> dict:
        head = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return head | {"choices": choices} | more


def finish(reply: Reply) -> str:
    return "stop" if reply.stopped else "length"


def usage(reply: Reply) -> dict:
    asked, answered = len(reply.ids), len(reply.tokens)
    return {"prompt_tokens": asked, "completion_tokens": answered, "total_tokens": asked + answered}


# --- the service --------------------------------------------------------------------------------------------


class Service:
    """One answer at a time, in the order of the questions; the models are used by one thread."""

    def __init__(self, models: Models, name: str, temperature: float, queue: int = QUEUE):
        self.models, self.name, self.temperature = models, name, temperature
        self.busy, self.worker = asyncio.Lock(), ThreadPoolExecutor(1)
        self.room, self.queue, self.started = queue + 1, queue, int(time.time())

    @property
    def routes(self) -> list[Route]:
        return [
            Route("/v1/models", self.list, methods=["GET"]),
            Route("/v1/models/{name:path}", self.retrieve, methods=["GET"]),
            Route("/v1/chat/completions", self.complete, methods=["POST"]),
        ]

    async def list(self, _: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self.model(name) for name in self.models.names]})

    async def retrieve(self, request: Request) -> Response:
        return JSONResponse(self.model(self.models.known(request.path_params["name"])))

    def model(self, name: str) -> dict:
        owner = self.models.title
        return {"id": name, "object": "model", "created": self.started, "owned_by": owner}

    async def complete(self, request: Request) -> Response:
        asked = await parsed(request, Completion)
        sampling = asked.sampling(self.temperature)
        counted = bool(asked.stream_options and asked.stream_options.include_usage)
        with ExitStack() as stack:
            stack.enter_context(self.place())
            reply = await self.worked(self.models.reply, asked.model or self.name, asked.plain, sampling)
            answering = Answering(reply.name)
            if asked.stream:
                events = self.one_by_one(answering.chunks(reply, counted))
                response = Stream(events, stack.pop_all())
            else:
                await self.read(reply, request)
                response = JSONResponse(answering.whole(reply))
        if asked.ignored:
            response.headers["X-Ignored"] = ", ".join(asked.ignored)[:1000]
        return response

    @contextmanager
    def place(self) -> Iterator[None]:
        """A question's, from its being read to the end of its answer."""
        if not self.room:
            raise Refusal(f"{self.queue} questions wait already: ask again later", "too_many_requests", 429)
        self.room -= 1
        try:
            yield
        finally:
            self.room += 1

    async def read(self, reply: Reply, request: Request) -> None:
        """Compute the whole of an answer, unless its reader leaves."""
        async with aclosing(self.one_by_one(iter(reply))) as pieces:
            async for _ in pieces:
                if await request.is_disconnected():
                    return

    async def one_by_one(self, events: Iterator[Any]) -> AsyncIterator[Any]:
        """Each as soon as it is there; none is computed any more when the reader has gone."""
        async with self.busy:
            try:
                while (event := await self.worked(next, events, None)) is not None:
                    yield event
            finally:
                self.worker.submit(events.close)  # after the step it may be at

    def worked(self, function: Callable, *arguments: Any) -> asyncio.Future:
        return asyncio.get_running_loop().run_in_executor(self.worker, function, *arguments)


class Stream(StreamingResponse):
    """Server-sent events, as OpenAI's. What goes wrong on the way is the last of them."""

    def __init__(self, events: AsyncIterator[dict], place: ExitStack):
        super().__init__(self.lines(events), media_type="text/event-stream")
        self.place = place

    async def lines(self, events: AsyncIterator[dict]) -> AsyncIterator[str]:
        async with aclosing(events):
            try:
                async for event in events:
                    yield f"data: {json.dumps(event, ensure_ascii=False)}\n\n"
            except Problem as problem:
                yield f"data: {json.dumps(refused(problem), ensure_ascii=False)}\n\n"
                return
        yield "data: [DONE]\n\n"

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        with self.place:
            await super().__call__(scope, receive, send)

    async def stream_response(self, send: Send) -> None:
        # At once where the client goes away, and not when it is garbage.
        async with aclosing(self.body_iterator):
            await super().stream_response(send)
