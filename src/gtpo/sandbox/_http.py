"""The HTTP application of `gtpo sandbox serve`: reads requests, runs programs, and ends them on disconnect."""

from __future__ import annotations

import asyncio
import contextlib
import hmac
import json
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from gtpo.sandbox.service import KEY_HEADER, SandboxService

BODY_S = 60.0
"""Seconds for the body of a request."""
_BODY_BYTES = 4 << 20
BODIES_BYTES = 256 << 20
"""Bytes of all bodies being read; one client gets at most half of them."""


class _Json(JSONResponse):
    """In ASCII, so that every text can be sent."""

    def render(self, content: Any) -> bytes:
        return json.dumps(content).encode()


def application(service: SandboxService) -> Starlette:
    """Returns the ASGI application that answers the requests of a service."""

    async def ping(request: Request) -> Response:
        return _refusal(HTTPStatus.BAD_REQUEST, "a GET has no body") if _has_body(request) else _Json("pong")

    async def status(request: Request) -> Response:
        if _has_body(request):
            return _refusal(HTTPStatus.BAD_REQUEST, "a GET has no body")
        return _Json(service.load())

    async def run_code(request: Request) -> Response:
        return _unusable(service, request) or await _run_code(service, request)

    async def unknown(request: Request, error: Exception) -> Response:
        return _refusal(HTTPStatus.NOT_FOUND, "Not Found")

    return Starlette(
        routes=[
            Route("/v1/ping", ping),
            Route("/v1/status", status),
            Route("/run_code", run_code, methods=["POST"]),
        ],
        exception_handlers={HTTPException: unknown},
    )


def _has_body(request: Request) -> bool:
    return request.headers.get("Content-Length", "0") != "0" or "Transfer-Encoding" in request.headers


def _refusal(status: HTTPStatus, detail: str) -> Response:
    """Returns an error that closes the connection, since the body was not read."""
    return _Json({"detail": detail}, status, {"Connection": "close"})


def _unusable(service: SandboxService, request: Request) -> Response | None:
    """Returns the refusal of a request before its body is read, None if it is accepted."""
    length, key = request.headers.get("Content-Length", ""), service.key
    if "Origin" in request.headers:
        return _refusal(HTTPStatus.FORBIDDEN, "requests from web pages (with an Origin header) are not accepted")
    if key is not None and not hmac.compare_digest(request.headers.get(KEY_HEADER, "").encode(), key.encode()):
        return _refusal(HTTPStatus.UNAUTHORIZED, f"the header {KEY_HEADER} is missing or wrong")
    if not length.isdigit() or "Transfer-Encoding" in request.headers:
        return _refusal(HTTPStatus.LENGTH_REQUIRED, "Content-Length must be a whole number, without chunked encoding")
    if int(length) > _BODY_BYTES:
        return _refusal(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has more than {_BODY_BYTES} bytes")
    return None


async def _run_code(service: SandboxService, request: Request) -> Response:
    """Reads the body, runs the program in its turn and answers, while the client stays connected."""
    try:
        body = await asyncio.wait_for(_body(service, request), BODY_S)
        if body is None or not service.enter():
            service.turn_away()
            return _Json({"detail": "busy"}, HTTPStatus.TOO_MANY_REQUESTS, {"Retry-After": str(service.retry_after_s)})
        try:
            return await _while_connected(request, _answer(service, body, _client(request)))
        finally:
            service.leave()
    except TimeoutError:
        return _refusal(HTTPStatus.REQUEST_TIMEOUT, f"the body did not arrive within {BODY_S:g} s")
    except ClientDisconnect:
        return Response(status_code=HTTPStatus.BAD_REQUEST)  # the client is gone


async def _body(service: SandboxService, request: Request) -> bytes | None:
    """Returns the whole body; None if there is no room for it or its program, in which case it is discarded.

    A request enters the queue once its body has arrived, so slow requests do not take a place.
    """
    held, client = service.bodies, _client(request)
    keep, size, parts = service.has_room(), 0, []
    try:
        async for part in request.stream():
            keep = keep and sum(held.values()) + len(part) <= BODIES_BYTES and held[client] <= BODIES_BYTES // 2
            if keep:
                parts.append(part)
                size += len(part)
                held[client] += len(part)
        return b"".join(parts) if keep else None
    finally:
        held[client] -= size
        if not held[client]:
            del held[client]


def _client(request: Request) -> str:
    return request.client.host if request.client else ""


async def _while_connected(request: Request, work: Coroutine[Any, Any, Response]) -> Response:
    """Returns the result of `work`, which is cancelled when the client disconnects.

    Raises:
        ClientDisconnect: the client disconnected.
    """
    answer, hang_up = asyncio.ensure_future(work), asyncio.ensure_future(request.receive())
    try:
        await asyncio.wait([answer, hang_up], return_when=asyncio.FIRST_COMPLETED)
        if answer.done():
            return answer.result()
        raise ClientDisconnect
    finally:
        for job in (answer, hang_up):
            job.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await job


async def _answer(service: SandboxService, data: bytes, client: str) -> Response:
    try:
        body = json.loads(data)
        if not isinstance(body, dict):
            raise ValueError("the body must be a JSON object")
        answer = await service.run(body, client)
    except (ValueError, TypeError, OverflowError, RecursionError) as error:
        return _Json({"detail": str(error)}, HTTPStatus.UNPROCESSABLE_ENTITY)
    return _Json(answer)
