"""Measures the labelling page with many clients, who do what the page in a browser does.

    python benchmarks/stress/clients.py --clients 200 --images 5000 --seconds 20

Draws a folder of images, starts `tdmr1 label`, waits until it has read all images, and prints the time until the first
image and a table of response times. Each client asks for the state every two seconds, judges an image every 1 to 5
seconds (uniformly distributed), and loads the next images. Slow clients send half a request and wait. The clients run
in this process, so their processor time is part of the response times.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

POLL = 2.0
"""Seconds between two requests for the state."""
PAUSE = (1.0, 5.0)
"""Shortest and longest time to judge an image, in seconds."""


@dataclass
class Times:
    """Response times in seconds and failed requests by kind, and the number of each status; 0 for no answer."""

    seconds: dict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    failed: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    statuses: Counter[int] = field(default_factory=Counter)


class Connection:
    """HTTP requests over one connection, which is opened again when the server has closed it."""

    def __init__(self, port: int, token: str, times: Times) -> None:
        self._port = port
        self._headers = f"Host: 127.0.0.1:{port}\r\nAuthorization: Bearer {token}\r\n"
        self._times = times
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def request(self, kind: str, path: str, document: Any = None) -> Any:
        """The JSON answer, or its bytes; None for a failed request. Measures its time as one of `kind`."""
        body = b"" if document is None else json.dumps(document).encode()
        method = "GET" if document is None else "POST"
        data = f"{method} {path} HTTP/1.1\r\n{self._headers}Content-Length: {len(body)}\r\n\r\n".encode() + body
        began = time.perf_counter()
        for attempt in range(2):
            try:
                status, head, answer = await asyncio.wait_for(self._exchange(data), 30)
                break
            except (OSError, asyncio.IncompleteReadError, TimeoutError):
                self.close()
                if attempt:
                    self._times.failed[kind] += 1
                    self._times.statuses[0] += 1
                    return None
        self._times.statuses[status] += 1
        self._times.seconds[kind].append(time.perf_counter() - began)
        if status != 200:
            self._times.failed[kind] += 1
            return None
        return json.loads(answer) if b"application/json" in head else answer

    async def _exchange(self, data: bytes) -> tuple[int, bytes, bytes]:
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(data)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        length = int(head.partition(b"content-length:")[2].split()[0])
        return int(head.split()[1]), head, await reader.readexactly(length)

    def close(self) -> None:
        """Close the connection."""
        if self._streams is not None:
            self._streams[1].close()
            self._streams = None


async def judge(number: int, connection: Connection, rng: random.Random, until: float) -> None:
    """One client: judges images until the end."""
    person = f"client{number}"
    offers: list[dict[str, Any]] = []
    await asyncio.sleep(rng.uniform(0, POLL))
    await connection.request("page", "/")
    polled, judged = 0.0, 0
    while time.perf_counter() < until:
        if time.perf_counter() - polled >= POLL:
            polled = time.perf_counter()
            await connection.request("state", f"/api/state?person={person}")
        if len(offers) < 3:
            offers = await connection.request("items", f"/api/items?person={person}&limit=7") or []
            for offer in offers:
                await connection.request("image", f"/api/images/{offer['hash']}")
        pause = rng.uniform(*PAUSE)
        while pause > 0:
            await asyncio.sleep(min(pause, POLL))
            pause -= POLL
            if pause > 0:
                polled = time.perf_counter()
                await connection.request("state", f"/api/state?person={person}")
        if offers:
            offer, judged = offers.pop(0), judged + 1
            answer = {"key": f"{person}-{judged}", "item": offer["item"], "round": offer["round"], "person": person}
            await connection.request(
                "answer", "/api/answers", answer | {"name": "", "answer": rng.choice(["like", "skip"])}
            )
    connection.close()


async def be_slow(port: int, until: float) -> None:
    """A client that sends half a request, again when it is closed."""
    while time.perf_counter() < until:
        try:
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(b"GET /api/state HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ")
            await asyncio.wait_for(reader.read(), max(0.1, until - time.perf_counter()))
            writer.close()
        except (OSError, TimeoutError):
            await asyncio.sleep(0.1)


async def measure(port: int, token: str, options: argparse.Namespace) -> Times:
    """Run all clients."""
    times, until = Times(), time.perf_counter() + options.seconds
    clients = [
        judge(number, Connection(port, token, times), random.Random(f"{options.seed}/{number}"), until)
        for number in range(options.clients)
    ]
    await asyncio.gather(*clients, *(be_slow(port, until) for _ in range(options.slow)))
    return times


def draw(folder: Path, count: int, seed: int) -> None:
    """Write `count` different JPEG images of 256 x 256 pixels."""
    rng = np.random.default_rng(seed)
    for number in range(count):
        small = rng.integers(0, 256, (8, 8, 3), np.uint8)
        Image.fromarray(small).resize((256, 256)).save(folder / f"{number:05d}.jpg")


def start(folder: Path) -> tuple[subprocess.Popen[str], int, str]:
    """Start the page; returns its process, port and token. Prints the time until the first image."""
    began = time.perf_counter()
    command = [sys.executable, "-m", "tdmr1_cli", "label", str(folder), "--no-open"]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    address, _, token = process.stdout.readline().strip().partition("/#")
    port = int(address.rpartition(":")[2])

    async def first() -> None:
        connection = Connection(port, token, Times())
        offers = await connection.request("items", "/api/items?person=first&limit=1")
        await connection.request("image", f"/api/images/{offers[0]['hash']}")
        print(f"first image after {time.perf_counter() - began:.2f} s")
        while (await connection.request("state", "/api/state?person=first"))["message"]:
            await asyncio.sleep(0.5)
        print(f"all images read after {time.perf_counter() - began:.1f} s")
        connection.close()

    asyncio.run(first())
    return process, port, token


def report(times: Times) -> None:
    """Print a table: number, failures, median, 95th percentile and maximum of each kind of request."""
    print(f"{'request':8} {'n':>7} {'failed':>7} {'median':>8} {'p95':>8} {'max':>8}   (ms)")
    everything = [each for found in times.seconds.values() for each in found]
    for kind, found in [*sorted(times.seconds.items()), ("all", everything)]:
        median, p95, most = 1000 * np.percentile(found, [50, 95, 100])
        failed = sum(times.failed.values()) if kind == "all" else times.failed[kind]
        print(f"{kind:8} {len(found):7} {failed:7} {median:8.1f} {p95:8.1f} {most:8.1f}")


def main() -> None:
    """Draw the images, start the page, run the clients and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=200, help="number of clients who judge images")
    parser.add_argument("--slow", type=int, default=0, help="number of clients with half a request")
    parser.add_argument("--images", type=int, default=5000)
    parser.add_argument("--seconds", type=float, default=20.0, help="duration of the measurement")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        draw(folder, options.images, options.seed)
        process, port, token = start(folder)
        try:
            report(asyncio.run(measure(port, token, options)))
        finally:
            process.terminate()
            process.wait(30)


if __name__ == "__main__":
    main()
