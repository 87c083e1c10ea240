"""The image statistics of the guard on handmade images, and the conditions of an alarm."""

from __future__ import annotations

import json
import warnings
from types import SimpleNamespace

import numpy as np
import pytest
from support.errors import warns

from tdmr1_core.config import GuardConfig
from tdmr1_core.config_loading import resolve
from tdmr1_core.distributed import ALONE
from tdmr1_core.plugins import discover
from tdmr1_core.preflight.rewards import RewardFinder, trained_directions
from tdmr1_core.runs.checkpoints.fingerprints import Fingerprints, subject_fingerprint
from tdmr1_core.runs.evaluation.evaluate import Measure
from tdmr1_core.runs.evaluation.guard import (
    Drift,
    Guard,
    GuardReading,
    find_alarms,
    first_reading,
)
from tdmr1_core.runs.evaluation.image_statistics import colour_histogram, diversity, image_statistics, similarity

pytestmark = pytest.mark.unit

GREY = np.full((1, 8, 8, 3), 128, np.uint8)
RED = np.zeros((1, 8, 8, 3), np.uint8)
RED[..., 0] = 255
CHECKS = np.zeros((1, 8, 8, 3), np.uint8)
CHECKS[:, ::2, ::2] = CHECKS[:, 1::2, 1::2] = 255
HALVES = np.zeros((1, 8, 8, 3), np.uint8)
HALVES[:, :, 4:] = 255


def statistics(image: np.ndarray) -> dict[str, float]:
    return {name: value.item() for name, value in image_statistics(image).items()}


def test_all_statistics_of_a_plain_image_are_zero():
    assert statistics(GREY) == pytest.approx(dict.fromkeys(statistics(GREY), 0), abs=1e-4)


def test_edges_entropy_and_color_of_handmade_images():
    checks, halves, red = statistics(CHECKS), statistics(HALVES), statistics(RED)
    assert checks["edge_density"] == 1
    assert halves["edge_density"] == pytest.approx(1 / 14)  # one of seven across, none down
    assert checks["entropy"] == halves["entropy"] == pytest.approx(1)  # two levels, as often
    assert (checks["saturation"], red["saturation"]) == (0, 1)
    assert red["colourfulness"] == pytest.approx(0.3 * np.hypot(255, 127.5))
    assert checks["colourfulness"] == 0


def test_statistics_do_not_depend_on_other_images():
    together = image_statistics(np.concatenate([GREY, RED, CHECKS]))
    for i, image in enumerate((GREY, RED, CHECKS)):
        assert {name: value[i] for name, value in together.items()} == pytest.approx(statistics(image), abs=1e-6)


def test_diversity_is_measured_inside_each_group():
    images = np.concatenate([GREY, GREY, CHECKS, 255 - CHECKS, RED])
    assert diversity(images, (0, 0, 1, 1, 2)).tolist() == pytest.approx([0, 127.5])


def test_similarity_compares_colors_with_the_teacher_of_the_same_prompt():
    teacher = {"red": colour_histogram(RED)[0], "half": (colour_histogram(RED)[0] + colour_histogram(GREY)[0]) / 2}
    images = np.concatenate([RED, GREY, RED, RED])
    assert similarity(images, ["red", "red", "half", "unknown"], teacher).tolist() == [1, 0, 0.5]


def reading(step: int = 0, **means: float) -> GuardReading:
    """A reading whose measures all have a standard deviation of 1 over 100 images."""
    return GuardReading(step, {name.replace("__", "/"): Measure(mean, 0.1, 100) for name, mean in means.items()})


FIRST = reading(reward__a=0, held_out__b=0, picture__entropy=4, picture__diversity=9)


@pytest.mark.parametrize(
    ("now", "cause"),
    [
        (reading(reward__a=1, held_out__b=-1.5, picture__entropy=4, picture__diversity=9), "b fell from 0 to -1.5"),
        (reading(reward__a=1, held_out__b=2, picture__entropy=2, picture__diversity=9), "entropy fell from 4 to 2"),
        (reading(reward__a=1, held_out__b=0, picture__entropy=6, picture__diversity=9), "entropy rose from 4 to 6"),
        (reading(reward__a=1, held_out__b=0, picture__entropy=4, picture__diversity=7), "diversity fell from 9 to 7"),
    ],
)
def test_a_rising_reward_and_a_drifting_measure_raise_an_alarm(now, cause):
    (alarm,) = find_alarms(FIRST, now, 1.0, {"a": 1})
    assert alarm.startswith("a rose from 0 to 1 (+1.0 deviations) while ")
    assert cause in alarm


@pytest.mark.parametrize(
    "now",
    [
        reading(reward__a=0.2, held_out__b=-3, picture__entropy=1),  # the rise is not certain
        reading(reward__a=-2, held_out__b=-3, picture__entropy=1),  # it falls
        reading(reward__a=1, held_out__b=-0.9, picture__entropy=4.5),  # within the threshold
        reading(reward__a=1, held_out__b=3, picture__diversity=12),  # these measures may rise
        reading(reward__a=1, held_out__new=-9),  # nothing to compare with
    ],
)
def test_no_alarm_in_other_cases(now):
    assert find_alarms(FIRST, now, 1.0, {"a": 1}) == ()


def test_the_drift_must_be_certain():
    few = GuardReading(0, {"reward/a": Measure(0, 0.1, 100), "held_out/b": Measure(0, 1, 4)})
    now = GuardReading(1, {"reward/a": Measure(1, 0.1, 100), "held_out/b": Measure(-3, 1, 4)})
    assert find_alarms(few, now, 1.0, {"a": 1}) == ()


def test_without_an_initial_deviation_the_later_one_is_the_unit():
    first = GuardReading(0, {"reward/a": Measure(0, 0, 100), "held_out/b": Measure(1, 0, 100)})
    now = GuardReading(1, {"reward/a": Measure(0.9, 0.03, 100), "held_out/b": Measure(-5, 0.1, 100)})
    (alarm,) = find_alarms(first, now, 1.0, {"a": 1})
    assert alarm == "a rose from 0 to 0.9 (+3.0 deviations) while b fell from 1 to -5 (-6.0 deviations)"


def test_without_any_deviation_the_drift_is_zero_or_infinite():
    same, other = Measure(1, 0, 100), Measure(0, 0, 100)
    assert Drift("held_out/b", same, other).size == -np.inf
    assert Drift("held_out/b", same, same).size == 0
    assert Drift("held_out/b", same, Measure(float("nan"), float("nan"), 0)).size == 0


def test_a_reward_with_a_negative_weight_should_fall():
    down = reading(reward__a=-1, held_out__b=-1.5)
    assert find_alarms(FIRST, down, 1.0, {"a": 1}) == ()
    (alarm,) = find_alarms(FIRST, down, 1.0, {"a": -1})
    assert alarm.startswith("a fell from 0 to -1")
    assert find_alarms(FIRST, reading(reward__a=1, held_out__b=-1.5), 1.0, {"a": -1}) == ()


def test_a_reward_without_a_weight_is_not_trained():
    weights = {"jpeg_size": -0.5, "object_count": 2, "geneval": 0}
    config = resolve([{"rewards": [{"name": name, "weight": weight} for name, weight in weights.items()]}])
    assert trained_directions(config) == {"jpeg_size": -1, "object_count": 1}
    assert [reward.name for reward in RewardFinder(discover().plugins.rewards).held_out_rewards(config, "tiny")] == [
        "geneval"
    ]


def test_a_reading_is_restored_from_its_line():
    written = GuardReading(7, reading(reward__a=0.25, picture__entropy=4).measures, ("a rose",), "subject")
    assert GuardReading.of({"step": 7, **json.loads(json.dumps(written.row()))}) == written


def test_only_readings_of_the_same_subject_are_compared():
    readings = [
        GuardReading(step, {}, subject=subject) for step, subject in ((0, "a"), (2, "a"), (4, "b"), (6, "b"), (8, "a"))
    ]
    assert [first_reading(readings, subject) for subject in "abc"] == [readings[0], readings[2], None]


@pytest.mark.parametrize(
    ("setting", "same"),
    [
        ({"evaluation": {"every": 3}, "guard": {"threshold": 2}, "saving": {"keep": 9}}, True),
        ({"evaluation": {"seed": 5}}, False),
        ({"evaluation": {"images": 5}}, False),
        ({"evaluation": {"images_per_prompt": 2}}, False),
        ({"evaluation": {"images_per_prompt": None}}, True),
        ({"evaluation": {"rewards": [{"name": "geneval"}]}}, False),
        ({"guard": {"rewards": [{"name": "geneval"}]}}, False),
    ],
)
def test_the_subject_depends_on_images_and_rewards(setting, same):
    rewards, here = {"rewards": [{"name": "object_count"}]}, Fingerprints(prompts={"count": "as they are"})
    assert (
        subject_fingerprint(resolve([rewards, setting]), here) == subject_fingerprint(resolve([rewards]), here)
    ) is same


@pytest.mark.parametrize("other", [{"prompts": {"count": "others"}}, {"rewards": {"object_count": "tdmr1 9"}}])
def test_the_subject_depends_on_the_content_of_prompts_and_rewards(other):
    config = resolve([{"rewards": [{"name": "object_count"}]}])
    assert subject_fingerprint(config, Fingerprints(**other)) != subject_fingerprint(
        config, Fingerprints(prompts={"count": "as they are"})
    )


def names(domain: str, *rewards: str, **sections: object) -> list[str]:
    config = resolve([{"rewards": [{"name": name} for name in rewards], **sections}])
    return [reward.name for reward in RewardFinder(discover().plugins.rewards).held_out_rewards(config, domain)]


def test_rewards_that_are_not_trained_are_held_out():
    assert names("tiny", "jpeg_size") == ["object_count", "geneval"]
    assert names("tiny", "object_count") == ["geneval"]
    assert names("photo", "object_count") == []
    evaluated = {"evaluation": {"rewards": [{"name": "object_count"}, {"name": "clip_score"}]}}
    assert names("photo", "object_count", **evaluated) == ["clip_score"]
    assert names("tiny", "jpeg_size", guard={"rewards": [{"name": "clip_score"}]}) == ["clip_score"]
    assert names("tiny", "jpeg_size", guard={"rewards": []}) == []


def test_the_first_reading_warns_of_measures_with_too_few_values(monkeypatch):
    values = {"reward/a": [1.0] * 8, "picture/entropy": [1.0] * 7 + [None], "picture/similarity_to_teacher": []}
    monkeypatch.setattr(Guard, "_values", lambda *_: values)
    guard = Guard(GuardConfig(), {"a": 1}, None, "subject")
    few = {"picture/entropy": 7, "picture/similarity_to_teacher": 0}
    with warns("guard-limited", counts=few, needed=8):
        first = guard.read(SimpleNamespace(iteration_index=0, processes=ALONE), [None])
    assert list(first.measures) == ["reward/a"]
    with warnings.catch_warnings(action="error"):
        guard.read(SimpleNamespace(iteration_index=1, processes=ALONE), [None])


@pytest.mark.parametrize("line", ['{"step": 0}', "[]", '{"step": 0, "n": [], "alarms": []}', "[" * 100_000])
def test_the_first_reading_is_found_after_unreadable_lines(tmp_path, line):
    first = GuardReading(0, {"picture/entropy": Measure(3.0, 0.125, 64)}, subject="these")
    row = json.dumps({"step": 0, **first.row()})
    (tmp_path / "guard.jsonl").write_text(f'{line}\n{row}\n{{"step": 1, "n')
    guard = Guard(GuardConfig(), {}, None, "these")
    with warns("record-damaged", path=str(tmp_path / "guard.jsonl"), lines=[1]):
        guard.recall(tmp_path, 0)
    assert guard.first == first


def test_a_reading_that_a_resume_repeats_is_not_compared_with_itself(tmp_path):
    readings = [GuardReading(step, {}, subject="these") for step in (0, 2)]
    (tmp_path / "guard.jsonl").write_text(
        "".join(json.dumps({"step": each.step, **each.row()}) + "\n" for each in readings)
    )
    guard = Guard(GuardConfig(), {}, None, "these")
    guard.recall(tmp_path, -1)
    assert guard.first is None
    guard.recall(tmp_path, 1)
    assert guard.first == readings[0]


def test_a_resume_with_another_subject_warns_and_starts_again(tmp_path):
    (tmp_path / "guard.jsonl").write_text(json.dumps({"step": 0, **GuardReading(0, {}, subject="other").row()}) + "\n")
    guard = Guard(GuardConfig(), {}, None, "subject")
    with warns("guard-limited", subject="subject"):
        guard.recall(tmp_path, 0)
    assert guard.first is None
