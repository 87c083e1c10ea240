"""Many clients at the same time, beside slow ones: at the labelling page and at a reward server."""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import signal
import subprocess
import time
from functools import partial

import numpy as np

from stress import clients
from stress.case import Case, command
from stress.processes import wait
from stress.scheduler import Part

SECONDS = 20.0
SLOW = 50
"""Clients that send half a request."""
IMAGES = 500
TOKEN = "token"
BUSY = 503
"""The status for more requests than a reward server lets wait. Its clients try again."""


def part(count: int) -> Part:
    """The part with this many clients."""
    return Part("clients", partial(_run, count), seconds=45, size=count)


def _run(count: int, case: Case) -> None:
    times = (_label if case.number == 0 else _score)(case, count)
    for kind, seconds in sorted(times.seconds.items()):
        median, most = (1000 * np.percentile(seconds, each) for each in (50, 100))
        server = "page" if case.number == 0 else "reward server"
        case.notes.append(f"{kind} at the {server}: n = {len(seconds)}, median {median:.0f} ms, longest {most:.0f} ms")
    case.codes.update({f"HTTP {status}": number for status, number in times.statuses.items()})
    allowed = {200} if case.number == 0 else {200, BUSY}
    case.check(not times.statuses.keys() - allowed, f"statuses of requests: {dict(times.statuses)}")
    case.check(times.statuses[200], "no request succeeded")


def _label(case: Case, count: int) -> clients.Times:
    folder = case.folder / "images"
    folder.mkdir()
    clients.draw(folder, IMAGES, case.seed)
    options = argparse.Namespace(clients=count, slow=SLOW, seconds=SECONDS, seed=case.seed)
    process, port, token = clients.start(folder)
    try:
        return asyncio.run(clients.measure(port, token, options))
    finally:
        _interrupt(case, process, "label")


def _score(case: Case, count: int) -> clients.Times:
    words = command("rewards", "serve", "jpeg_size", "--device", "cpu", "--port", 0)
    variables = {**os.environ, "TDMR1_REWARD_TOKEN": TOKEN}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, env=variables)
    assert process.stdout is not None
    port = int(process.stdout.readline().rpartition(":")[2].partition("/")[0])
    try:
        return asyncio.run(_measure(port, count, case.seed))
    finally:
        _interrupt(case, process, "serve")


async def _measure(port: int, count: int, seed: int) -> clients.Times:
    times, until = clients.Times(), time.perf_counter() + SECONDS
    scoring = [
        _client(clients.Connection(port, TOKEN, times), random.Random(f"{seed}/{n}"), until) for n in range(count)
    ]
    await asyncio.gather(*scoring, *(clients.be_slow(port, until) for _ in range(SLOW)))
    return times


async def _client(connection: clients.Connection, rng: random.Random, until: float) -> None:
    from support.hostile_requests import score_request

    await asyncio.sleep(rng.uniform(0, 2))
    while time.perf_counter() < until:
        await connection.request("score", "/score", score_request())
        await asyncio.sleep(rng.uniform(0.5, 3))
    connection.close()


def _interrupt(case: Case, process: subprocess.Popen[str], what: str) -> None:
    """Ctrl-C ends a server."""
    process.send_signal(signal.SIGINT)
    code = wait(process.pid, 30)
    process.returncode = -1 if code is None else code
    case.codes[str(code)] += 1
    case.check(code in (0, 130), f"{what}: exit code {code} after Ctrl-C")
