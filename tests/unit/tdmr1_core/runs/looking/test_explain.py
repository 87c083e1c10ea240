"""The numbers and the page of an explanation, with values calculated by hand."""

from __future__ import annotations

import base64
import dataclasses
import io
import math
import re

import numpy as np
import pytest
from PIL import Image
from support.explanations import made_up

from tdmr1_cli.commands import explain as explain_command
from tdmr1_cli.main import main
from tdmr1_core.config import RunConfig
from tdmr1_core.runs.checkpoints.fingerprints import Fingerprints, write_config
from tdmr1_core.runs.looking.explain import rank_correlation, relative_to_group
from tdmr1_core.runs.looking.explain_page import explain_page
from tdmr1_core.runs.looking.heat_map import COLD, DIMMED, HOT, data_url, heat_map
from tdmr1_core.runs.looking.scatter_chart import scatter_chart

pytestmark = pytest.mark.unit


def test_implicit_rewards_are_relative_to_the_group_in_each_draw():
    # The draws have the means 2 and 11. Relative to them: -1, 1 and -1, 1; then -1, 1 and -3, 3.
    mean, error = relative_to_group(np.array([[1.0, 3.0], [10.0, 12.0]]))
    assert (mean.tolist(), error.tolist()) == ([-1, 1], [0, 0])
    mean, error = relative_to_group(np.array([[1.0, 3.0], [8.0, 14.0]]))
    assert mean.tolist() == [-2, 2]
    assert error == pytest.approx([1, 1])  # the deviation of -1 and -3 is sqrt(2), over sqrt(2 draws)
    assert np.isnan(relative_to_group(np.array([[1.0, 3.0]]))[1]).all()


def test_rank_correlations_are_spearmans():
    # Ranks 1 2 3 4 against 1 3 2 4: 1 - 6 (0 + 1 + 1 + 0) / (4 (16 - 1)) = 0.8
    assert rank_correlation(np.array([0.1, 0.2, 0.3, 9.0]), [1.0, 3.0, 2.0, 4.0]) == pytest.approx(0.8)
    assert rank_correlation(np.array([1.0, 2.0, 3.0]), [30.0, 20.0, 10.0]) == pytest.approx(-1)
    # Equal scores get the mean rank: 1.5 1.5 3 against 1 2 3 is (0.5 * 1 + 0 + 1 * 1) / sqrt(1.5 * 2) = 0.866
    assert rank_correlation(np.array([1.0, 2.0, 3.0]), [0.0, 0.0, 1.0]) == pytest.approx(math.sqrt(3) / 2)


def test_images_without_a_score_are_omitted_from_rank_correlations():
    assert rank_correlation(np.array([1.0, 99.0, 2.0, 3.0]), [1.0, None, 2.0, 3.0]) == pytest.approx(1)


@pytest.mark.parametrize("scores", [[1.0, 1.0, 1.0], [1.0, None, 2.0], []])
def test_there_is_no_rank_correlation_of_equal_or_of_two_scores(scores):
    assert math.isnan(rank_correlation(np.arange(float(len(scores))), scores))


def test_images_are_ordered_by_reward_and_those_without_one_come_last():
    assert made_up().order == [1, 0, 3, 2]


def test_the_heat_map_is_gray_without_a_direction_and_colored_at_the_largest():
    image = np.full((2, 2, 3), (30, 60, 90), np.uint8)  # the mean is 60
    found = heat_map(image, np.array([[0.0, 0.0], [4.0, 4.0]]), 4.0)
    assert found[0].tolist() == [[round(DIMMED * 60)] * 3] * 2
    assert found[1].tolist() == [[round(value) for value in HOT]] * 2
    half = heat_map(image, np.array([[2.0]]), 4.0)[0, 0]
    assert half.tolist() == [round((DIMMED * 60 + (cold + hot) / 2) / 2) for cold, hot in zip(COLD, HOT, strict=True)]
    assert heat_map(image, np.zeros((1, 1)), 0.0).tolist() == [[[round(DIMMED * 60)] * 3] * 2] * 2


def test_embedded_images_are_exact_if_small_and_reduced_if_large():
    small = np.random.default_rng(0).integers(0, 255, (24, 24, 3)).astype(np.uint8)

    def decoded(image):
        return np.asarray(Image.open(io.BytesIO(base64.b64decode(data_url(image).partition(",")[2]))))

    assert (decoded(small) == small).all()
    assert decoded(np.zeros((512, 1024, 3), np.uint8)).shape == (128, 256, 3)


def test_a_chart_places_points_between_the_ends_of_its_axes():
    chart = scatter_chart(np.array([0.0, 1.0, 0.5]), [2.0, 4.0, None], "step 1")
    places = re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', chart)
    assert places == [("34.0", "206.0"), ("226.0", "14.0")]
    assert "2 images" in chart
    equal = scatter_chart(np.array([1.0, 1.0]), [3.0, 3.0], "step 1")
    assert set(re.findall(r'cx="([\d.]+)" cy="([\d.]+)"', equal)) == {("130.0", "110.0")}
    assert "circle" not in scatter_chart(np.array([1.0]), [None], "step 1")


def test_the_page_has_all_numbers_and_nothing_from_outside():
    page = explain_page(made_up(), "first-run")
    assert "two &lt;b&gt;red&lt;/b&gt; circles" in page
    assert "<b>" not in page
    for text in ("first-run", "tiny-tdm", "after 70 iterations", "n = 4", "seed 3", "after the last step only"):
        assert text in page, text
    # Image 1, step 2: implicit 1 in both draws, the mean of the group is 0.25 in both
    assert "implicit +0.75 ± 0<br>reward 1 (object_count 1, neatness 1)" in page
    assert "1. Image 1: final reward 1" in page
    assert "4. Image 2: final reward –" in page
    assert "<td>+1.00</td><td>–</td><td>0.5</td>" in page, "step 1: rewards of its own images are equal"
    assert not re.search(r"(src|href)=\"(?!data:)", page)
    assert "<script" not in page
    assert page.count("<img") == 2 * 2 * 3 + 4 * 2 * 2  # best and worst: three rows; all images: image and map
    assert explain_page(made_up(), "first-run") == page, "it is deterministic"


def test_the_command_refuses_what_it_cannot_explain(tmp_path, capsys):
    assert main(["explain", str(tmp_path), "--prompt", "two red circles"]) == 2
    assert "is not a run folder" in capsys.readouterr().err
    write_config(tmp_path, RunConfig(kind="distill"), Fingerprints(), None)
    assert main(["explain", str(tmp_path), "--prompt", " "]) == 2
    assert "is not a prompt" in capsys.readouterr().err
    assert main(["explain", str(tmp_path), "--prompt", "two red circles"]) == 2
    printed = capsys.readouterr().err
    assert "a distillation has no surrogate reward, so there is nothing to explain" in printed
    assert "hint: name the folder of a training run" in printed


def test_the_command_shows_correlations_and_the_implicit_rewards_of_best_and_worst(capsys):
    explain_command._show(made_up())
    printed = capsys.readouterr().out
    rows = [" ".join(line.split()) for line in printed.splitlines()]
    assert "rank correlation of implicit and true reward, 4 images" in printed
    # Image 1 is the best, image 2 has no reward. Relative to the means 0.125 of step 1: 0.375 and -0.125
    assert "1 1 → 0.5 1.000 – +0.38 -0.12" in rows
    assert "2 0.5 → 0 1.000 1.000 +0.75 -0.25" in rows


def test_a_group_without_rewards_says_why():
    steps = [dataclasses.replace(step, total=(None,) * 4) for step in made_up().steps]
    page = explain_page(made_up(steps=tuple(steps), unscored="it has no text"), "run")
    assert "No reward scored the final images: it has no text" in page
    assert "<table" not in page
