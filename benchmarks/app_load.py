"""Load of the page: many visitors sample at once for a minute.

    python benchmarks/app_load.py toyfaces/vae --visitors 20 --seconds 60

A visitor asks for samples of a new seed as soon as the last ones have come. One job computes at a
time, so the queue alone explains a response time of VISITORS times that of a single visitor.
"""

from __future__ import annotations

import json
import re
import statistics
import subprocess
import sys
import threading
import time
from dataclasses import dataclass

import tyro
from gradio_client import Client


@dataclass(frozen=True)
class Load:
    """Who asks for what."""

    run: tyro.conf.Positional[str] = "toyfaces/vae"
    """Model to serve."""
    visitors: int = 20
    """Number of visitors at once."""
    seconds: float = 60.0
    """Duration."""
    n: int = 4
    """Images per request."""
    alone: int = 10
    """Number of requests of a single visitor, before."""


def visit(client: Client, endpoint: str, seed: int, n: int) -> float:
    """Ask for samples and return the seconds until they came."""
    began = time.monotonic()
    gallery, command, *_ = client.predict(seed=seed, n=n, api_name=endpoint)
    assert len(gallery) == n and f"--seed {seed} " in command, command
    return time.monotonic() - began


def many(address: str, endpoint: str, load: Load) -> tuple[list[float], list[str]]:
    """Let all visitors ask until the time is over; return the seconds of requests, and errors."""
    clients = [Client(address, verbose=False) for _ in range(load.visitors)]
    seconds: list[float] = []
    errors: list[str] = []
    end = time.monotonic() + load.seconds

    def stay(number: int) -> None:
        seed = 1000 * number
        while time.monotonic() < end:
            try:
                seconds.append(visit(clients[number], endpoint, seed, load.n))
            except Exception as error:  # every failure counts
                errors.append(f"{type(error).__name__}: {error}")
            seed += 1

    threads = [threading.Thread(target=stay, args=(number,)) for number in range(load.visitors)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return seconds, errors


def main(load: Load) -> int:
    """Serve a model, measure and print; return 1 if a request failed or waited too long."""
    command = [sys.executable, "-m", "genmodels", "app", load.run]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    try:
        assert server.stdout is not None
        lines = iter(server.stdout.readline, "")
        address = next(found[0] for line in lines if (found := re.search(r"http://\S+", line)))
        client = Client(address, verbose=False)
        endpoint = "/" + re.sub(r"[^a-z0-9]+", "_", f"{load.run} Sample".lower()).strip("_")
        visit(client, endpoint, 0, load.n)  # the first request initialises
        single = statistics.median(visit(client, endpoint, seed, load.n) for seed in range(load.alone))
        seconds, errors = many(address, endpoint, load)
    finally:
        server.terminate()
        server.wait()
    explained = load.visitors * single
    result = {
        "run": load.run,
        "visitors": load.visitors,
        "requests": len(seconds),
        "failed": len(errors),
        "alone_s": round(single, 3),
        "median_s": round(statistics.median(seconds), 3) if seconds else None,
        "explained_s": round(explained, 3),
        "ratio": round(statistics.median(seconds) / explained, 2) if seconds else None,
    }
    print(json.dumps(result, indent=2))
    for error in errors[:5]:
        print(error, file=sys.stderr)
    return int(bool(errors) or not seconds or statistics.median(seconds) > 3 * explained)


if __name__ == "__main__":
    sys.exit(main(tyro.cli(Load, description=__doc__)))
