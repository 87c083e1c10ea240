"""A training run that waits for reviewers, and is killed, interrupted or gets no answers. No answer is lost."""

import json
import os
import re
import secrets
import signal
import subprocess
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import pytest
import requests
from support.command_line import changed, run_tdmr1, start_tdmr1
from support.waiting import wait_until

from tdmr1_rewards.feedback.store import FeedbackStore

pytestmark = pytest.mark.integration

IMAGES = 6
SMALL = ("batch.groups=2", "batch.group_size=3", "saving.tensorboard=false", "saving.samples_every=0")
SMALL += ("saving.checkpoint_every=1", "rewards.0.options.minutes=10", "timesteps.per_iteration=1")


def training(folder, *settings, iterations=3):
    sets = changed(SMALL, *settings)
    where = ["--iterations", iterations, "--output", folder]
    return ["train", "--reward", "human", "--set", "rewards.0.options.mode=wait", *sets, *where]


class Training:
    """A training run in the background, and its messages."""

    def __init__(self, *arguments):
        self.messages = []
        self._process = start_tdmr1(*arguments, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL)
        self._reader = threading.Thread(target=lambda: self.messages.extend(self._process.stderr), daemon=True)
        self._reader.start()

    def url(self):
        """The URL of the labelling page, once it is printed."""
        return wait_until(lambda: next(iter(re.findall(r"labelling page: (\S+)", "".join(self.messages))), None))

    def signal(self, number):
        self._process.send_signal(number)

    def end(self):
        """Wait for its end; returns the exit code and all messages."""
        code = self._process.wait(180)
        self._reader.join(30)
        return code, "".join(self.messages)


@contextmanager
def running(*arguments):
    started = Training(*arguments)
    try:
        yield started
    finally:
        started.signal(signal.SIGKILL)
        started.end()


class Reviewer:
    """A reviewer who likes every second image; `confirmed` lists the items whose answers were stored."""

    def __init__(self, url):
        base, _, token = url.partition("/#")
        self._base, self._headers = base, {"Authorization": f"Bearer {token}"}
        self.confirmed = []

    def answer(self, count):
        """Judge `count` images, even if the server is restarted in the meantime."""
        given = 0

        def one():
            nonlocal given
            try:
                query = {"person": "reviewer", "limit": count - given}
                offers = requests.get(f"{self._base}/api/items", query, headers=self._headers, timeout=5).json()
                for offer in offers:
                    body = {"key": secrets.token_hex(8), "item": offer["item"], "round": offer["round"]}
                    body |= {"person": "reviewer", "name": "", "answer": ("like", "dislike")[offer["item"] % 2]}
                    answer = requests.post(f"{self._base}/api/answers", json=body, headers=self._headers, timeout=5)
                    if answer.ok:
                        self.confirmed.append(offer["item"])
                        given += 1
            except requests.ConnectionError:
                pass
            return given >= count

        wait_until(one)


def judged_items(folder):
    store = FeedbackStore(folder / "feedback")
    answers = store.answers()
    store.close()
    return [answer.item.id for answer in answers]


def page_process(url):
    """The process that listens on the page's port."""
    port = int(re.search(r":(\d+)/#", url)[1])
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                words = Path(f"/proc/{entry}/cmdline").read_text().split("\0")
            except OSError:
                continue
            if "tdmr1_rewards.feedback.serving" in words and listens(int(entry), port):
                return int(entry)
    return None


def listens(process, port):
    """Whether one of a process's sockets listens on the port."""
    wanted = {
        line.split()[9]
        for line in Path("/proc/net/tcp").read_text().splitlines()[1:]
        if line.split()[3] == "0A" and int(line.split()[1].rpartition(":")[2], 16) == port
    }
    try:
        links = [os.readlink(f"/proc/{process}/fd/{entry}") for entry in os.listdir(f"/proc/{process}/fd")]
    except OSError:
        return False
    return any(f"socket:[{inode}]" in links for inode in wanted)


def test_after_a_kill_no_answer_is_lost_and_no_image_is_shown_again(packaged_model, tmp_path):
    folder = tmp_path / "run"
    with running(*training(folder)) as train:
        url = train.url()
        reviewer = Reviewer(url)
        reviewer.answer(IMAGES)  # the first iteration
        reviewer.answer(2)
        server = page_process(url)
        os.kill(server, signal.SIGKILL)
        reviewer.answer(1)  # at the same URL: the training run has restarted its page
        restarted = page_process(url)
        assert restarted not in (server, None)
        train.signal(signal.SIGKILL)
        train.end()
        wait_until(lambda: page_process(url) is None)  # the page ends with its training run
    assert judged_items(folder) == reviewer.confirmed
    assert len(reviewer.confirmed) == IMAGES + 3

    with running("train", "--resume", folder) as train:
        reviewer.answer(IMAGES - 3)  # the resumed run uses the same link
        reviewer.answer(IMAGES)
        code, messages = train.end()
    assert code == 0, messages
    assert judged_items(folder) == reviewer.confirmed
    assert sorted(reviewer.confirmed) == list(range(1, 3 * IMAGES + 1))  # every image was judged once
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [row["step"] for row in rows] == [1, 2, 3]
    assert [row["reward/human/mean"] for row in rows] == [0.5, 0.5, 0.5]
    assert [row["reward/human/unjudged"] for row in rows] == [0, 0, 0]


def test_ctrl_c_does_not_wait_for_reviewers(packaged_model, tmp_path):
    folder = tmp_path / "run"
    with running(*training(folder, iterations=2)) as train:
        reviewer = Reviewer(train.url())
        reviewer.answer(IMAGES + 2)
        began = time.monotonic()
        train.signal(signal.SIGINT)
        code, messages = train.end()
        assert time.monotonic() - began < 60
    assert code == 130, messages
    assert "stopped after iteration 1 of 2" in messages
    assert "Traceback" not in messages
    with running("train", "--resume", folder) as train:
        reviewer.answer(IMAGES - 2)
        assert train.end()[0] == 0
    assert sorted(reviewer.confirmed) == list(range(1, 2 * IMAGES + 1))
    evaluated = run_tdmr1("evaluate", folder, "--images", 2, "--teacher-steps", 1, "--prompts", "count", "--json")
    assert "human: scored by people only; the images are scored by object_count" in evaluated.stderr
    (of_set,) = json.loads(evaluated.stdout)["prompt_sets"]
    assert "object_count" in of_set["gain"]


def test_without_answers_the_run_stops_after_the_time_limit_and_can_be_resumed(packaged_model, tmp_path):
    folder = tmp_path / "run"
    done = run_tdmr1(*training(folder, "rewards.0.options.minutes=0.1", iterations=2), code=2)
    assert "waiting for people: 0 of 6 images judged" in done.stderr
    assert "nobody judged the image in time" in done.stderr
    assert "[nothing-scored]" in done.stderr
    assert f"tdmr1 train --resume {folder}" in done.stderr
    assert not (folder / "metrics.jsonl").exists() or (folder / "metrics.jsonl").read_text() == ""
    with running("train", "--resume", folder) as train:
        Reviewer(train.url()).answer(1)  # it waits again
