"""What stands between the network and the lab: which hosts and origins may ask, and what a browser is told."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from typing import Any

Scope = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = {
    "content-security-policy": POLICY,
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), microphone=(), geolocation=()",
    "cache-control": "no-store",
}
LOOPBACK = ("localhost", "127.0.0.1", "::1")
MAX_JSON = 8 << 10


class Guard:
    """ASGI middleware.

    hosts: the names under which this server is meant to be reached, beside the loopback's. A page of another site whose
    name was pointed to this machine (DNS rebinding) sends its own name as Host, and is refused; so is a request that a
    page of another origin makes. anywhere: any address in figures will do too, because no such trick works with those.
    max_body: of a picture, in bytes; all else has at most 8 kB.
    """

    def __init__(self, app: App, hosts: Iterable[str] = (), anywhere: bool = False, max_body: int = MAX_JSON) -> None:
        self.app, self.anywhere, self.max_body = app, anywhere, max_body
        self.hosts = {*LOOPBACK, *(host.lower() for host in hosts)}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}

        async def guarded(message: MutableMapping[str, Any]) -> None:
            if message["type"] == "http.response.start":
                own = {name.lower() for name, _ in message["headers"]}
                more = [(k.encode(), v.encode()) for k, v in HEADERS.items() if k.encode() not in own]
                message["headers"] = [*message["headers"], *more]
            await send(message)

        refusal = self.refusal(scope, headers)
        if refusal is not None:
            await _refuse(guarded, *refusal)
            return
        limit = self.max_body if scope["path"] == "/api/pictures" else MAX_JSON
        await self.app(scope, _limited(receive, limit), guarded)

    def refusal(self, scope: Scope, headers: dict[str, str]) -> tuple[int, str] | None:
        """Status and reason, None for a request that may pass."""
        host = headers.get("host", "")
        if not self._known(host):
            return 421, "this server is not known under that name"
        origin = headers.get("origin")
        if origin is not None and origin != f"{scope.get('scheme', 'http')}://{host}":
            return 403, "requests of pages of other sites are refused"
        if headers.get("sec-fetch-site", "none") not in ("none", "same-origin"):
            return 403, "requests of pages of other sites are refused"
        length = headers.get("content-length", "0")
        limit = self.max_body if scope["path"] == "/api/pictures" else MAX_JSON
        if not (length.isascii() and length.isdecimal()) or int(length[:20]) > limit:
            return 413, f"at most {limit >> 20} MB" if limit >= 1 << 20 else f"at most {limit >> 10} kB"
        return None

    def _known(self, host: str) -> bool:
        name = host.lower()
        if name.startswith("["):
            name, _, rest = name[1:].partition("]")
            port = rest.removeprefix(":")
        else:
            name, _, port = name.partition(":")
        if port and not (port.isascii() and port.isdecimal()):
            return False
        if name in self.hosts:
            return True
        try:
            ipaddress.ip_address(name)
        except ValueError:
            return False
        return self.anywhere


class TooLarge(Exception):
    """More came than was announced, or may be."""


def _limited(receive: Receive, limit: int) -> Receive:
    """Bodies without an announced length are counted as they come."""
    seen = 0

    async def counted() -> MutableMapping[str, Any]:
        nonlocal seen
        message = await receive()
        if message["type"] == "http.request":
            seen += len(message.get("body", b""))
            if seen > limit:
                raise TooLarge
        return message

    return counted


async def _refuse(send: Send, status: int, reason: str) -> None:
    body = json.dumps({"error": reason}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
