"""Every way in which a reward can fail, in a thread and in a process: one sentence, and never a number."""

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
from support.faulty_rewards import Faulty, Stuck
from support.reward_batches import active, faulty, make_batch

from tdmr1_rewards.api import RewardResult
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.scoring import active_reward as slot
from tdmr1_rewards.scoring import runner as runner_module
from tdmr1_rewards.scoring.failures import RewardWarning
from tdmr1_rewards.scoring.runner import RewardRunner, check_any_scored

pytestmark = pytest.mark.unit

X = "reward 'x' (from foo-dist 1.2) "


def make_runner(kind, **settings):
    reward = Faulty() if kind == "thread" else faulty()
    return RewardRunner([active(reward, **settings)], "weighted_sum", workers=2, device="cuda:7")


@pytest.fixture(scope="module", params=["thread", "process"])
def runner(request):
    """One runner for all faults that leave its reward usable."""
    with make_runner(request.param) as runner:
        yield runner


@pytest.fixture
def quick(monkeypatch):
    """No waiting between retries, nor at the end."""
    monkeypatch.setattr(slot, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(runner_module, "GRACE", 0.2)


@pytest.mark.parametrize(
    ("order", "told", "hint"),
    [
        ("raise", "raised ValueError: no such word", None),
        ("hint", "failed: the lamp is out", "light it"),
        ("nan", "answered nan, a float, for image 100", "a finite number, or None"),
        ("inf", "answered -inf, a float, for image 100", "a finite number, or None"),
        ("text", "answered '0.5', a str, for image 100", "a finite number, or None"),
        ("huge", "0, a int, for image 100", "a finite number, or None"),
        ("short", "answered 1 scores for 2 images", "one for each image"),
        ("type", "answered a dict instead of a RewardResult", "RewardResult(scores=[...])"),
        ("exit", "tried to end the program: SystemExit: 3", "raises an ordinary exception"),
    ],
)
def test_each_fault_has_its_sentence_and_the_next_call_works(runner, order, told, hint):
    with pytest.raises(Tdmr1Error) as caught:
        runner.score(make_batch(order, "b"))
    assert caught.value.message.startswith(X)
    assert told in caught.value.message
    assert "\n" not in caught.value.message
    assert (hint or "") in (caught.value.hint or "")
    assert runner.score(make_batch("a", "b")).total == [0.0, 1.0]


def test_an_exception_keeps_where_it_came_from(runner):
    with pytest.raises(Tdmr1Error) as caught:
        runner.score(make_batch("raise"))
    cause = caught.value.__cause__
    assert isinstance(cause, ValueError) or "do_raise" in str(cause)


def test_none_and_details_arrive(runner):
    scored = runner.score(make_batch("details", "b"))
    assert scored.total == [None, None]
    assert scored.unjudged == {"x": 2}
    assert scored.failed == {"x": 0}
    assert scored.details[1]["x"]["device"] == "cuda:7"
    assert np.array_equal(scored.details[1]["x"]["boxes"], [[1.0, 1.0]])


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_hang_fails_after_the_time_out_and_close_does_not_wait(kind, quick):
    with make_runner(kind, timeout=0.4) as runner:
        runner.set_up()
        began = time.monotonic()
        with pytest.raises(Tdmr1Error) as caught:
            runner.score(make_batch("hang"))
        assert caught.value.message.startswith(f"{X}did not answer within 0.4 s")
        if kind == "thread":
            assert "isolated: true" in caught.value.hint
            with pytest.raises(Tdmr1Error, match=r"still hangs in an earlier call, 0\.4 s later"):
                runner.score(make_batch("a"))
    assert time.monotonic() - began < 30


def test_a_thread_that_comes_back_is_asked_again_and_never_twice_at_once():
    going_on, release = [], threading.Event()

    def slow(batch):
        going_on.append(batch)
        if batch.prompts[0] == "first":
            release.wait(60)
        count = len(going_on)
        going_on.pop()
        return RewardResult([float(count)])

    with RewardRunner([active(slow, timeout=1.5)], "weighted_sum", 1) as runner:
        with pytest.raises(Tdmr1Error, match="did not answer"):
            runner.score(make_batch("first"))
        second = runner.submit(make_batch("second"))
        release.set()
        assert second.result(60).total == [1.0]


def test_the_configs_time_out_overrides_the_specs_and_none_means_no_limit():
    spec = {"timeout": 3.0}
    assert active(None, spec=spec).seconds == 3.0
    assert active(None, spec=spec, timeout=0.5).seconds == 0.5
    assert active(None, spec=spec, timeout="none").seconds is None
    assert active(None, spec={"timeout": None}).seconds is None


def test_the_configs_batch_size_and_device_override():
    sizes, devices = [], []

    class Noting:
        def setup(self, device):
            devices.append(device)

        def __call__(self, batch):
            sizes.append(len(batch))
            return RewardResult([0.0] * len(batch))

    entry = active(Noting(), spec={"batch_size": 4}, batch_size=2, device="cuda:3")
    with RewardRunner([entry], "weighted_sum", 1, device="cpu") as runner:
        runner.score(make_batch(*"abcde"))
    assert (sizes, devices) == ([2, 2, 1], ["cuda:3"])


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_a_failed_call_is_tried_again(kind, quick, tmp_path):
    path = tmp_path / "left"
    with make_runner(kind, retries=2) as runner:
        path.write_text("2")
        assert runner.score(make_batch(f"fail {path}", "b")).total == [0.0, 1.0]
        path.write_text("3")
        with pytest.raises(Tdmr1Error, match=r"raised OSError: 1 to go \(tried 3 times\)"):
            runner.score(make_batch(f"fail {path}"))


def test_a_process_that_ended_is_started_anew_and_set_up_again(quick):
    with make_runner("process") as runner:
        first = runner.score(make_batch("whoami")).details[0]["x"]
        with pytest.raises(Tdmr1Error) as caught:
            runner.score(make_batch("die"))
        assert caught.value.message == (
            f"{X}failed: its process ended with exit code 7; its last words: last words before the end"
        )
        second = runner.score(make_batch("whoami")).details[0]["x"]
        os.kill(second["pid"], signal.SIGKILL)
        with pytest.raises(Tdmr1Error, match="its process was ended by SIGKILL"):
            runner.score(make_batch("a"))
        third = runner.score(make_batch("whoami")).details[0]["x"]
        assert len({first["pid"], second["pid"], third["pid"]}) == 3
        assert third["device"] == "cuda:7"


def test_a_killed_process_costs_nothing_with_a_retry(quick):
    with make_runner("process", retries=1) as runner:
        pid = runner.score(make_batch("whoami")).details[0]["x"]["pid"]
        os.kill(pid, signal.SIGKILL)
        assert runner.score(make_batch("a", "b")).total == [0.0, 1.0]


def test_a_reward_that_cannot_be_set_up_is_told_in_either_host(quick):
    for reward in (Stuck(), faulty("Stuck")):
        with (
            RewardRunner([active(reward)], "weighted_sum", 1) as runner,
            pytest.raises(
                Tdmr1Error, match=r"^reward 'x' \(from foo-dist 1.2\) could not be set up: OSError: no weights$"
            ),
        ):
            runner.score(make_batch("a"))


def test_a_call_that_stops_the_run_leaves_its_images(tmp_path):
    metadata = [{}, {}, {"tag": ("a", 1)}, {}]
    batch = make_batch("a", "b", "raise ☃", "d", metadata=metadata, run_folder=tmp_path, iteration=11)
    with make_runner("thread", batch_size=2) as runner, pytest.raises(Tdmr1Error) as caught:
        runner.score(batch)
    folder = tmp_path / "failures" / "iteration-000012" / "x"
    assert str(folder) in caught.value.hint
    assert sorted(path.name for path in folder.iterdir()) == ["batch.json", "image-000102.png", "image-000103.png"]
    assert np.all(np.asarray(Image.open(folder / "image-000103.png")) == 3)
    document = json.loads((folder / "batch.json").read_text(encoding="utf-8"))
    assert document["error"] == f"{X}raised ValueError: no such word ☃"
    assert document["iteration"] == 12
    assert document["images"][0] == {
        "file": "image-000102.png",
        "image_id": 102,
        "group_id": 0,
        "prompt": "raise ☃",
        "metadata": {"tag": ["a", 1]},
    }


def test_images_are_saved_as_they_were_asked_about_and_beside_earlier_ones(tmp_path):
    def vandal(batch):
        batch.images[:] = 99
        raise OSError("no")

    with RewardRunner([active(vandal, "a/b")], "weighted_sum", 1) as runner:
        for _ in range(2):
            with pytest.raises(Tdmr1Error):
                runner.score(make_batch("a", run_folder=tmp_path))
    folder = tmp_path / "failures" / "iteration-000001"
    assert sorted(path.name for path in folder.iterdir()) == ["a_b", "a_b-2"]
    assert np.all(np.asarray(Image.open(folder / "a_b" / "image-000100.png")) == 0)


def test_a_folder_that_cannot_be_written_hides_no_failure(tmp_path):
    (tmp_path / "failures").write_text("in the way")
    with make_runner("thread") as runner, pytest.raises(Tdmr1Error, match="raised ValueError") as caught:
        runner.score(make_batch("raise", run_folder=tmp_path))
    assert "could not be saved" in caught.value.hint


def test_skipped_images_have_no_score_and_are_counted(tmp_path):
    batch = make_batch("raise", "b", "c", "d", "nan", run_folder=tmp_path, iteration=4)
    with make_runner("thread", batch_size=2, on_failure="skip") as runner, pytest.warns(RewardWarning) as warned:
        scored = runner.score(batch)
    assert scored.total == [None, None, 2.0, 3.0, None]
    assert scored.failed == {"x": 3}
    assert scored.unjudged == {"x": 0}
    assert scored.details[1] == {"x": {"failed": f"{X}raised ValueError: no such word"}}
    assert scored.details[2] == {}
    assert [str(one.message) for one in warned] == [
        f"{X}raised ValueError: no such word; in iteration 5 2 images go without a reward",
        f"{X}answered nan, a float, for image 104; in iteration 5 1 image goes without a reward",
    ]
    assert list(tmp_path.iterdir()) == []


def test_where_skipping_leaves_nothing_the_run_stops(tmp_path):
    with (
        make_runner("thread", on_failure="skip") as runner,
        pytest.warns(RewardWarning),
        pytest.raises(Tdmr1Error, match="no such word; that leaves no image with a reward") as caught,
    ):
        runner.score(make_batch("raise", "b", run_folder=tmp_path))
    assert str(tmp_path / "failures") in caught.value.hint


def test_what_is_left_is_judged_over_a_whole_iteration():
    with make_runner("thread", on_failure="skip") as runner, warnings.catch_warnings(record=True):
        failed, fine = [runner.submit(make_batch(prompt)).result() for prompt in ("raise", "a")]
    check_any_scored([failed, fine])
    check_any_scored([fine])
    check_any_scored([])
    with pytest.raises(Tdmr1Error):
        check_any_scored([failed, failed])


def test_two_rewards_that_fail_on_different_images_may_leave_nothing():
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
        with pytest.raises(Tdmr1Error, match="leaves no image"):
            runner.score(make_batch("a", "b"))


def test_a_reward_is_only_asked_about_images_it_applies_to():
    seen = {"a": [], "b": []}

    def noting(name):
        def reward(batch):
            seen[name] += batch.prompts
            return RewardResult([float(image[0, 0, 0]) for image in batch.images])

        return reward

    metadata = [{"rewards": ["a"]}, {"rewards": ["b", "a"]}, {}, {"rewards": ["other"]}]
    entries = [active(noting("a"), "a"), active(noting("b"), "b", weight=10.0)]
    with RewardRunner(entries, "weighted_sum", 1) as runner:
        scored = runner.score(make_batch("0", "1", "2", "3", metadata=metadata))
    assert seen == {"a": ["0", "1", "2"], "b": ["1", "2"]}
    assert scored.per_reward == {"a": [0.0, 1.0, 2.0, None], "b": [None, 1.0, 2.0, None]}
    assert scored.total == [0.0, 11.0, 22.0, None]
    assert scored.unjudged == {"a": 0, "b": 0}


def test_a_reward_that_applies_to_nothing_is_not_even_set_up():
    with RewardRunner([active(Stuck())], "weighted_sum", 1) as runner:
        assert runner.score(make_batch("a", metadata=[{"rewards": []}])).total == [None]


def test_metadata_that_names_no_list_is_refused_at_once():
    with make_runner("thread") as runner, pytest.raises(Tdmr1Error, match="'rewards': 'x', which is no list"):
        runner.submit(make_batch("a", metadata=[{"rewards": "x"}]))


def test_closing_leaves_a_call_without_a_limit_behind(quick):
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
    with pytest.raises(Tdmr1Error, match="left behind in the middle of a call"):
        future.result(timeout=5)
    with pytest.raises(Tdmr1Error, match="the rewards are closed"):
        runner.submit(make_batch("a"))


def test_a_hanging_thread_does_not_keep_the_program_from_ending():
    script = (
        "from support.reward_batches import *; from tdmr1_rewards.scoring.runner import RewardRunner; import time\n"
        "runner = RewardRunner([active(lambda b: time.sleep(60), timeout='none')], 'weighted_sum', 1)\n"
        "runner.submit(make_batch('a')); time.sleep(0.1)"
    )
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)})
    assert done.returncode == 0
    assert time.monotonic() - began < 50
