"""The scores of a result, and the metrics in its details: finite numbers by name."""

import numpy as np
import pytest
import torch

from tdmr1_rewards import RewardResult
from tdmr1_rewards.calling.result_checks import CallFailed, check_result

pytestmark = pytest.mark.unit


def checked(metrics):
    return check_result(RewardResult([1.0, None], [{"metrics": metrics}, {"reason": "dark"}]), [7, 8])


@pytest.mark.parametrize("metrics", [{}, {"size": 2}, {"size": np.float32(2), "lines": np.int64(3), "sharp": True}])
def test_finite_numbers_are_metrics(metrics):
    assert checked(metrics).details == [{"metrics": metrics}, {"reason": "dark"}]


@pytest.mark.parametrize(
    ("metrics", "values"),
    [
        (3, {"type": "int"}),
        ([("size", 2)], {"type": "list"}),
        ({"mean": 1.0}, {"metric": "mean"}),
        ({"failed": 1.0}, {"metric": "failed"}),
        ({5: 1.0}, {"metric": "5"}),
        ({"size": "2"}, {"metric": "size", "value": "'2'"}),
        ({"size": None}, {"metric": "size", "value": "None"}),
        ({"size": float("nan")}, {"metric": "size", "value": "nan"}),
        ({"size": -1.1e100}, {"metric": "size", "value": "-1.1e+100"}),
        ({"size": 10**101}, {"metric": "size", "value": f"1{'0' * 17}...{'0' * 19}"}),
    ],
)
def test_other_metrics_are_refused(metrics, values):
    with pytest.raises(CallFailed) as caught:
        checked(metrics)
    assert caught.value.code == "reward-result"
    assert caught.value.values == {"image_id": 7, **values}


@pytest.mark.parametrize("score", [1e308, -1e308, 1.1e100, 10**400, float("inf"), float("nan"), np.float64(1e200)])
def test_a_score_whose_statistics_would_overflow_is_refused(score):
    assert check_result(RewardResult([1e100, -1e100]), [7, 8]).scores == [1e100, -1e100]
    with pytest.raises(CallFailed, match=r"returned .*, for image 8") as caught:
        check_result(RewardResult([1.0, score]), [7, 8])
    assert caught.value.code == "reward-result"
    assert "from -1e+100 to 1e+100" in caught.value.hint


@pytest.mark.parametrize(
    "scores",
    [
        torch.tensor([0.5, -2.0]),
        torch.tensor([0.5, -2.0], dtype=torch.bfloat16, requires_grad=True),
        [torch.tensor(0.5), -2],
        np.array([0.5, -2.0], np.float32),
    ],
)
def test_tensors_and_arrays_are_scores(scores):
    found = check_result(RewardResult(scores), [0, 1]).scores
    assert found == [0.5, -2.0]
    assert all(type(score) is float for score in found)


@pytest.mark.parametrize(
    ("scores", "kind"),
    [
        ({0.1, 0.2}, "set"),
        (frozenset({0.1, 0.2}), "frozenset"),
        ({"a": 1, "b": 2}.keys(), "dict_keys"),
        ({1: 0.5, 2: 0.5}, "dict"),
        (0.5, "float"),
        (torch.tensor(0.5), "Tensor"),
    ],
)
def test_scores_without_an_order_are_refused(scores, kind):
    with pytest.raises(CallFailed) as caught:
        check_result(RewardResult(scores), [0, 1])
    assert (caught.value.code, caught.value.values) == ("reward-result", {"field": "scores", "type": kind})
