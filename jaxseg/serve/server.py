"""Runs the application: binds an address, and answers until the process is told to end."""

import socket

import uvicorn
from starlette.types import ASGIApp

from jaxseg.errors import ConfigError

GRACE_SECONDS = 3  # for requests that are under way when the server ends


def bind(host: str, port: int) -> socket.socket:
    """Returns a socket that is bound to an address and does not listen yet.

    Raises:
      ConfigError: if the address is taken, or not of this machine.
    """
    try:
        family, kind, *_, address = socket.getaddrinfo(
            host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        bound = socket.socket(family, kind)
        try:
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except OSError:
            bound.close()
            raise
    except OSError as error:
        raise ConfigError(
            f"--host {host} --port {port}: {error.strerror or error}; choose another"
        ) from error
    return bound


def make_server(app: ASGIApp) -> uvicorn.Server:
    """Returns the server; `run(sockets=[bound])` answers until a signal, or until `should_exit`."""
    config = uvicorn.Config(
        app,
        http="h11",
        lifespan="off",
        log_level="warning",
        server_header=False,
        timeout_graceful_shutdown=GRACE_SECONDS,
    )
    return uvicorn.Server(config)


def url_of(bound: socket.socket) -> str:
    """Returns the address of a socket for a browser."""
    host, port, *_ = bound.getsockname()
    return f"http://[{host}]:{port}" if bound.family == socket.AF_INET6 else f"http://{host}:{port}"
