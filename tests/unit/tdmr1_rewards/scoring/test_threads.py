"""Which threads a RewardRunner has, and that every call ends, whatever rewards do and whenever the runner is closed."""

import gc
import random
import threading
import time
import warnings
import weakref
from concurrent.futures import CancelledError
from contextlib import suppress

import pytest
from support.errors import raises
from support.reward_batches import active, faulty, make_batch
from support.waiting import wait_until

from tdmr1_rewards.api import RewardResult
from tdmr1_rewards.calling.reference import Reference
from tdmr1_rewards.errors import RewardWarning, Tdmr1Error
from tdmr1_rewards.scoring import supervisor
from tdmr1_rewards.scoring.failures import RewardFailed
from tdmr1_rewards.scoring.runner import RewardRunner

pytestmark = pytest.mark.unit


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short waits between retries and in close."""
    monkeypatch.setattr(supervisor, "FIRST_PAUSE", 0.001)
    monkeypatch.setattr(supervisor, "GRACE", 0.2)


@pytest.fixture
def new_threads():
    """A function that returns the sorted names of the threads that were started since the begin of the test."""
    before = set(threading.enumerate())
    yield lambda: sorted(thread.name for thread in set(threading.enumerate()) - before)
    wait_until(lambda: set(threading.enumerate()) <= before)


def constant(batch):
    return RewardResult([1.0] * len(batch))


async def asynchronous(batch):
    return constant(batch)


class Holding:
    """Each call waits until `release` is set. The first prompts of all calls are in `calls`."""

    def __init__(self):
        self.calls, self.begun, self.release, self.closed = [], threading.Event(), threading.Event(), False

    def __call__(self, batch):
        self.calls.append(batch.prompts[0])
        self.begun.set()
        self.release.wait(60)
        return constant(batch)

    def close(self):
        self.closed = True


def test_a_runner_has_one_thread_for_each_reward_and_one_that_supervises_them(new_threads):
    names = ("a", "b", "c")
    with RewardRunner([active(constant, name) for name in names], "weighted_sum", 2) as runner:
        for future in [runner.submit(make_batch("1", "2")) for _ in range(4)]:
            future.result(20)
        assert new_threads() == ["reward-a", "reward-b", "reward-c", "rewards"]
    assert new_threads() == []


def test_a_reward_with_async_functions_has_one_more_thread(new_threads):
    with RewardRunner([active(asynchronous, "a"), active(constant, "b")], "weighted_sum", 2) as runner:
        assert runner.score(make_batch("1")).total == [2.0]
        assert new_threads() == ["reward-a", "reward-b", "reward-loop", "rewards"]
    assert new_threads() == []


def test_all_code_of_a_reward_runs_in_its_thread():
    names = []

    class Recording:
        def setup(self, device):
            names.append(threading.current_thread().name)

        def __call__(self, batch):
            names.append(threading.current_thread().name)
            return constant(batch)

        def state_dict(self):
            names.append(threading.current_thread().name)
            return {}

        def load_state_dict(self, state):
            names.append(threading.current_thread().name)

        def close(self):
            names.append(threading.current_thread().name)

    with RewardRunner([active(Recording())], "weighted_sum", 1) as runner, runner.preserving_states():
        runner.score(make_batch("a"))
    assert names == ["reward-x"] * 5


def test_a_call_that_hangs_is_reported_and_its_thread_remains_until_it_returns(new_threads):
    reward = Holding()
    with RewardRunner([active(reward, timeout=0.1), active(constant, "y")], "weighted_sum", 2) as runner:
        with raises("reward-failed", reward="x", seconds=0.1, earlier_call=False):
            runner.score(make_batch("first"))
        with raises("reward-failed", reward="x", seconds=0.1, earlier_call=True):
            runner.score(make_batch("second"))
    assert new_threads() == ["reward-x"]
    reward.release.set()
    wait_until(lambda: new_threads() == [])
    assert (reward.calls, reward.closed) == (["first"], False)


def test_a_call_that_is_aborted_by_close_is_reported(new_threads):
    reward = Holding()
    runner = RewardRunner([active(reward, timeout="none")], "weighted_sum", 1)
    running, queued = runner.submit(make_batch("a")), runner.submit(make_batch("b"))
    assert reward.begun.wait(20)
    runner.close()
    with raises("reward-failed", reward="x") as caught:
        running.result(0)
    assert caught.value.message.endswith("was stopped during a call")
    with pytest.raises(CancelledError):
        queued.result(0)
    assert new_threads() == ["reward-x"]
    reward.release.set()
    wait_until(lambda: new_threads() == [])


def test_a_hanging_call_does_not_keep_the_only_place_for_calls(new_threads):
    hanging = Holding()
    entries = [active(hanging, "a", timeout=0.1, on_failure="skip"), active(constant, "b"), active(constant, "c")]
    with RewardRunner(entries, "weighted_sum", workers=1) as runner, warnings.catch_warnings():
        warnings.simplefilter("ignore", RewardWarning)
        futures = [runner.submit(make_batch(*"1234")) for _ in range(3)]
        scored = [future.result(20) for future in futures]
    assert [each.per_reward for each in scored] == [{"a": [None] * 4, "b": [1.0] * 4, "c": [1.0] * 4}] * 3
    hanging.release.set()
    wait_until(lambda: new_threads() == [])


def test_no_batch_is_kept_after_its_call():
    images = []

    def recording(batch):
        images.append(weakref.ref(batch.images))
        return constant(batch)

    with RewardRunner([active(recording, spec={"batch_size": 1})], "weighted_sum", 1) as runner:
        batch = make_batch("a", "b")
        images.append(weakref.ref(batch.images))
        runner.score(batch)
        del batch
        gc.disable()
        try:
            wait_until(lambda: all(reference() is None for reference in images))
        finally:
            gc.enable()
    assert len(images) == 3


def test_a_closed_runner_refuses_all_work():
    runner = RewardRunner([active(constant)], "weighted_sum", 1)
    runner.close()
    for function in (runner.set_up, runner.states, lambda: runner.load_states({"x": {}})):
        with raises("reward-failed"):
            function()


def test_a_process_that_was_killed_is_restarted_before_a_state_is_restored():
    entry = active(faulty("Remembering"), timeout=30.0)
    with RewardRunner([entry], "weighted_sum", 1) as runner:
        runner.score(make_batch("a"))
        states = runner.states()
        runner._supervisors["x"].host.end_call(None)
        runner.load_states(states)
        assert runner.score(make_batch("a")).total == [2.0]


def test_an_aborted_process_ends_with_all_threads(new_threads):
    runner = RewardRunner([active(faulty(), timeout="none")], "weighted_sum", 1)
    runner.set_up()
    future = runner.submit(make_batch("hang"))
    wait_until(runner._supervisors["x"].gate.locked)
    runner.close()
    with raises("reward-failed", reward="x", exit_code=-9):
        future.result(0)
    assert new_threads() == []


def test_one_reward_that_cannot_be_built_ends_the_start_of_the_others(tmp_path, new_threads):
    (tmp_path / "slow.py").write_text("import time\n\ndef build():\n    time.sleep(60)\n")
    slow = Reference(factory={"file": str(tmp_path / "slow.py"), "attr": "build"})
    began = time.monotonic()
    with raises("reward-build"):
        RewardRunner([active(faulty("broken")), active(slow, "slow")], "weighted_sum", 2)
    assert time.monotonic() - began < 30
    wait_until(lambda: new_threads() == [])


def test_every_future_ends_for_any_failures_and_at_any_moment_of_close():
    """Seeded rounds with rewards that return, fail, exceed the limit or try to end the program."""
    for seed in range(40):
        _round(random.Random(seed))


def _round(rng):
    def unreliable(batch):
        match rng.randrange(6):
            case 0:
                raise OSError("no")
            case 1:
                raise SystemExit
            case 2:
                time.sleep(0.02)
        return constant(batch)

    entries = [
        active(
            unreliable,
            name,
            spec={"batch_size": 2},
            timeout=rng.choice([0.005, 10.0, "none"]),
            retries=rng.randrange(3),
            on_failure=rng.choice(["stop", "skip"]),
        )
        for name in "abc"[: rng.randrange(1, 4)]
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RewardWarning)
        runner = RewardRunner(entries, "weighted_sum", workers=rng.randrange(1, 3))
        futures = []

        def submit():
            with suppress(Tdmr1Error):  # until the runner is closed
                while True:
                    futures.append(runner.submit(make_batch(*"12345")))
                    time.sleep(0.001)

        submitting = threading.Thread(target=submit)
        submitting.start()
        time.sleep(rng.random() * 0.08)
        assert not any(future.cancel() for future in futures[:2])
        runner.close()
        submitting.join(20)
        for future in futures:
            assert isinstance(future.exception(timeout=20), RewardFailed | CancelledError | None)
            assert future.exception() or len(future.result().total) == 5
