"""An HTTP service for an exported model, to start from: POST /score, GET /health.

pip install fastapi uvicorn
python examples/serve.py served/FiBiNET_demo --port 8000
curl -d '{"history_ids": [17, 4], "candidate_ids": [9, 30]}' -H 'content-type: application/json' localhost:8000/score

What is wrong with a request is one JSON object, {"error": "..."}, with a status of 4xx. Requests are bounded, in bytes
and in ids, so that none takes the memory or the time of many.
"""

import argparse
import socket
import sys
from collections.abc import Awaitable, Callable
from typing import Annotated, Any

from mm_fibinet.errors import EXIT_USER_ERROR, UserError, printable, run_cli
from mm_fibinet.scorer import Scorer

INSTALL = "is not installed; pip install fastapi uvicorn"
try:
    from fastapi import FastAPI, Request
    from fastapi.exceptions import RequestValidationError
    from fastapi.responses import JSONResponse
    from pydantic import BaseModel, ConfigDict, Field
    from starlette.exceptions import HTTPException
except ModuleNotFoundError as error:
    print(f"error: {error.name} {INSTALL}", file=sys.stderr)
    sys.exit(EXIT_USER_ERROR)

MOST_BYTES = 1 << 20
MOST_HISTORY, MOST_CANDIDATES, MOST_FEATURES, WIDEST = 10_000, 5_000, 100, 4_096

Id = Annotated[int, Field(strict=True, ge=-(2**63), lt=2**63)]
Number = Annotated[float, Field(strict=True, allow_inf_nan=False)]
Numbers = Annotated[list[Id | Number], Field(max_length=WIDEST)]
Value = Id | Number | Numbers | None
Values = Annotated[list[Id | Number | Numbers], Field(max_length=MOST_CANDIDATES)]


class Query(BaseModel):
    """What /score takes, as Scorer.score does."""

    model_config = ConfigDict(extra="forbid")

    history_ids: Annotated[list[Id], Field(max_length=MOST_HISTORY)]
    candidate_ids: Annotated[list[Id], Field(min_length=1, max_length=MOST_CANDIDATES)]
    user: Annotated[dict[str, Value], Field(max_length=MOST_FEATURES)] = {}
    context: Annotated[dict[str, Values], Field(max_length=MOST_FEATURES)] = {}


def make_app(scorer: Scorer) -> FastAPI:
    """The service of one model."""
    title = f"{scorer.card.model}, {scorer.card.expid}"
    app = FastAPI(title=title, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False)
    app.add_middleware(BoundedBody)

    @app.get("/health")
    def health() -> dict[str, Any]:
        return {"status": "ok", "model": scorer.card.model, "expid": scorer.card.expid, "items": scorer.card.num_items}

    @app.post("/score")
    def score(query: Query) -> dict[str, list[float]]:  # no coroutine: it is run in a thread
        return {"scores": scorer.score(query.history_ids, query.candidate_ids, query.user, query.context).tolist()}

    @app.exception_handler(RequestValidationError)
    def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        """The first thing that is not as in Query, with its place in the body."""
        first, *more = error.errors()
        place = ".".join(map(str, first["loc"][1:])) or "the body"
        others = f" (and {len(more)} more)" if more else ""
        return refusal(422, f"{place}: {first['msg']}{others}")

    @app.exception_handler(UserError)
    def wrong(_: Request, error: UserError) -> JSONResponse:
        return refusal(422, str(error))

    @app.exception_handler(HTTPException)
    def refused(_: Request, error: HTTPException) -> JSONResponse:
        return refusal(error.status_code, str(error.detail))

    @app.exception_handler(Exception)
    def broken(_: Request, __: Exception) -> JSONResponse:  # the log has its traceback
        return refusal(500, "the service failed; its log says why")

    return app


def refusal(status: int, text: str) -> JSONResponse:
    """The one form of an error."""
    return JSONResponse({"error": printable(text)[:500]}, status)


class BoundedBody:
    """Refuses a body of more than MOST_BYTES, before it is read where its length is told, and else when it is reached.

    Args:
        app: what answers the others.
    """

    def __init__(self, app: Callable[..., Awaitable[None]]):
        self.app = app

    async def __call__(self, scope: dict, receive: Callable, send: Callable) -> None:
        """An ASGI application."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        told = dict(scope["headers"]).get(b"content-length", b"0")
        body, more = b"", not (told.isdigit() and int(told) > MOST_BYTES)
        if not more:
            body = bytes(MOST_BYTES + 1)
        while more and len(body) <= MOST_BYTES:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            body += message.get("body", b"")
            more = message.get("more_body", False)
        if len(body) > MOST_BYTES:
            await refusal(413, f"the body has more than {MOST_BYTES:,} bytes")(scope, receive, send)
            return
        messages = iter([{"type": "http.request", "body": body, "more_body": False}])

        async def read() -> dict:
            return next(messages, None) or await receive()

        await self.app(scope, read, send)


def require_host(host: str) -> None:
    """Refuse a name that is no address, before the model is loaded."""
    try:
        socket.getaddrinfo(host, None)
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: no address ({error}), expected one of this machine, 127.0.0.1 say") from error


def main() -> None:
    """Load the model, then serve."""
    parser = argparse.ArgumentParser(description="Serve an exported model over HTTP.")
    parser.add_argument("folder", metavar="DIR", help="of export_onnx.py")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default: %(default)s)")
    parser.add_argument("--port", type=int, default=8000, help="(default: %(default)s)")
    parser.add_argument("--threads", type=int, default=1, help="of a request (default: %(default)s)")
    args = parser.parse_args()
    if not 0 <= args.port < 1 << 16:
        raise UserError(f"--port is {args.port}, expected a number from 0 to 65535")
    require_host(args.host)
    try:
        import uvicorn  # which the tests do without
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} {INSTALL}") from error
    app = make_app(Scorer(args.folder, args.threads))
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning")


if __name__ == "__main__":
    run_cli(main)
