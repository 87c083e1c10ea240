"""The charts of a report have the right points, spreads and groups of metrics."""

import pytest
from support.report_runs import write_run

from tdmr1_core.runs.output.report import read_report
from tdmr1_core.runs.output.report_charts import Chart, Curves, Series, chart_data, charts_of

pytestmark = pytest.mark.unit


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return read_report(write_run(tmp_path_factory.mktemp("runs") / "one", 20))


@pytest.fixture(scope="module")
def charts(run):
    return {chart["title"]: chart for chart in chart_data([charts_of(run)], ["one"])}


def test_a_curve_has_the_finite_values_in_order_with_its_spread():
    rows = [
        {"step": 2, "a": 1.0, "b": 0.5},
        {"step": 1, "a": 3.0},
        {"step": 3, "a": float("nan")},
        {"step": 2, "a": 4.0},
    ]
    curves = Curves.of(rows)
    assert curves.series("curve", "a", "b").points == [(1, 3.0, 0.0), (2, 4.0, 0.5)]
    assert curves.unused() == []


def test_every_metric_has_a_chart(run, charts):
    series = [each for chart in charts.values() for each in chart["series"]]
    drawn = [values for each in series for values in (each["y"], each["e"])]
    for name, values in Curves.of(run.metrics).rows.items():
        if name != "reward/object_count/unjudged":  # no image was unjudged, so there is no curve of 0
            assert [float(f"{value:.6g}") for value in values.values()] in drawn, name


def test_rewards_have_a_band_and_evaluations_have_intervals(charts):
    reward = charts["Training reward"]["series"][0]
    assert (reward["spread"], reward["sparse"]) == ("standard deviation", False)
    assert "m" not in reward, "a short curve has all of its points"
    assert reward["e"][0] == pytest.approx(0.39)
    evaluated = charts["object_count in evaluations"]["series"]
    assert [each["name"] for each in evaluated] == ["count", "count-held-out"]
    assert evaluated[0]["x"] == [0, 4, 8, 12, 16, 20]
    assert evaluated[0]["e"] == [pytest.approx(1.96 * 0.02)] * 6
    assert all(each["sparse"] for each in evaluated)


def test_the_idle_fraction_is_the_wait_for_rewards(charts, run):
    first = run.metrics[0]
    assert charts["Idle fraction"]["series"][0]["y"][0] == pytest.approx(
        first["time/score"] / first["time/iteration"], rel=1e-5
    )


def test_axes_and_ranges(charts):
    assert {title for title, chart in charts.items() if chart["range"] == "fraction"} == {
        "Groups without signal",
        "Clipped and drifted images of the surrogate",
        "Idle fraction",
    }
    assert all(chart["axis"] for chart in charts.values())
    assert charts["Largest memory so far"]["axis"] == "GB"


def test_several_runs_have_one_metric_per_chart(run):
    charts = chart_data([charts_of(run)] * 2, ["one", "two"])
    titles = [chart["title"] for chart in charts]
    assert len(titles) == len(set(titles))
    by_title = dict(zip(titles, charts, strict=True))
    assert {"Gradient norms: fake", "Gradient norms: generator", "Training reward"} <= by_title.keys()
    assert all([series["run"] for series in chart["series"]] == [0, 1] for chart in charts)
    assert [series["name"] for series in by_title["Training reward"]["series"]] == ["one", "two"]
    assert "object_count in evaluations: count-held-out" in by_title


def test_runs_with_different_curves_of_a_chart_have_a_chart_for_each():
    def chart(*names: str) -> Chart:
        return Chart("cost", "Memory", "GB", tuple(Series(name, [(1, 2.0, 0.0)]) for name in names))

    both = chart_data([[chart("process")], [chart("process", "GPU")]], ["one", "two"])
    assert {each["title"]: [curve["name"] for curve in each["series"]] for each in both} == {
        "Memory: process": ["one", "two"],
        "Memory: GPU": ["two"],
    }
    apart = chart_data([[chart("process")], [chart("GPU")]], ["one", "two"])
    assert [each["title"] for each in apart] == ["Memory: process", "Memory: GPU"]


def test_long_curves_are_thinned(tmp_path):
    report = read_report(write_run(tmp_path / "long", 2500, every=2500))
    series = [each for chart in chart_data([charts_of(report)], ["long"]) for each in chart["series"]]
    assert max(len(each["x"]) for each in series) <= 2000
    reward = next(each for each in series if each["name"] == "combined reward")
    values = [row["reward/mean"] for row in report.metrics]
    assert (min(reward["y"]), max(reward["y"])) == (
        pytest.approx(min(values), rel=1e-5),
        pytest.approx(max(values), rel=1e-5),
    )
    assert len(reward["m"]) == len(reward["em"]) == len(reward["x"])
