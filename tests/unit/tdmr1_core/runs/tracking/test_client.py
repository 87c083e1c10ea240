"""The trackers of a run, as the run sees them: no call waits, and what is sent has no secrets."""

from __future__ import annotations

import json
import subprocess
import sys
import time

import pytest
from support.errors import raises, warns
from support.runs import small_config

from tdmr1_core.preflight import trackers
from tdmr1_core.preflight.trackers import MODULES, check_trackers
from tdmr1_core.runs.tracking.client import QUEUED, Trackers, flat_settings, run_tags

pytestmark = pytest.mark.unit
DEAF = "import sys, time; time.sleep(60)"
DEAD = "pass"
ECHO = """
import sys, json
for line in sys.stdin:
    print(json.dumps({"tracker": "wandb", "url": line}), flush=True)
print(json.dumps({"tracker": "wandb", "lost": 0, "closed": True}), flush=True)
"""


@pytest.fixture
def started(tmp_path, monkeypatch):
    """Trackers whose process runs this Python code."""

    def start(code: str, announce=lambda _: None, limit=0.5) -> Trackers:
        def process(_):
            command, pipe = [sys.executable, "-I", "-S", "-c", code], subprocess.PIPE
            return subprocess.Popen(command, stdin=pipe, stdout=pipe, start_new_session=True)

        monkeypatch.setattr(Trackers, "_start_process", process)
        monkeypatch.setattr("tdmr1_core.runs.tracking.client.EXIT_LIMIT", 0.1)
        config = small_config(
            "tracking=[wandb]", rewards=[{"name": "object_count", "options": {"api_key": "SECRET-KEY-2"}}]
        )
        return Trackers(tmp_path, config, announce=announce, closing_limit=limit)

    return start


@pytest.mark.parametrize("code", [DEAF, DEAD])
def test_a_process_that_reads_nothing_never_blocks_the_run(started, code):
    tracked, text = started(code), {str(number): number for number in range(1000)}
    began = time.monotonic()
    for step in range(QUEUED + 50):
        tracked.numbers("metrics.jsonl", step, text if step < 20 else {})
    sent = time.monotonic()
    with warns("tracker-failed", tracker=None) as recorded:
        tracked.close()
    assert sent - began < 5
    assert time.monotonic() - sent < 5
    dropped = [str(warning.message) for warning in recorded if warning.message.values["tracker"] is None]
    assert len(dropped) == 1
    assert int(dropped[0].split()[0]) >= 30
    assert any("did not end within 0.5 s" in str(warning.message) for warning in recorded)


def test_a_run_that_ends_at_once_does_not_wait(started):
    tracked = started(DEAF, limit=5)
    began = time.monotonic()
    tracked.close(wait=False)
    assert time.monotonic() - began < 4
    tracked._process.kill()
    tracked._process.wait()


def test_what_is_sent_has_settings_tags_numbers_and_no_secrets(started, tmp_path):
    sent: list[str] = []
    tracked = started(ECHO, sent.append, limit=30)
    tracked.numbers("metrics.jsonl", 1, {"reward/mean": 0.5, "note": "SECRET-KEY-2", "step": 1, "is_x": True})
    tracked.image("samples", 1, tmp_path / "grid.png")
    tracked.close()
    opening, numbers, image = (json.loads(line.removeprefix("wandb: ")) for line in sent)
    assert numbers == {"kind": "metrics", "step": 1, "values": {"reward/mean": 0.5}}
    assert image == {"kind": "samples", "step": 1, "name": "samples", "path": str(tmp_path / "grid.png")}
    assert opening["trackers"] == ["wandb"]
    assert opening["project"] == "tdmr1"
    assert opening["tags"] == ["train", "tiny-tdm", "object_count"]
    assert opening["config"]["rewards.0.options.api_key"] == "***"
    assert opening["config"]["batch.groups"] == 2
    assert "SECRET" not in "".join(sent)


def test_tags_and_settings_are_flat(tmp_path):
    config = small_config("tracking=[wandb]", "tracking_tags=[mine, train]", model={"name": str(tmp_path / "my model")})
    assert run_tags(config) == ["train", "my model", "object_count", "mine"]
    settings = flat_settings(config, tmp_path)
    assert settings["model.name"] == "${run}/my model"
    assert settings["tracking_tags"] == '["mine", "train"]'
    assert all(value is None or isinstance(value, bool | int | float | str) for value in settings.values())


def test_a_tracker_that_is_not_installed_is_refused_with_the_command_that_installs_it(monkeypatch):
    missing = {"wandb": "wandb", "comet": "comet_ml"}
    monkeypatch.setattr(trackers, "find_spec", lambda name: None if name in missing.values() else name)
    check_trackers(["tensorboard", "mlflow"])
    for name, module in missing.items():
        with raises("dependency-missing", module=module, install=f"tdmr1[{name}]") as caught:
            check_trackers(["tensorboard", name])
        assert caught.value.hint == f"pip install 'tdmr1[{name}]'"
    with raises("several-errors"):
        check_trackers(list(MODULES))


@pytest.mark.parametrize(
    "settings",
    [
        {"tracking": ["wandb", "wandb"]},
        {"tracking": ["neptune"]},
        {"tracking_tags": [""]},
        {"tracking_tags": ["x"] * 33},
        {"tracking_project": "x" * 65},
    ],
)
def test_wrong_settings_are_refused(settings):
    with raises("setting-invalid"):
        small_config(**settings)
