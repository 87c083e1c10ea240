"""Runs `tdmr1 label` in a separate process, and simulates its users over HTTP."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import requests
from PIL import Image

from support.command_line import start_tdmr1
from tdmr1_rewards.feedback.overview import read_overview
from tdmr1_rewards.feedback.store import FeedbackStore

PROMPTS = ("two red circles", "a dog in the snow")


def draw_folder(folder: Path, count: int, *, size: int = 24) -> Path:
    """Write a folder of different images, which get the two prompts in turn."""
    folder.mkdir(parents=True, exist_ok=True)
    lines = []
    for number in range(count):
        name = f"{number:04d}.png"
        Image.new("RGB", (size, size), (number % 256, number // 256, 90)).save(folder / name)
        lines.append(json.dumps({"file_name": name, "text": PROMPTS[number % len(PROMPTS)]}))
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


class Label:
    """A running `tdmr1 label`: its process and its URL. With `whole`, it has read all images of the folder."""

    def __init__(self, folder: Path, *options: str | int, fresh: bool = False, whole: bool = True) -> None:
        words = ["label", str(folder), "--no-open", "--no-shuffle", "--json", *map(str, options)]
        self.process = start_tdmr1(*words, fresh=fresh, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        text = ""
        while not text.endswith("}\n"):
            line = self.process.stdout.readline()
            assert line, self.process.stderr.read()
            text += line
        self.document = json.loads(text)
        self.url = self.document["url"]
        if whole:
            self.wait_for_images()

    def wait_for_images(self) -> None:
        """Wait until all images of the folder were read. The store is asked: a request would count as a person."""
        limit = time.monotonic() + 60
        store = FeedbackStore(Path(self.document["folder"]))
        try:
            while read_overview(store).progress.items < self.document["pictures"]:
                assert time.monotonic() < limit
                time.sleep(0.02)
        finally:
            store.close()

    def kill(self) -> None:
        """Send SIGKILL and wait for the end of the process."""
        self.process.kill()
        self.process.communicate()

    def interrupt(self) -> str:
        """Send SIGINT and wait for the end of the process. Returns its stderr."""
        self.process.send_signal(2)
        _, printed = self.process.communicate(timeout=60)
        return printed


@contextmanager
def labelling(folder: Path, *options: str | int, fresh: bool = False, whole: bool = True) -> Iterator[Label]:
    """Run `tdmr1 label` during the block."""
    label = Label(folder, *options, fresh=fresh, whole=whole)
    try:
        yield label
    finally:
        if label.process.poll() is None:
            label.kill()


class Person:
    """A user of the labelling page. Sends the requests that the page sends."""

    def __init__(self, url: str, name: str) -> None:
        address, _, token = url.partition("/#")
        self._address = address
        self.id = name
        self._session = requests.Session()
        self._session.headers["Authorization"] = f"Bearer {token}"
        self._count = 0

    def offers(self, limit: int = 6) -> list[dict]:
        """The images that the server offers for judgment."""
        return self._done(self._session.get(f"{self._address}/api/items?person={self.id}&limit={limit}", timeout=60))

    def answer(self, offer: dict, answer: str, key: str | None = None) -> str:
        """Send an answer. Returns its key after the server has confirmed it."""
        self._count += 1
        key = key or f"{self.id}-{os.getpid()}-{self._count}-{time.monotonic_ns()}"
        body = {"key": key, "item": offer["item"], "round": offer["round"], "person": self.id, "answer": answer}
        self._done(self._session.post(f"{self._address}/api/answers", json=body, timeout=60))
        return key

    @staticmethod
    def _done(response: requests.Response):
        assert response.status_code == 200, response.text
        return response.json()
