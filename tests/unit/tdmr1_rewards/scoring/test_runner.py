import dataclasses
import reprlib
import threading
import time
import warnings
from concurrent.futures import CancelledError
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image
from support.errors import raises

from tdmr1_rewards.api import RewardBatch, RewardContext, RewardResult, RewardSpec
from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.registry import Provenance
from tdmr1_rewards.scoring.active_reward import ActiveReward
from tdmr1_rewards.scoring.runner import RewardRunner

pytestmark = pytest.mark.unit

FOO = Provenance("foo", "foo-dist", "1.2", "foo_mod")


def active(reward, name="x", weight=1.0, **spec):
    fields = {"name": name, "summary": "", "factory": "a:b", "default_prompts": "count", "image_format": "array"}
    return ActiveReward(name, weight, RewardSpec(**(fields | spec)), reward, FOO)


def make_batch(count, group_ids=None):
    return RewardBatch(
        images=np.arange(count, dtype=np.uint8).repeat(4 * 5 * 3).reshape(count, 4, 5, 3),
        prompts=[str(i) for i in range(count)],
        metadata=[{}] * count,
        group_ids=group_ids or [0] * count,
        image_ids=[100 + i for i in range(count)],
        context=RewardContext(None, 0, 0),
    )


def run(entries, batch, combine="weighted_sum"):
    with RewardRunner(entries, combine, workers=2) as runner:
        return runner.score(batch)


def first_pixels(batch):
    """Scores each image by the value of its pixels."""
    return RewardResult([float(image[0, 0, 0]) for image in batch.images], [{"p": p} for p in batch.prompts])


def test_scores_details_and_the_total():
    halves = active(lambda b: RewardResult([None if p == "1" else 0.5 for p in b.prompts]), "halves", 4.0)
    scored = run([active(first_pixels, "pixels", 2.0), halves], make_batch(3))
    assert scored.per_reward == {"pixels": [0.0, 1.0, 2.0], "halves": [0.5, None, 0.5]}
    assert scored.total == [2.0, None, 6.0]
    assert scored.details == [{"pixels": {"p": "0"}}, {"pixels": {"p": "1"}}, {"pixels": {"p": "2"}}]


def test_normalised_uses_the_groups():
    scored = run([active(first_pixels)], make_batch(4, [5, 6, 5, 6]), "normalised")
    assert scored.total == pytest.approx([-1, -1, 1, 1], abs=2e-4)
    assert scored.per_reward == {"x": [0.0, 1.0, 2.0, 3.0]}


def test_an_empty_batch_has_no_scores():
    scored = run([active(first_pixels)], make_batch(0))
    assert (scored.total, scored.per_reward, scored.details) == ([], {"x": []}, [])


def test_pointwise_rewards_are_called_with_at_most_batch_size_images():
    sizes = []

    def reward(batch):
        sizes.append(len(batch))
        return first_pixels(batch)

    scored = run([active(reward, batch_size=3)], make_batch(7))
    assert sizes == [3, 3, 1]
    assert scored.total == [float(i) for i in range(7)]


def test_groupwise_rewards_get_whole_groups_and_scores_return_to_their_images():
    calls = []

    def reward(batch):
        calls.append(list(batch.group_ids))
        return first_pixels(batch)

    batch = make_batch(9, [1, 2, 1, 2, 3, 3, 3, 3, 4])
    scored = run([active(reward, batch_size=4 - 1, groupwise=True)], batch)
    assert calls == [[1, 1], [2, 2], [3, 3, 3, 3], [4]]
    assert scored.total == [float(i) for i in range(9)]
    calls.clear()
    run([active(reward, batch_size=5, groupwise=True)], batch)
    assert calls == [[1, 1, 2, 2], [3, 3, 3, 3, 4]]


def test_images_have_the_format_of_the_spec():
    seen = {}

    def keeping(name):
        def reward(batch):
            seen[name] = batch.images
            return RewardResult([0.0] * len(batch))

        return reward

    batch = make_batch(2)
    run([active(keeping("pil"), "pil_one", image_format="pil"), active(keeping("array"), "array_one")], batch)
    assert all(isinstance(image, Image.Image) and image.mode == "RGB" for image in seen["pil"])
    assert [image.size for image in seen["pil"]] == [(5, 4)] * 2
    assert np.array_equal(np.asarray(seen["pil"][1]), batch.images[1])
    assert np.array_equal(seen["array"], batch.images)


def test_a_reward_that_changes_its_images_does_not_affect_other_rewards():
    def vandal(batch):
        batch.images[:] = 99
        return RewardResult([0.0] * len(batch))

    scored = run([active(vandal, "vandal"), active(first_pixels, "honest")], make_batch(2))
    assert scored.per_reward["honest"] == [0.0, 1.0]


@pytest.mark.parametrize("score", [True, 1, np.float32(1), np.int64(1), np.bool_(True), Fraction(1)])
def test_real_numbers_of_any_type_become_floats(score):
    (total,) = run([active(lambda b: RewardResult([score]))], make_batch(1)).total
    assert total == 1.0
    assert type(total) is float


@pytest.mark.parametrize(
    ("score", "kind"),
    [
        (float("nan"), "float"),
        (float("-inf"), "float"),
        (np.float32("nan"), "float32"),
        ("0.5", "str"),
        (1j, "complex"),
        (np.zeros(1), "ndarray"),
    ],
)
def test_a_score_that_is_not_a_finite_number_is_rejected(score, kind):
    with raises("reward-result", reward="x", provenance="foo-dist 1.2", image_id=100, type=kind) as caught:
        run([active(lambda b: RewardResult([score]))], make_batch(1))
    assert caught.value.message.startswith("reward 'x' (from foo-dist 1.2) ")
    assert caught.value.values["score"] == reprlib.repr(score)
    assert "None" in caught.value.hint


@pytest.mark.parametrize(
    ("result", "values"),
    [
        (None, {"type": "NoneType"}),
        ([1.0, 2.0], {"type": "list"}),
        (RewardResult([1.0]), {"field": "scores", "found": 1, "expected": 2}),
        (RewardResult([1.0] * 3), {"field": "scores", "found": 3, "expected": 2}),
        (RewardResult(1.0), {"field": "scores", "type": "float"}),
        (RewardResult({"a": 1.0, "b": 2.0}), {"field": "scores", "type": "dict"}),
        (RewardResult([1.0] * 2, [{}]), {"field": "details", "found": 1, "expected": 2}),
        (RewardResult([1.0] * 2, [{}, "a"]), {"image_id": 101, "type": "str"}),
    ],
)
def test_a_result_of_the_wrong_form_is_rejected(result, values):
    with raises("reward-result", reward="x", **values) as caught:
        run([active(lambda b: result)], make_batch(2))
    assert caught.value.message.startswith("reward 'x' (from foo-dist 1.2) ")


def test_the_error_for_an_exception_names_the_reward_and_keeps_the_cause():
    def reward(batch):
        raise ValueError("no such word")

    with raises("reward-failed", reward="x", provenance="foo-dist 1.2", error="ValueError: no such word") as caught:
        run([active(first_pixels, "fine"), active(reward)], make_batch(1))
    assert isinstance(caught.value.__cause__, ValueError)


def test_code_values_and_hint_of_a_tdmr1_error_are_kept():
    def reward(batch):
        raise Tdmr1Error("the server is down", "start it", code="server-unreachable", values={"server": "a"})

    with raises("server-unreachable", reward="x", server="a") as caught:
        run([active(reward)], make_batch(1))
    assert "the server is down" in caught.value.message
    assert caught.value.hint == "start it"


def test_a_tdmr1_error_without_a_code_gets_the_code_reward_failed():
    def reward(batch):
        raise Tdmr1Error("the server is down")

    with raises("reward-failed", reward="x"):
        run([active(reward)], make_batch(1))


class Lifecycle:
    """Records the calls of its methods."""

    def __init__(self):
        self.events = []

    def setup(self, device):
        self.events.append(f"setup {device}")

    def __call__(self, batch):
        self.events.append("call")
        return RewardResult([0.0] * len(batch))

    def close(self):
        self.events.append("close")


def test_a_reward_is_set_up_once_before_the_first_call_and_closed_after_the_last():
    reward = Lifecycle()
    with RewardRunner([active(reward)], "weighted_sum", workers=3, device="cuda:1") as runner:
        assert reward.events == []
        for future in [runner.submit(make_batch(1)) for _ in range(3)]:
            future.result(timeout=10)
        runner.close()
    assert reward.events == ["setup cuda:1", "call", "call", "call", "close"]


def test_errors_of_setup_and_close_name_the_reward_and_other_rewards_are_closed():
    class Failing(Lifecycle):
        def setup(self, device):
            raise OSError("no weights")

        def close(self):
            raise OSError("stuck")

    other = Lifecycle()
    runner = RewardRunner([active(Failing()), active(other, "other")], "weighted_sum", workers=1)
    with raises("reward-failed", reward="x", provenance="foo-dist 1.2", error="OSError: no weights"):
        runner.score(make_batch(1))
    with raises("reward-failed", reward="x", provenance="foo-dist 1.2", error="OSError: stuck"):
        runner.close()
    assert other.events[-1] == "close"


def test_submit_does_not_wait_and_calls_to_one_reward_never_overlap():
    release = threading.Event()
    running = []
    most = []

    def slow(batch):
        release.wait(10)
        running.append(1)
        most.append(len(running))
        time.sleep(0.005)
        running.pop()
        return first_pixels(batch)

    with RewardRunner([active(slow, batch_size=1)], "weighted_sum", workers=4) as runner:
        futures = [runner.submit(make_batch(n)) for n in (3, 2, 1)]
        assert not any(future.done() for future in futures)
        release.set()
        assert [future.result(timeout=10).total for future in futures] == [[0.0, 1.0, 2.0], [0.0, 1.0], [0.0]]
    assert most == [1] * 6


def test_different_rewards_run_in_parallel():
    meeting = threading.Barrier(2, timeout=10)

    def waits_for_the_other(batch):
        meeting.wait()
        return first_pixels(batch)

    entries = [active(waits_for_the_other, "a"), active(waits_for_the_other, "b")]
    assert run(entries, make_batch(2)).total == [0.0, 2.0]


def test_one_worker_is_enough_for_many_rewards_and_batches():
    entries = [active(first_pixels, name) for name in ("a", "b", "c")]
    with RewardRunner(entries, "weighted_sum", workers=1) as runner:
        futures = [runner.submit(make_batch(2)) for _ in range(5)]
        assert [future.result(timeout=10).total for future in futures] == [[0.0, 3.0]] * 5


def test_close_cancels_queued_calls():
    begun, release = threading.Event(), threading.Event()

    def slow(batch):
        begun.set()
        release.wait(10)
        return first_pixels(batch)

    runner = RewardRunner([active(slow)], "weighted_sum", workers=1)
    first, second = runner.submit(make_batch(2)), runner.submit(make_batch(2))
    assert begun.wait(10)
    closing = threading.Thread(target=runner.close)
    closing.start()
    with pytest.raises(CancelledError):
        second.result(timeout=10)
    release.set()
    closing.join(10)
    assert first.result(timeout=10).total == [0.0, 1.0]


@pytest.mark.parametrize(
    ("images", "found"),
    [
        ([1, 2], "a list"),
        (np.zeros((2, 4, 4, 3), np.float32), "float32 (2, 4, 4, 3)"),
        (np.zeros((2, 3, 4, 4), np.uint8), "uint8 (2, 3, 4, 4)"),
    ],
)
def test_images_of_another_type_or_shape_are_rejected(images, found):
    batch = RewardBatch(images, ["", ""], [{}, {}], [0, 0], [0, 1], RewardContext(None, 0, 0))
    with raises("reward-images", found=found):
        run([active(first_pixels)], batch)


@pytest.mark.parametrize(
    ("names", "combine", "code", "values"),
    [
        ([], "weighted_sum", "setting-invalid", {}),
        (["a", "a"], "weighted_sum", "setting-conflict", {"rewards": ["a", "a"]}),
        (["a"], "mean", "setting-invalid", {"setting": "combine", "found": "mean"}),
    ],
)
def test_invalid_arguments_of_a_runner_are_rejected(names, combine, code, values):
    with raises(code, **values):
        RewardRunner([active(first_pixels, name) for name in names], combine, workers=1)


@pytest.mark.parametrize(("on_failure", "recommends"), [("stop", True), ("skip", False)])
def test_the_hint_recommends_to_skip_only_where_that_is_not_set(on_failure, recommends):
    def fails(batch):
        raise OSError("no file")

    entry = dataclasses.replace(active(fails), on_failure=on_failure)
    with RewardRunner([entry], "weighted_sum", 1) as runner, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        with raises("reward-failed") as caught:
            runner.score(make_batch(1))
    assert ("skip" in caught.value.hint) is recommends
