"""Exported files contain all valid answers."""

import csv
import json

import pytest
from support.errors import raises
from support.feedback_images import open_round

from tdmr1_rewards.feedback.exporting import COLUMNS, export_answers
from tdmr1_rewards.feedback.store import FeedbackStore, NewItem

pytestmark = pytest.mark.unit

PROMPT = 'a "cat", ein Käfer\nand a 猫'


@pytest.fixture
def store(tmp_path):
    from support.feedback_images import solid_image

    made = FeedbackStore(tmp_path / "feedback")
    opened = made.open_round("t", [[NewItem(solid_image(n), PROMPT) for n in (1, 2)]], run="runs/a", step=None)
    for item, answer in zip(made.items_of(opened.id), ("like", "skip"), strict=True):
        made.give(key=answer, item_id=item.id, round_id=opened.id, person="p", answer=answer, name="Ada")
    other = open_round(made, [3], run="runs/b", step=7)
    (item,) = made.items_of(other.id)
    for answer in ("like", "dislike"):
        made.give(key=f"b{answer}", item_id=item.id, round_id=other.id, person="q", answer=answer)
    yield made
    made.close()


def test_json_lines(store, tmp_path):
    file = tmp_path / "deep" / "answers.jsonl"
    assert export_answers(store, file) == 3
    rows = [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]
    assert [row["answer"] for row in rows] == ["like", "skip", "dislike"]
    first, _, last = rows
    given = store.answers()[0]
    assert tuple(first) == COLUMNS
    assert (first["image_hash"], first["prompt"], first["person"], first["name"]) == (
        given.item.hash,
        PROMPT,
        "p",
        "Ada",
    )
    assert (first["run"], first["step"]) == ("runs/a", None)
    assert (last["run"], last["step"]) == ("runs/b", 7)
    assert first["image"] == str(store.image_path(given.item.hash))
    assert first["time"].endswith("+00:00")


def test_csv_has_the_same_rows(store, tmp_path):
    export_answers(store, tmp_path / "a.jsonl")
    assert export_answers(store, tmp_path / "a.CSV") == 3
    with (tmp_path / "a.CSV").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    expected = [json.loads(line) for line in (tmp_path / "a.jsonl").read_text(encoding="utf-8").splitlines()]
    assert rows == [{key: "" if value is None else str(value) for key, value in row.items()} for row in expected]


def test_an_export_replaces_an_existing_file(store, tmp_path):
    file = tmp_path / "a.jsonl"
    file.write_text("old\n" * 999)
    export_answers(store, file)
    assert len(file.read_text().splitlines()) == 3
    assert [path.name for path in tmp_path.iterdir() if path.name.endswith(".tmp")] == []


def test_without_answers_jsonl_is_empty_and_csv_has_a_header_only(tmp_path):
    store = FeedbackStore(tmp_path / "f")
    assert export_answers(store, tmp_path / "a.jsonl") == 0
    export_answers(store, tmp_path / "a.csv")
    store.close()
    assert (tmp_path / "a.jsonl").read_text() == ""
    assert (tmp_path / "a.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_an_unknown_suffix_and_an_unwritable_path_are_errors(store, tmp_path):
    with raises("argument-invalid", path=str(tmp_path / "a.parquet"), expected=[".jsonl", ".csv"]):
        export_answers(store, tmp_path / "a.parquet")
    (tmp_path / "file").write_text("")
    with raises("not-writable", path=str(tmp_path / "file" / "a.csv")):
        export_answers(store, tmp_path / "file" / "a.csv")
