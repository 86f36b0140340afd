"""Keeps other web sites out: checks the Host header, and sends headers of caution."""

from collections.abc import Collection

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("127.0.0.1", "localhost", "[::1]")
# The page takes nothing from elsewhere, and no other page may embed it.
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self';"
    " img-src 'self' data: blob:; connect-src 'self'; base-uri 'none'; form-action 'none';"
    " frame-ancestors 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}


class Guard:
    """Wraps an application.

    A web site can make its own name point to 127.0.0.1 (DNS rebinding). Its page would then read
    what a server there answers. Such requests carry the name of the site as their host.

    Args:
      app: the application.
      hosts: the hosts that a request may name, without port; None for any.
    """

    def __init__(self, app: ASGIApp, hosts: Collection[str] | None):
        self._app, self._hosts = app, hosts

    async def __call__(self, scope: Scope, receive: Receive, send: Send):
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return

        async def send_cautiously(message: Message):
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        app = self._app
        headers = Headers(scope=scope)
        if self._hosts is not None and _without_port(headers.get("host", "")) not in self._hosts:
            app = JSONResponse(
                {"error": f"this server answers requests to {', '.join(self._hosts)} only"}, 400
            )
        elif scope["method"] == "POST" and headers.get("sec-fetch-site") == "cross-site":
            app = JSONResponse({"error": "pages of other sites may not use this server"}, 403)
        await app(scope, receive, send_cautiously)


def _without_port(host: str) -> str:
    end = host.rfind(":")
    return (host[:end] if end > host.rfind("]") else host).lower()
