"""Rewards that fail during a training: one error is printed, nothing is lost, and a resume continues the run.

The metrics of a run are equal, digit for digit, whether its reward runs in a thread, in a process that is killed, or on
a server that is killed.
"""

import json
import os
import re
import signal
import subprocess
import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
from support.command_line import run_tdmr1, start_tdmr1
from support.paths import ROOT

from tdmr1_rewards.api import RewardBatch, RewardContext
from tdmr1_rewards.sources.remote import RemoteOptions, RemoteReward

pytestmark = pytest.mark.integration

TOKEN = "a-token-for-tests"
PLUGIN = """
import os, time
from pathlib import Path
from pydantic import Field
from tdmr1_rewards import RewardOptions, RewardResult, RewardSpec, hookimpl

@hookimpl
def tdmr1_register_rewards(register):
    common = {"summary": "a test", "default_prompts": "count", "default_preset": "tiny", "image_format": "array"}
    common["options"] = "redness:Settings"
    for factory in ("Redness", "Far"):
        register(RewardSpec(name=factory.lower(), factory=f"redness:{factory}", **common))

class Settings(RewardOptions):
    url: str = ""
    patience: float = 60
    switch: str | None = Field(None, description="a file that names the fault in the second iteration")

class Redness:
    def __init__(self, settings):
        self.switch = Path(settings.switch) if settings.switch else None

    def __call__(self, batch):
        scores = [float(image[..., 0].mean()) for image in batch.images]
        if self.switch and batch.context.run_folder and batch.context.iteration == 1 and self.switch.exists():
            fault = self.switch.read_text()
            if fault == "die":
                self.switch.unlink()
                os._exit(9)
            if fault == "raise":
                raise OSError("the lens is dirty")
            if fault == "hang":
                time.sleep(600)
            scores = {"nan": [float("nan")] * len(scores), "short": scores[1:]}[fault]
        return RewardResult(scores)

def Far(settings):
    from tdmr1_rewards.sources.remote import RemoteOptions, RemoteReward
    return RemoteReward(settings.url, RemoteOptions(patience=settings.patience))
"""
ORIGIN = r"\(from test-redness 1\.0\)"
SMALL = ("batch.groups=2", "batch.group_size=3", "evaluation.images=1", "saving.tensorboard=false")
SMALL += ("saving.samples_every=0", "seed=5", "timesteps.per_iteration=1")


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The environment in which the plugin with the test rewards is installed."""
    folder = tmp_path_factory.mktemp("plugin")
    (folder / "redness.py").write_text(PLUGIN)
    information = folder / "test_redness-1.0.dist-info"
    information.mkdir()
    (information / "METADATA").write_text("Metadata-Version: 2.1\nName: test-redness\nVersion: 1.0\n")
    (information / "entry_points.txt").write_text("[tdmr1]\nredness = redness\n")
    return {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT)]), "TDMR1_REWARD_TOKEN": TOKEN}


def training(folder, *, iterations=3, **reward):
    """The arguments of a small training with one reward."""
    sets = [*SMALL, f"rewards={json.dumps([reward])}"]
    return [
        "train",
        *(part for item in sets for part in ("--set", item)),
        "--iterations",
        iterations,
        "--output",
        folder,
    ]


def lines_of(folder):
    """The metrics of each iteration, without timings."""
    rows = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{key: row[key] for key in row if not re.match(r"time|images_per_second", key)} for row in rows]


@pytest.fixture(scope="module")
def undisturbed(packaged_model, plugin, tmp_path_factory):
    """The metrics of a run without a fault."""
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    run_tdmr1(*training(folder, name="redness"), **plugin)
    return lines_of(folder)


def same(rows, expected):
    """Whether the metrics of two runs are equal. The name of the reward, `far` or `redness`, is ignored."""
    return [{key.replace("far", "redness"): value for key, value in row.items()} for row in rows] == expected


def check_stopped(folder, stderr, iterations=1):
    """Check that one error was printed and that this number of iterations is saved."""
    assert stderr.count("error: ") == 1
    assert f"tdmr1 train --resume {folder}" in stderr
    assert (folder / "checkpoints" / "latest").read_text().strip() == f"step-{iterations:06d}"
    assert [row["step"] for row in lines_of(folder)] == list(range(1, iterations + 1))


@pytest.mark.parametrize(
    ("fault", "settings", "quoted", "code"),
    [
        ("raise", {}, "OSError: the lens is dirty", "reward-failed"),
        ("hang", {"timeout": 4}, "within 4 s", "reward-failed"),
        ("hang", {"timeout": 4, "isolated": True}, "within 4 s", "reward-failed"),
        ("nan", {}, "nan, a float, for image 0", "reward-result"),
        ("short", {"retries": 1}, r"5 scores for 6 images \(tried 2 times\)", "reward-result"),
        ("die", {"isolated": True}, "code 9", "reward-failed"),
    ],
)
def test_a_fault_stops_the_run_with_nothing_lost(undisturbed, plugin, tmp_path, fault, settings, quoted, code):
    folder, switch = tmp_path / "run", tmp_path / "switch"
    switch.write_text(fault)
    arguments = training(folder, name="redness", options={"switch": str(switch)}, **settings)
    began = time.monotonic()
    done = run_tdmr1(*arguments, code=2, **plugin)
    assert time.monotonic() - began < 400
    pattern = rf"^error: reward 'redness' {ORIGIN} .*{quoted}.* \[{code}\]$"
    assert re.search(pattern, done.stderr, re.MULTILINE), done.stderr
    check_stopped(folder, done.stderr)
    saved = folder / "failures" / "iteration-000002" / "redness"
    assert str(saved) in done.stderr
    assert len(list(saved.glob("image-*.png"))) == 6
    assert len(json.loads((saved / "batch.json").read_text())["images"]) == 6

    switch.unlink(missing_ok=True)
    if fault in ("raise", "die"):
        run_tdmr1("train", "--resume", folder, **plugin)
        assert same(lines_of(folder), undisturbed)


def test_a_retry_after_a_killed_worker_changes_no_metric(undisturbed, plugin, tmp_path):
    folder, switch = tmp_path / "run", tmp_path / "switch"
    switch.write_text("die")
    settings = {"isolated": True, "retries": 1, "options": {"switch": str(switch)}}
    run_tdmr1(*training(folder, name="redness", **settings), **plugin)
    assert not switch.exists()
    assert same(lines_of(folder), undisturbed)
    assert not (folder / "failures").exists()


def test_skipped_images_are_counted_and_reported(packaged_model, plugin, tmp_path):
    folder, switch = tmp_path / "run", tmp_path / "switch"
    switch.write_text("die")
    settings = {"isolated": True, "on_failure": "skip", "batch_size": 2, "options": {"switch": str(switch)}}
    done = run_tdmr1(*training(folder, name="redness", iterations=2, **settings), **plugin)
    assert re.search(rf"^warning: reward 'redness' {ORIGIN} .* iteration 2 \[reward-skipped\]$", done.stderr, re.M)
    rows = lines_of(folder)
    assert [row["reward/redness/failed"] for row in rows] == [0, 2]
    assert [row["reward/redness/unjudged"] for row in rows] == [0, 0]


@contextmanager
def server(plugin, port=0):
    """Run `tdmr1 rewards serve`. Yields the process and the three lines that it prints when it is ready."""
    arguments = ["rewards", "serve", "redness", "--port", port, "--device", "cpu"]
    process = start_tdmr1(*arguments, stdout=subprocess.PIPE, **plugin)
    try:
        yield process, [process.stdout.readline() for _ in range(3)]
    finally:
        process.kill()
        process.communicate()


def test_a_client_waits_for_a_restarted_server(plugin):
    """The server is killed while the client is connected, and is restarted later on the same port."""
    batch = RewardBatch(np.full((1, 4, 4, 3), 7, np.uint8), ["a"], [{}], [0], [0], RewardContext(None, 0, 0))
    with server(plugin) as (first, lines):
        url = re.search(r"http://127\.0\.0\.1:(\d+)/redness", lines[0])
        reward = RemoteReward(url[0], RemoteOptions(token=TOKEN, patience=300))
        reward.setup("cpu")
        assert reward(batch).scores == [7.0]
        first.kill()
        first.wait(30)
    answers = []
    request = threading.Thread(target=lambda: answers.append(reward(batch).scores))
    request.start()
    with server(plugin, url[1]):
        request.join(300)
    assert answers == [[7.0]]
    reward.close()


def test_a_killed_and_restarted_server_changes_no_metric(undisturbed, plugin, tmp_path):
    with server(plugin) as (first, lines):
        url = re.search(r"http://127\.0\.0\.1:(\d+)/redness", lines[0])
        assert "TDMR1_REWARD_TOKEN" in lines[1]
        assert f"--reward remote:{url[0]}" in lines[2]
        folder = tmp_path / "run"
        arguments = training(folder, name="far", options={"url": url[0], "patience": 300})
        run = start_tdmr1(*arguments, stderr=subprocess.PIPE, **plugin)
        try:
            for line in run.stderr:
                if line.startswith("iteration 1/"):
                    first.kill()
                    break
            first.wait(30)
            with server(plugin, url[1]):
                rest = run.communicate(timeout=600)[1]
        finally:
            run.kill()
    assert run.returncode == 0, rest
    assert same(lines_of(folder), undisturbed)


def test_an_unreachable_server_stops_the_run_which_can_be_resumed(undisturbed, plugin, tmp_path):
    folder = tmp_path / "run"
    with server(plugin) as (first, lines):
        url = re.search(r"http://127\.0\.0\.1:(\d+)/redness", lines[0])
        arguments = training(folder, name="far", options={"url": url[0], "patience": 1})
        run = start_tdmr1(*arguments, stderr=subprocess.PIPE, **plugin)
        try:
            for line in run.stderr:
                if line.startswith("iteration 1/"):
                    first.kill()
                    break
            rest = run.communicate(timeout=600)[1]
        finally:
            run.kill()
    assert run.returncode == 2, rest
    server_address = re.escape(url[0].rpartition("/")[0])
    pattern = rf"^error: reward 'far' {ORIGIN} .*{server_address}.* \[server-unreachable\]$"
    assert re.search(pattern, rest, re.MULTILINE), rest
    scored = len(lines_of(folder))
    assert scored in (1, 2), "the server may have scored the second iteration before it was killed"
    check_stopped(folder, rest, scored)
    with server(plugin, url[1]):
        run_tdmr1("train", "--resume", folder, **plugin)
    assert same(lines_of(folder), undisturbed)


def test_ctrl_c_ends_the_workers(packaged_model, plugin, tmp_path):
    """The first Ctrl-C finishes the iteration; afterwards no process of the run is left."""
    folder = tmp_path / "run"
    arguments = training(folder, iterations=200, name="redness", isolated=True)
    run = start_tdmr1(*arguments, stderr=subprocess.PIPE, **plugin)
    try:
        for line in run.stderr:
            if line.startswith("iteration 1/"):
                break
        listed = subprocess.run(["ps", "-o", "pid=", "--ppid", str(run.pid)], capture_output=True, text=True)
        workers = [int(pid) for pid in listed.stdout.split()]
        run.send_signal(signal.SIGINT)
        rest = run.communicate(timeout=600)[1]
    finally:
        run.kill()
    assert run.returncode == 130, rest
    assert "Traceback" not in rest
    assert len(workers) == 1  # evaluations use the same worker
    for pid in workers:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_wrong_arguments_of_serve_are_refused(plugin):
    printed = run_tdmr1("rewards", "serve", "rednes", code=2, **plugin).stderr
    assert "[reward-unknown]" in printed
    assert "'redness'" in printed
    serve = ["rewards", "serve", "redness", "--device", "cpu"]
    printed = run_tdmr1(*serve, "--option", "colour=1", code=2, **plugin).stderr
    assert "[reward-options]" in printed
    assert "'colour'" in printed
    assert "[argument-invalid]" in run_tdmr1(*serve, "--option", "colour", code=2, **plugin).stderr


def test_a_server_without_a_token_generates_one(plugin):
    without = {name: value for name, value in plugin.items() if name != "TDMR1_REWARD_TOKEN"}
    with server(without) as (_, lines):
        token = re.fullmatch(r"token: (\S{40,})\n", lines[1])[1]
        assert f"TDMR1_REWARD_TOKEN={token} tdmr1 train --reward remote:http://127.0.0.1:" in lines[2]
