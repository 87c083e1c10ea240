"""Every way in which a reward can fail, in a thread and in another process: always an error, never a number."""

import json
import os
import signal
import subprocess
import sys
import threading
import time
import warnings

import numpy as np
import pytest
from PIL import Image
from support.errors import raises
from support.faulty_rewards import Faulty, Stuck
from support.reward_batches import active, faulty, make_batch

from tdmr1_rewards.api import RewardResult
from tdmr1_rewards.errors import RewardWarning, Tdmr1Error
from tdmr1_rewards.scoring import supervisor
from tdmr1_rewards.scoring.runner import RewardRunner, check_any_scored

pytestmark = pytest.mark.unit

X = "reward 'x' (from foo-dist 1.2) "
FAILED = {"reward": "x", "provenance": "foo-dist 1.2"}


def make_runner(kind, **settings):
    reward = Faulty() if kind == "thread" else faulty()
    return RewardRunner([active(reward, **settings)], "weighted_sum", workers=2, device="cuda:7")


@pytest.fixture(scope="module", params=["thread", "process"])
def runner(request):
    """One runner for all faults after which the reward can still be used."""
    with make_runner(request.param) as runner:
        runner.kind = request.param
        yield runner


@pytest.fixture
def quick(monkeypatch):
    """Short waits between retries and in close."""
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(supervisor, "GRACE", 0.2)


@pytest.mark.parametrize(
    ("order", "code", "values", "quoted", "hint"),
    [
        ("raise", "reward-failed", {"error": "ValueError: no such word"}, "ValueError: no such word", None),
        ("hint", "reward-failed", {}, "the lamp is out", "light it"),
        ("nan", "reward-result", {"score": "nan", "type": "float", "image_id": 100}, "nan", "a finite number"),
        ("inf", "reward-result", {"score": "-inf", "type": "float", "image_id": 100}, "-inf", "a finite number"),
        ("text", "reward-result", {"score": "'0.5'", "type": "str", "image_id": 100}, "'0.5'", "a finite number"),
        ("huge", "reward-result", {"type": "int", "image_id": 100}, "a int, for image 100", "a finite number"),
        ("short", "reward-result", {"found": 1, "expected": 2}, "1 scores for 2 images", "one for each image"),
        ("type", "reward-result", {"type": "dict"}, "a dict instead of a RewardResult", "RewardResult(scores=[...])"),
        ("exit", "reward-failed", {"error": "SystemExit: 3"}, "SystemExit: 3", "raise an ordinary exception"),
    ],
)
def test_each_fault_is_one_sentence_and_the_next_call_works(runner, order, code, values, quoted, hint):
    with raises(code, **FAILED, **values) as caught:
        runner.score(make_batch(order, "b"))
    assert caught.value.message.startswith(X)
    assert quoted in caught.value.message
    assert "\n" not in caught.value.message
    assert (hint or "") in (caught.value.hint or "")
    assert runner.score(make_batch("a", "b")).total == [0.0, 1.0]


def test_the_cause_of_a_failure_is_the_exception_of_the_reward(runner):
    with pytest.raises(Tdmr1Error) as caught:
        runner.score(make_batch("raise"))
    cause = caught.value.__cause__
    assert isinstance(cause, ValueError) or "do_raise" in str(cause)


def test_none_and_details_are_returned(runner):
    scored = runner.score(make_batch("details", "b"))
    assert scored.total == [None, None]
    assert scored.unjudged == {"x": 2}
    assert scored.failed == {"x": 0}
    assert scored.details[1]["x"]["device"] == "cuda:7"
    assert np.array_equal(scored.details[1]["x"]["boxes"], [[1.0, 1.0]])


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_call_that_hangs_fails_after_the_time_limit_and_close_does_not_wait(kind, quick):
    with make_runner(kind, timeout=0.4) as runner:
        runner.set_up()
        began = time.monotonic()
        with raises("reward-failed", **FAILED, seconds=0.4) as caught:
            runner.score(make_batch("hang"))
        if kind == "thread":
            assert "isolated: true" in caught.value.hint
            with raises("reward-failed", **FAILED, seconds=0.4, earlier_call=True):
                runner.score(make_batch("a"))
    assert time.monotonic() - began < 30


def test_a_thread_whose_late_call_returns_is_used_again_without_overlap():
    going_on, release = [], threading.Event()

    def slow(batch):
        going_on.append(batch)
        if batch.prompts[0] == "first":
            release.wait(60)
        count = len(going_on)
        going_on.pop()
        return RewardResult([float(count)])

    with RewardRunner([active(slow, timeout=1.5)], "weighted_sum", 1) as runner:
        with raises("reward-failed", **FAILED, seconds=1.5):
            runner.score(make_batch("first"))
        second = runner.submit(make_batch("second"))
        release.set()
        assert second.result(60).total == [1.0]


def test_the_timeout_of_the_settings_overrides_the_spec_and_none_is_no_limit():
    spec = {"timeout": 3.0}
    assert active(None, spec=spec).seconds == 3.0
    assert active(None, spec=spec, timeout=0.5).seconds == 0.5
    assert active(None, spec=spec, timeout="none").seconds is None
    assert active(None, spec={"timeout": None}).seconds is None


def test_batch_size_and_device_of_the_settings_override_spec_and_runner():
    sizes, devices = [], []

    class Recording:
        def setup(self, device):
            devices.append(device)

        def __call__(self, batch):
            sizes.append(len(batch))
            return RewardResult([0.0] * len(batch))

    entry = active(Recording(), spec={"batch_size": 4}, batch_size=2, device="cuda:3")
    with RewardRunner([entry], "weighted_sum", 1, device="cpu") as runner:
        runner.score(make_batch(*"abcde"))
    assert (sizes, devices) == ([2, 2, 1], ["cuda:3"])


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_failed_call_is_repeated(kind, quick, tmp_path):
    path = tmp_path / "left"
    with make_runner(kind, retries=2) as runner:
        path.write_text("2")
        assert runner.score(make_batch(f"fail {path}", "b")).total == [0.0, 1.0]
        path.write_text("3")
        with raises("reward-failed", **FAILED, tries=3) as caught:
            runner.score(make_batch(f"fail {path}"))
        assert "OSError: 1 to go" in caught.value.message


def test_a_process_that_ended_is_restarted_and_set_up_again(quick):
    with make_runner("process") as runner:
        first = runner.score(make_batch("whoami")).details[0]["x"]
        with raises("reward-failed", **FAILED, exit_code=7) as caught:
            runner.score(make_batch("die"))
        assert caught.value.message.endswith(": last words before the end")
        second = runner.score(make_batch("whoami")).details[0]["x"]
        os.kill(second["pid"], signal.SIGKILL)
        with raises("reward-failed", **FAILED, exit_code=-signal.SIGKILL):
            runner.score(make_batch("a"))
        third = runner.score(make_batch("whoami")).details[0]["x"]
        assert len({first["pid"], second["pid"], third["pid"]}) == 3
        assert third["device"] == "cuda:7"


def test_a_retry_recovers_from_a_killed_process(quick):
    with make_runner("process", retries=1) as runner:
        pid = runner.score(make_batch("whoami")).details[0]["x"]["pid"]
        os.kill(pid, signal.SIGKILL)
        assert runner.score(make_batch("a", "b")).total == [0.0, 1.0]


def test_a_reward_that_cannot_be_set_up_is_reported_by_both_hosts(quick):
    for reward in (Stuck(), faulty("Stuck")):
        with (
            RewardRunner([active(reward)], "weighted_sum", 1) as runner,
            raises("reward-failed", **FAILED) as caught,
        ):
            runner.score(make_batch("a"))
        assert caught.value.message.startswith(f"{X}cannot be set up: OSError: no weights (")
        assert caught.value.message.endswith(f"faulty_rewards.py:{caught.value.values['line']}, in setup)")
        assert caught.value.hint.startswith(f"look at {caught.value.values['file']}, line ")


def test_the_images_of_a_call_that_stops_the_run_are_saved(tmp_path):
    metadata = [{}, {}, {"tag": ("a", 1)}, {}]
    batch = make_batch("a", "b", "raise ☃", "d", metadata=metadata, run_folder=tmp_path, iteration=11)
    folder = tmp_path / "failures" / "iteration-000012" / "x"
    with make_runner("thread", batch_size=2) as runner, raises("reward-failed", **FAILED, folder=str(folder)) as caught:
        runner.score(batch)
    assert str(folder) in caught.value.hint
    assert sorted(path.name for path in folder.iterdir()) == ["batch.json", "image-000102.png", "image-000103.png"]
    assert np.all(np.asarray(Image.open(folder / "image-000103.png")) == 3)
    document = json.loads((folder / "batch.json").read_text(encoding="utf-8"))
    assert document["error"].startswith(f"{X}raised ValueError: no such word ☃ (")
    assert document["iteration"] == 12
    assert document["images"][0] == {
        "file": "image-000102.png",
        "image_id": 102,
        "group_id": 0,
        "prompt": "raise ☃",
        "metadata": {"tag": ["a", 1]},
    }


def test_images_are_saved_unchanged_and_beside_earlier_failures(tmp_path):
    def vandal(batch):
        batch.images[:] = 99
        raise OSError("no")

    with RewardRunner([active(vandal, "a/b")], "weighted_sum", 1) as runner:
        for _ in range(2):
            with raises("reward-failed", reward="a/b"):
                runner.score(make_batch("a", run_folder=tmp_path))
    folder = tmp_path / "failures" / "iteration-000001"
    assert sorted(path.name for path in folder.iterdir()) == ["a_b", "a_b-2"]
    assert np.all(np.asarray(Image.open(folder / "a_b" / "image-000100.png")) == 0)


def test_a_folder_that_cannot_be_written_does_not_hide_the_failure(tmp_path):
    (tmp_path / "failures").write_text("in the way")
    with make_runner("thread") as runner, raises("reward-failed", **FAILED, error="ValueError: no such word") as caught:
        runner.score(make_batch("raise", run_folder=tmp_path))
    assert "folder" not in caught.value.values
    assert str(tmp_path / "failures") in caught.value.values["save_error"]


def test_skipped_images_have_no_score_and_are_counted(tmp_path):
    batch = make_batch("raise", "b", "c", "d", "nan", run_folder=tmp_path, iteration=4)
    with make_runner("thread", batch_size=2, on_failure="skip") as runner, pytest.warns(RewardWarning) as warned:
        scored = runner.score(batch)
    assert scored.total == [None, None, 2.0, 3.0, None]
    assert scored.failed == {"x": 3}
    assert scored.unjudged == {"x": 0}
    assert scored.details[1]["x"]["failed"].startswith(f"{X}raised ValueError: no such word (")
    assert scored.details[2] == {}
    first, second = [warning.message for warning in warned]
    assert first.code == second.code == "reward-skipped"
    assert (
        first.values.items()
        >= {"reward": "x", "images": 2, "iteration": 5, "error": "ValueError: no such word"}.items()
    )
    assert (
        second.values.items() >= {"reward": "x", "images": 1, "iteration": 5, "image_id": 104, "score": "nan"}.items()
    )
    assert str(first).endswith("in do_raise); 2 images have no score in iteration 5")
    assert list(tmp_path.iterdir()) == []


def test_the_run_stops_if_all_images_are_skipped(tmp_path):
    with (
        make_runner("thread", on_failure="skip") as runner,
        pytest.warns(RewardWarning),
        raises("reward-failed", **FAILED, error="ValueError: no such word") as caught,
    ):
        runner.score(make_batch("raise", "b", run_folder=tmp_path))
    assert caught.value.values["folder"].startswith(str(tmp_path / "failures"))
    assert str(tmp_path / "failures") in caught.value.hint


def test_remaining_scores_are_checked_over_a_whole_iteration():
    with make_runner("thread", on_failure="skip") as runner, warnings.catch_warnings(record=True):
        failed, fine = [runner.submit(make_batch(prompt)).result() for prompt in ("raise", "a")]
    check_any_scored([failed, fine])
    check_any_scored([fine])
    check_any_scored([])
    with raises("reward-failed", **FAILED):
        check_any_scored([failed, failed])


def test_two_rewards_that_fail_on_different_images_may_leave_no_total():
    def failing_on(prompt):
        def reward(batch):
            if prompt in batch.prompts:
                raise OSError(prompt)
            return RewardResult([1.0] * len(batch))

        return reward

    entries = [active(failing_on(name), name, batch_size=1, on_failure="skip") for name in ("a", "b")]
    with RewardRunner(entries, "weighted_sum", 2) as runner, warnings.catch_warnings():
        warnings.simplefilter("ignore", RewardWarning)
        assert runner.score(make_batch("a", "b", "c")).total == [None, None, 2.0]
        with raises("reward-failed"):
            runner.score(make_batch("a", "b"))


def test_a_reward_scores_only_images_that_it_applies_to():
    seen = {"a": [], "b": []}

    def recording(name):
        def reward(batch):
            seen[name] += batch.prompts
            return RewardResult([float(image[0, 0, 0]) for image in batch.images])

        return reward

    metadata = [{"rewards": ["a"]}, {"rewards": ["b", "a"]}, {}, {"rewards": ["other"]}]
    entries = [active(recording("a"), "a"), active(recording("b"), "b", weight=10.0)]
    with RewardRunner(entries, "weighted_sum", 1) as runner:
        scored = runner.score(make_batch("0", "1", "2", "3", metadata=metadata))
    assert seen == {"a": ["0", "1", "2"], "b": ["1", "2"]}
    assert scored.per_reward == {"a": [0.0, 1.0, 2.0, None], "b": [None, 1.0, 2.0, None]}
    assert scored.total == [0.0, 11.0, 22.0, None]
    assert scored.unjudged == {"a": 0, "b": 0}


def test_a_reward_that_applies_to_no_image_is_not_set_up():
    with RewardRunner([active(Stuck())], "weighted_sum", 1) as runner:
        assert runner.score(make_batch("a", metadata=[{"rewards": []}])).total == [None]


def test_metadata_that_is_not_a_list_is_rejected_by_submit():
    with make_runner("thread") as runner, raises("reward-metadata", key="rewards", found="x"):
        runner.submit(make_batch("a", metadata=[{"rewards": "x"}]))


def test_close_does_not_wait_for_a_call_without_a_time_limit(quick):
    begun = threading.Event()

    def endless(batch):
        begun.set()
        time.sleep(60)

    runner = RewardRunner([active(endless, timeout="none")], "weighted_sum", 1)
    future = runner.submit(make_batch("a"))
    assert begun.wait(10)
    began = time.monotonic()
    runner.close()
    assert time.monotonic() - began < 30
    with raises("reward-failed", **FAILED):
        future.result(timeout=5)
    with raises("reward-failed"):
        runner.submit(make_batch("a"))


def test_a_hanging_thread_does_not_prevent_the_program_from_exiting():
    script = (
        "from support.reward_batches import *; from tdmr1_rewards.scoring.runner import RewardRunner; import time\n"
        "runner = RewardRunner([active(lambda b: time.sleep(60), timeout='none')], 'weighted_sum', 1)\n"
        "runner.submit(make_batch('a')); time.sleep(0.1)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0
    assert time.monotonic() - began < 50
