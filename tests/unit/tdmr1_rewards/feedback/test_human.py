"""The reward `human` in each mode. The page is replaced by a visitor that answers through the store."""

from __future__ import annotations

import itertools
import threading
import time

import numpy as np
import pytest
from PIL import Image
from support.errors import raises

from tdmr1_rewards.api import RewardBatch, RewardContext
from tdmr1_rewards.calling import interrupts
from tdmr1_rewards.feedback import human
from tdmr1_rewards.feedback.human import Human, HumanOptions
from tdmr1_rewards.feedback.store import FeedbackStore

pytestmark = pytest.mark.unit

RED, BLUE = (200, 20, 20), (20, 20, 200)


def batch_of(colours, run_folder, iteration=0, group_size=2, shade=0):
    """A batch of plain images, all different, in groups."""
    images = []
    for index, colour in enumerate(colours):
        image = Image.new("RGB", (8, 8), colour)
        image.putpixel((0, 0), (index % 256, index // 256, shade + iteration))
        images.append(image)
    count = len(images)
    groups = [index // group_size for index in range(count)]
    return RewardBatch(
        images=images,
        prompts=[f"prompt {group}" for group in groups],
        metadata=[{}] * count,
        group_ids=groups,
        image_ids=list(range(count)),
        context=RewardContext(run_folder, iteration, 7),
    )


class Visitor:
    """A page whose visitors, `people`, like red. They begin at once and give `limit` answers in total."""

    opened: list[Visitor]
    limit: int | None
    people: tuple[str, ...]

    def __init__(self, folder):
        self.url = "http://127.0.0.1:1/#token"
        self.ensured = self.stopped = 0
        self._store = FeedbackStore(folder)
        self._end = threading.Event()
        self._thread = threading.Thread(target=self._visit, daemon=True)
        self._thread.start()

    @classmethod
    def start(cls, folder, host, port):
        cls.opened.append(cls(folder))
        return cls.opened[-1]

    def ensure(self):
        self.ensured += 1

    def stop(self):
        self.stopped += 1
        self._end.set()
        self._thread.join()
        self._store.close()

    def _visit(self):
        given = 0
        while not self._end.wait(0.01):
            for person in type(self).people:
                limit = 8 if self.limit is None else min(8, self.limit - given)
                for offer in self._store.next_items(person, limit) if limit > 0 else ():
                    pixel = np.asarray(Image.open(self._store.image_path(offer.item.hash)))[4, 4]
                    answer = "like" if pixel[0] > pixel[2] else "dislike"
                    key = f"{time.monotonic_ns()}-{person}"
                    self._store.give(
                        key=key, item_id=offer.item.id, round_id=offer.round.id, person=person, answer=answer
                    )
                    given += 1


@pytest.fixture(autouse=True)
def visitor(monkeypatch):
    Visitor.opened, Visitor.limit, Visitor.people = [], None, ("ada",)
    monkeypatch.setattr(human, "FeedbackPage", Visitor)
    monkeypatch.setattr(human, "POLL", 0.01)
    return Visitor


def judge(tmp_path, batch, **options):
    reward = Human(HumanOptions(**options))
    reward.setup("cpu")
    try:
        return reward(batch)
    finally:
        reward.close()


def test_wait_returns_the_answers_as_scores(tmp_path, visitor):
    reports = []
    with interrupts.listening(reports.append):
        result = judge(tmp_path, batch_of([RED, BLUE, BLUE, RED], tmp_path))
    assert result.scores == [1.0, 0.0, 0.0, 1.0]
    assert result.details[0] == {"like": 1}
    assert reports[0].endswith("http://127.0.0.1:1/#token")
    assert any("of 4" in text and "http://127.0.0.1:1/#token" in text for text in reports)
    assert visitor.opened[0].stopped == 1
    store = FeedbackStore(tmp_path / "feedback")
    assert store.open_rounds() == []
    assert store.message()
    assert {(each.run, each.step) for each in store.answers()} == {(tmp_path.name, 0)}


def test_several_people_judge_each_image(tmp_path, visitor):
    visitor.people = ("ada", "bob", "eve")
    result = judge(tmp_path, batch_of([RED, BLUE], tmp_path), judges=3)
    assert result.scores == [1.0, 0.0]
    assert list(result.details) == [{"like": 3}, {"dislike": 3}]


def test_images_without_answers_have_no_score_when_the_time_is_over(tmp_path, visitor):
    visitor.limit = 3
    started = time.monotonic()
    result = judge(tmp_path, batch_of([RED, BLUE, BLUE, RED, RED, RED], tmp_path), minutes=2 / 60)
    assert 2 <= time.monotonic() - started < 30
    assert result.scores == [1.0, 0.0, 0.0, None, None, None]


def test_waiting_ends_when_enough_images_are_judged(tmp_path, visitor):
    visitor.limit = 4
    result = judge(tmp_path, batch_of([RED] * 6, tmp_path), enough=0.6, minutes=5)
    assert result.scores.count(1.0) == 4


def test_stored_answers_are_found_for_the_same_images(tmp_path, visitor):
    batch = batch_of([RED, BLUE], tmp_path)
    judge(tmp_path, batch)
    visitor.limit = 0
    assert judge(tmp_path, batch).scores == [1.0, 0.0]  # as after a kill and a resume
    assert judge(tmp_path, batch, mode="stored").scores == [1.0, 0.0]
    assert len(visitor.opened) == 2  # stored opens no page


def test_answers_are_kept_when_the_wait_is_interrupted(tmp_path, visitor):
    visitor.limit = 1
    batch = batch_of([RED, BLUE], tmp_path)
    listening = interrupts.listening(lambda text: interrupts.interrupt() if "1 of 2" in text else None)
    with listening, pytest.raises(interrupts.Interrupted):
        judge(tmp_path, batch)
    assert judge(tmp_path, batch, mode="stored").scores.count(None) == 1
    visitor.limit = None
    assert judge(tmp_path, batch).scores == [1.0, 0.0]


def test_stored_reads_other_folders(tmp_path):
    judge(tmp_path, batch_of([RED, BLUE], tmp_path / "other"))
    new = batch_of([RED, BLUE, RED], tmp_path / "run")
    answers = [tmp_path / "other"]
    assert judge(tmp_path, new, mode="stored", answers=answers).scores == [1.0, 0.0, None]
    with raises("feedback-empty", path=str(tmp_path / "nowhere")):
        judge(tmp_path, new, mode="stored", answers=[tmp_path / "nowhere"])


def test_the_model_scores_images_only_when_it_is_accurate_enough(tmp_path, visitor):
    run = tmp_path / "run"
    reward = Human(HumanOptions(mode="model", show=30, least_answers=40))
    colours = [RED, BLUE] * 20
    first = reward(batch_of(colours, run, iteration=0, group_size=8))
    assert first.scores.count(None) >= 10  # at most the 30 shown images have a score
    assert "model_accuracy" not in first.details[0]["metrics"]
    reached = 0
    for iteration in range(1, 6):
        wait_for_visitor(visitor.opened[0], run)
        result = reward(batch_of(colours, run, iteration=iteration, group_size=8))
        reached = result.details[0]["metrics"]["model_answers"]
        if None not in result.scores:
            break
    assert reached >= 40
    assert [score > 0.5 for score in result.scores] == [colour is RED for colour in colours]
    assert result.details[0]["metrics"]["model_accuracy"] > 0.9
    assert len(visitor.opened) == 1
    reward.close()


def wait_for_visitor(page, run):
    """Wait until the visitor has judged all shown images."""
    store = FeedbackStore(run / "feedback")
    deadline = time.monotonic() + 20
    while store.remaining("ada") and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not store.remaining("ada")
    store.close()


def test_in_mixed_mode_people_judge_a_fraction_of_each_group(tmp_path, visitor):
    labelled = batch_of([RED, BLUE] * 40, tmp_path / "labelled", shade=100)
    judge(tmp_path, labelled)
    batch = batch_of([RED, RED, BLUE, BLUE] * 2, tmp_path / "run", group_size=4)
    result = judge(tmp_path, batch, mode="mixed", people_share=0.5, answers=[tmp_path / "labelled"])
    by_people = [bool(set(detail) & {"like", "dislike"}) for detail in result.details]
    assert by_people[:4].count(True) == by_people[4:].count(True) == 2
    assert [score > 0.5 for score in result.scores] == [True, True, False, False] * 2
    assert all(0 < score < 1 for score, judged in zip(result.scores, by_people, strict=True) if not judged)


def test_outside_a_run_the_option_folder_is_required(tmp_path):
    batch = batch_of([RED], None)
    with raises("reward-options", option="folder"):
        judge(tmp_path, batch)
    assert judge(tmp_path, batch, folder=tmp_path / "here").scores == [1.0]


def test_a_change_of_the_system_clock_does_not_change_the_waiting_time(visitor, tmp_path, monkeypatch):
    now, jumps = time.time, itertools.cycle([0, 9e7, -9e7])
    monkeypatch.setattr(time, "time", lambda: now() + next(jumps))
    visitor.limit = 1
    started = time.monotonic()
    result = judge(tmp_path, batch_of([RED, BLUE], tmp_path), minutes=2 / 60)
    assert 2 <= time.monotonic() - started < 30
    assert [score is None for score in result.scores] == [False, True]


def test_folders_become_absolute_paths(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = human.with_absolute_paths(HumanOptions(answers=["a"], folder="b"))
    assert options.answers == (tmp_path / "a",)
    assert options.folder == tmp_path / "b"
