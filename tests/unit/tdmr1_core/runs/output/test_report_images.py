"""The images of a report are chosen evenly, stay within their bytes, and survive damaged files."""

import io
import json

import numpy as np
import pytest
from PIL import Image
from support.report_runs import COLUMNS, PROMPTS, write_run

from tdmr1_core.runs.output import report_images
from tdmr1_core.runs.output.report_images import (
    Images,
    frames_of,
    grids_data,
    groups_data,
    mean,
    pairs_data,
    shrink,
    spread_over,
)

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("count", "most", "indices"),
    [(0, 3, []), (3, 5, [0, 1, 2]), (10, 1, [9]), (10, 4, [0, 3, 6, 9]), (101, 3, [0, 50, 100])],
)
def test_indices_are_spread_evenly(count, most, indices):
    assert spread_over(count, most) == indices


def test_the_mean_ignores_missing_scores():
    assert mean([1.0, None, 2.0]) == 1.5
    assert mean([None]) is None


@pytest.mark.parametrize("size", [(24, 24), (700, 300), (2048, 1536)])
def test_an_image_is_shrunk_until_it_fits(size):
    noise = np.random.default_rng(0).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    content, width, height = shrink(Image.fromarray(noise), 20_000, 1024)
    assert len(content) <= 20_000
    opened = Image.open(io.BytesIO(content))
    assert (opened.format, opened.size) == ("WEBP", (width, height))
    assert abs(width / height - size[0] / size[1]) < 0.05 * size[0] / size[1]
    if size == (24, 24):
        assert np.array_equal(np.asarray(opened.convert("RGB")), noise), "small images lose nothing"


@pytest.fixture
def folder(tmp_path):
    return write_run(tmp_path / "run", 20, every=5)


def test_grids_have_the_mean_score_of_each_row(folder):
    images = Images()
    data = grids_data(frames_of(folder), images, 1)
    assert data["prompts"] == list(PROMPTS)
    assert [frame["step"] for frame in data["frames"]] == [0, 5, 10, 15, 20]
    assert len(images.encoded) == 5
    # scores are index / 12, and image 1 has none: rows (0, 2, 3), (4, 5, 6, 7), (8, 9, 10, 11)
    first = data["frames"][0]["scores"]["object_count"]
    assert first == pytest.approx([5 / 36, 22 / 48, 38 / 48])


def test_at_most_40_grids_of_all_runs(tmp_path):
    folder = write_run(tmp_path / "run", 60, every=1)
    frames = frames_of(folder)
    assert len(frames) == 61
    for runs, grids in ((1, 40), (2, 20)):
        images = Images()
        data = grids_data(frames, images, runs)
        assert (len(data["frames"]), data["all"]) == (grids, 61)
        assert (data["frames"][0]["step"], data["frames"][-1]["step"]) == (0, 60)
        assert sum(map(len, images.encoded)) <= report_images.GRID_BYTES / runs


def test_pairs_are_the_same_cells_of_the_first_and_the_last_grid(folder):
    images = Images()
    pairs = pairs_data(folder, frames_of(folder), images, 1)
    assert [pair["prompt"] for pair in pairs] == [prompt for prompt in PROMPTS for _ in range(2)]
    assert {(pair["before"]["step"], pair["after"]["step"]) for pair in pairs} == {(0, 20)}
    assert pairs[1]["before"]["scores"] == {"object_count": None}
    frame = frames_of(folder)[0]
    cell = Image.open(frame.file).convert("RGB").crop(frame.boxes[COLUMNS + 1])
    shown = Image.open(io.BytesIO(images.encoded[pairs[3]["before"]["image"]])).convert("RGB")
    assert np.array_equal(np.asarray(shown), np.asarray(cell))


def test_groups_have_two_images_with_scores(folder):
    images = Images()
    groups = groups_data(folder, images, 1)
    assert [group["step"] for group in groups] == [5, 10, 15, 20]
    assert groups[0]["best"]["scores"] == {"object_count": 0.75}
    assert groups[0]["rewards"] == [0.25, 0.5, 0.75]
    assert len(images.encoded) == 8


def test_grids_of_earlier_versions_have_no_scores(folder):
    for file in (folder / "samples").glob("*.json"):
        file.unlink()
    Image.new("RGB", (60, 40)).save(folder / "before_after.png")
    frames, images = frames_of(folder), Images()
    data = grids_data(frames, images, 1)
    assert (data["prompts"], data["frames"][0]["scores"]) == ([], {})
    (pair,) = pairs_data(folder, frames, images, 1)
    assert (pair["whole"]["width"], pair["whole"]["height"]) == (60, 40)
    assert groups_data(folder, images, 1) == []


WRONG = [
    {"columns": 0},
    {"columns": 0, "prompts": [], "scores": {}},
    {"columns": 10**12},
    {"columns": 2},
    {"height": 10**9},
    {"prompts": 5},
    {"scores": {"object_count": [1e999] * 12}},
    {"scores": {"object_count": ["x"] * 12}},
]


@pytest.mark.parametrize("change", WRONG)
def test_a_wrong_description_of_a_grid_is_ignored(folder, change):
    file = folder / "samples" / "step-000000.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    frames = frames_of(folder)
    assert grids_data(frames, Images(), 1)["frames"][0]["step"] == 0
    assert pairs_data(folder, frames, Images(), 1) == []


@pytest.mark.parametrize("content", [b"", b"picture", b"\x89PNG\r\n\x1a\n" + b"\x00" * 50])
def test_damaged_images_are_omitted(folder, content):
    for name in ("step-000005.png", "group-000005-best.png", "step-000020.png"):
        (folder / "samples" / name).write_bytes(content)
    frames = frames_of(folder)
    assert [frame["step"] for frame in grids_data(frames, Images(), 1)["frames"]] == [0, 10, 15]
    assert pairs_data(folder, frames, Images(), 1) == []
    assert [group["step"] for group in groups_data(folder, Images(), 1)] == [10, 15, 20]
