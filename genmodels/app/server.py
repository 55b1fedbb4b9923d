"""The server of the page: address, port, limits and shutdown. Nothing is sent to anyone else."""

from __future__ import annotations

import errno
import os
import socket
import threading
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from genmodels.app.uploads import LARGEST_UPLOAD
from genmodels.app.work import Served

PORTS = 100
"""Number of ports that are tried."""
GRACE = 2
"""Seconds that open connections have when the server ends."""


def listen(host: str, port: int) -> socket.socket:
    """Return a socket that listens on the first free port from `port` on.

    It listens at once: two sockets that do not can be bound to the same port.

    Raises:
        ValueError: if none of `PORTS` is free, or the address is not one of this machine.
    """
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
    except OSError as error:
        raise ValueError(f"--host {host}: {error.strerror or error}") from None
    ports = range(port, min(port + PORTS, 65536))
    for candidate in ports:
        bound = socket.socket(family, socket.SOCK_STREAM)
        bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            bound.bind((address[0], candidate))
            bound.listen()
        except OSError as error:
            bound.close()
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                raise ValueError(f"--host {host}: {error.strerror or error}") from None
            continue
        return bound
    raise ValueError(f"no port from {port} to {ports[-1]} is free: choose another --port")


def serve(served: Sequence[Served], host: str, port: int) -> None:
    """Serve the page until Ctrl+C.

    Args:
        served: the models.
        host: address to listen on.
        port: port to listen on. If it is busy, the next free one is used.
    """
    bound = listen(host, port)
    chosen = bound.getsockname()[1]
    if chosen != port:
        print(f"port {port} is busy: using {chosen}", flush=True)
    server = _server(served, bound)
    print(f"{', '.join(each.name for each in served)} on {address(bound)} (Ctrl+C ends it)", flush=True)
    with suppress(KeyboardInterrupt):
        server.run(sockets=[bound])


@contextmanager
def running(served: Sequence[Served], host: str = "127.0.0.1", port: int = 7860) -> Iterator[str]:
    """Context in which the page is served in a thread; gives its address."""
    bound = listen(host, port)
    server = _server(served, bound)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]}, daemon=True)
    thread.start()
    while not server.started and thread.is_alive():
        time.sleep(0.02)
    try:
        yield address(bound)
    finally:
        server.should_exit = True
        thread.join()


def address(bound: socket.socket) -> str:
    """Return the address at which a browser on this machine reaches a socket."""
    host, port = bound.getsockname()[:2]
    here = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}.get(host, f"[{host}]" if ":" in host else host)
    return f"http://{here}:{port}/"


def _server(served: Sequence[Served], bound: socket.socket) -> Any:
    """Build the page and its server.

    The page is mounted in a server of our own: that of gradio's `launch` first sends a request to
    itself and gives up after three seconds, which a busy machine may need.
    """
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # before gradio is imported

    import gradio
    import uvicorn
    from fastapi import FastAPI

    from genmodels.app.page import STYLE, page, theme

    with warnings.catch_warnings():
        # gradio says that it does not render pages on the server, which nobody asked for.
        warnings.simplefilter("ignore", UserWarning)
        application = gradio.mount_gradio_app(
            FastAPI(openapi_url=None),  # without its /docs and /redoc, which load scripts of other hosts
            page(served),
            "/",
            server_name=bound.getsockname()[0],
            server_port=bound.getsockname()[1],
            footer_links=[],
            run_history=False,
            enable_monitoring=False,
            max_file_size=LARGEST_UPLOAD,
            pwa=False,
            ssr_mode=False,
            theme=theme(),
            head=f"<style>{STYLE}</style>",  # not `css`, which does not reach the links between parts
        )
    # Otherwise uvicorn reports a traceback, at the end, for every page that is still open.
    settings = uvicorn.Config(application, log_level="critical", access_log=False, timeout_graceful_shutdown=GRACE)
    return uvicorn.Server(settings)
