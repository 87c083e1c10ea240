"""Metrics in the details of a result: finite numbers by name."""

import numpy as np
import pytest

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
    ],
)
def test_other_metrics_are_refused(metrics, values):
    with pytest.raises(CallFailed) as caught:
        checked(metrics)
    assert caught.value.code == "reward-result"
    assert caught.value.values == {"image_id": 7, **values}
