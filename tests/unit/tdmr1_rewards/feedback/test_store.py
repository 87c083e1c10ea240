"""The feedback store: durability, offers to several people, repeated answers, undo and damaged files."""

import sqlite3
import threading

import numpy as np
import pytest
from PIL import Image
from support.errors import raises
from support.feedback_images import new_items, offered, open_round, solid_image

from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.feedback import store as store_module
from tdmr1_rewards.feedback.hashing import image_hash
from tdmr1_rewards.feedback.store import FeedbackStore, NewItem, like_fraction

pytestmark = pytest.mark.unit


@pytest.fixture
def clock(monkeypatch):
    """The current time of the store, in a list that tests may change."""
    now = [1000.0]
    monkeypatch.setattr(store_module.time, "time", lambda: now[0])
    return now


_keys = iter(range(10**9))


def give(store, round_, item, person, answer="like", **settings):
    settings = {"key": f"key-{next(_keys)}"} | settings
    return store.give(item_id=item.id, round_id=round_.id, person=person, answer=answer, **settings)


def words(store):
    return [(given.person, given.answer) for given in store.answers()]


def history(store):
    """Every answer that was ever given, and why it was withdrawn."""
    with sqlite3.connect(store.folder / "answers.sqlite") as connection:
        return connection.execute("SELECT person, answer, reason FROM answers ORDER BY id").fetchall()


def test_a_round_keeps_its_items_in_order_and_their_images(store):
    opened = store.open_round(
        "t", [new_items(3, 1), new_items(2, prompt="a dog")], run="r", step=7, judges=2, deadline=9.5
    )
    assert (opened.title, opened.run, opened.step, opened.judges, opened.deadline) == ("t", "r", 7, 2, 9.5)
    items = store.items_of(opened.id)
    assert [(item.hash, item.prompt) for item in items] == [
        (image_hash(solid_image(3)), "a cat"),
        (image_hash(solid_image(1)), "a cat"),
        (image_hash(solid_image(2)), "a dog"),
    ]
    for number, item in zip((3, 1, 2), items, strict=True):
        assert np.array_equal(np.asarray(Image.open(store.image_path(item.hash))), solid_image(number))
    assert store.open_rounds() == [opened]


def test_images_may_be_pil_images_arrays_and_files(store, tmp_path):
    Image.fromarray(solid_image(1)).save(tmp_path / "one.png")
    same = [
        tmp_path / "one.png",
        str(tmp_path / "one.png"),
        solid_image(1),
        Image.fromarray(solid_image(1)).convert("RGBA"),
    ]
    opened = store.open_round("t", [[NewItem(image, "p") for image in same]], run="r", step=None)
    items = store.items_of(opened.id)
    assert len(items) == 4
    assert len(set(items)) == 1
    assert store.progress(opened.id).items == 1
    assert len(list((store.folder / "images").iterdir())) == 1


def test_a_photo_is_rotated_according_to_its_exif_data(store, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(tmp_path / "photo.jpg", exif=exif)
    (item,) = store.items_of(store.open_round("t", [[NewItem(tmp_path / "photo.jpg", "")]], run="", step=None).id)
    assert Image.open(store.image_path(item.hash)).size == (4, 8)


@pytest.mark.parametrize(
    ("wrong", "code"),
    [
        (np.zeros((2, 2)), "feedback-item"),
        ("no/such/file.png", "file-missing"),
        (b"bytes", "feedback-item"),
    ],
)
def test_an_item_that_is_not_an_image_opens_no_round(store, wrong, code):
    with raises(code):
        store.open_round("t", [[NewItem(wrong, "p")]], run="r", step=1)
    assert store.open_rounds() == []


def test_a_round_without_judges_is_refused(store):
    with raises("argument-invalid", judges=0):
        open_round(store, [1], judges=0)


def test_an_answer_is_stored_with_person_name_time_run_and_step(store, clock):
    opened = open_round(store, [1], run="runs/a", step=12)
    (item,) = store.items_of(opened.id)
    given = give(store, opened, item, "p1", "dislike", name="Ada")
    assert (given.item, given.answer, given.person, given.name) == (item, "dislike", "p1", "Ada")
    assert (given.time, given.run, given.step) == (1000.0, "runs/a", 12)
    assert store.answers() == [given]
    assert store.answers([item]) == [given]
    assert store.answers([]) == []
    assert store.answers_by_hash([item.hash, "0" * 64]) == {item.hash: [given], "0" * 64: []}


def test_a_name_is_kept_until_it_is_changed(store):
    opened = open_round(store, [1, 2])
    one, two = store.items_of(opened.id)
    assert give(store, opened, one, "p").name == ""
    assert give(store, opened, one, "p", name="Ada").name == "Ada"
    assert give(store, opened, two, "p").name == "Ada"
    assert [given.name for given in store.answers()] == ["Ada", "Ada"]


def test_a_second_store_of_the_folder_reads_everything(store):
    opened = open_round(store, [1])
    (item,) = store.items_of(opened.id)
    given = give(store, opened, item, "p")
    store.set_message("training")
    again = FeedbackStore(store.folder)
    assert again.answers() == [given]
    assert again.open_rounds() == [opened]
    assert again.message() == "training"
    again.close()


def test_the_same_key_gives_one_answer(store):
    opened = open_round(store, [1])
    (item,) = store.items_of(opened.id)
    first = give(store, opened, item, "p", "like", key="k")
    assert give(store, opened, item, "p", "like", key="k") == first
    assert give(store, opened, item, "p", "dislike", key="k") == first
    assert store.answers() == [first]
    assert len(history(store)) == 1


def test_the_same_key_after_an_undo_does_not_restore_the_answer(store):
    opened = open_round(store, [1])
    (item,) = store.items_of(opened.id)
    give(store, opened, item, "p", "like", key="k")
    store.undo("p")
    give(store, opened, item, "p", "like", key="k")
    assert store.answers() == []


def test_a_newer_answer_replaces_the_older_which_is_kept_as_history(store):
    opened = open_round(store, [1])
    (item,) = store.items_of(opened.id)
    give(store, opened, item, "p", "like")
    give(store, opened, item, "p", "dislike")
    assert words(store) == [("p", "dislike")]
    assert history(store) == [("p", "like", "replaced"), ("p", "dislike", None)]
    assert store.progress(opened.id).answers == 1


def test_undo_withdraws_the_newest_answer_of_the_person_and_offers_its_item_first(store):
    opened = open_round(store, [1, 2, 3], judges=2)
    one, two, _ = store.items_of(opened.id)
    give(store, opened, one, "a")
    give(store, opened, two, "a", "dislike")
    give(store, opened, one, "b")
    assert offered(store, "a") == [3]
    assert store.undo("a").item == two
    assert words(store) == [("a", "like"), ("b", "like")]
    assert offered(store, "a") == [2, 3]
    assert store.undo("a").item == one
    assert offered(store, "a") == [1, 2, 3]
    assert store.undo("a") is None
    assert words(store) == [("b", "like")]
    assert history(store) == [("a", "like", "undone"), ("a", "dislike", "undone"), ("b", "like", None)]


def test_an_undo_sent_twice_undoes_once(store):
    opened = open_round(store, [1, 2])
    for item in store.items_of(opened.id):
        give(store, opened, item, "p")
    assert store.undo("p", key="u") is not None
    assert store.undo("p", key="u") is None
    assert len(store.answers()) == 1


def test_an_undone_item_is_reserved_for_the_same_person(store):
    opened = open_round(store, [1])
    (item,) = store.items_of(opened.id)
    give(store, opened, item, "a")
    store.undo("a")
    assert offered(store, "b") == []
    assert offered(store, "a") == [1]


def test_answers_to_a_closed_round_cannot_be_undone(store):
    opened = open_round(store, [1])
    (item,) = store.items_of(opened.id)
    give(store, opened, item, "a")
    store.close_round(opened.id)
    assert store.undo("a") is None
    assert words(store) == [("a", "like")]


def test_each_item_is_judged_by_the_requested_number_of_people(store):
    once = open_round(store, [1], step=1)
    twice = open_round(store, [2], step=2, judges=2)
    give(store, once, store.items_of(once.id)[0], "a", "skip")
    give(store, twice, store.items_of(twice.id)[0], "a")
    assert offered(store, "a") == []
    assert offered(store, "b") == [2]
    assert (store.remaining("a"), store.remaining("b")) == (0, 1)
    give(store, twice, store.items_of(twice.id)[0], "b")
    assert offered(store, "c") == []
    assert store.remaining("c") == 0


def test_progress_counts_items_with_all_their_answers(store):
    opened = open_round(store, [1, 2, 3], judges=2)
    one, two, _ = store.items_of(opened.id)
    progress = store.progress(opened.id)
    assert (progress.items, progress.done, progress.answers) == (3, 0, 0)
    give(store, opened, one, "a")
    give(store, opened, one, "b", "skip")
    give(store, opened, two, "a")
    progress = store.progress(opened.id)
    assert (progress.items, progress.done, progress.answers) == (3, 1, 3)


def test_items_reserved_for_one_person_are_not_offered_to_another(store, clock):
    open_round(store, [1, 2, 3, 4, 5])
    assert offered(store, "a", 2) == [1, 2]
    assert offered(store, "b", 2) == [3, 4]
    assert offered(store, "c") == [5]
    assert offered(store, "a", 2) == [1, 2]
    clock[0] += store_module.LOAN + 1
    assert offered(store, "c") == [1, 2, 3, 4, 5]


def test_a_reserved_item_is_offered_to_as_many_people_as_must_judge_it(store):
    open_round(store, [1], judges=2)
    assert [offered(store, person) for person in "abc"] == [[1], [1], []]


def test_items_of_the_newest_round_are_offered_first(store, clock):
    open_round(store, [1], step=1)
    clock[0] += 1
    open_round(store, [2], step=2)
    clock[0] += 1
    assert offered(store, "a") == [2, 1]
    open_round(store, [1], step=1)
    assert offered(store, "a") == [1, 2]


def test_groups_can_be_offered_completely(store):
    open_round(store, [1, 2, 3], [4, 5], [6])
    assert offered(store, "a", 1, whole_groups=True) == [1, 2, 3]
    assert offered(store, "b", 1, whole_groups=True) == [4, 5]
    assert offered(store, "a", 4, whole_groups=True) == [1, 2, 3, 6]
    assert [offer.group for offer in store.next_items("a", 9)] == [0, 0, 0, 2]


def test_an_image_that_occurs_twice_is_judged_once(store):
    opened = open_round(store, [1, 1], [1])
    assert len(store.items_of(opened.id)) == 3
    assert offered(store, "a") == [1]
    give(store, opened, store.items_of(opened.id)[0], "a")
    assert store.progress(opened.id).done == store.progress(opened.id).items == 1


def test_the_same_image_with_another_prompt_is_another_item(store):
    opened = store.open_round("t", [new_items(1), new_items(1, prompt="a dog")], run="r", step=1)
    one, two = store.items_of(opened.id)
    assert one.hash == two.hash
    give(store, opened, one, "a")
    assert store.answers([two]) == []
    assert [offer.item for offer in store.next_items("a", 9)] == [two]


def test_a_closed_round_offers_nothing_and_keeps_its_answers(store):
    opened = open_round(store, [1, 2])
    one, two = store.items_of(opened.id)
    give(store, opened, one, "a")
    store.close_round(opened.id)
    assert offered(store, "b") == []
    assert store.remaining("b") == 0
    give(store, opened, two, "a")
    assert len(store.answers()) == 2
    assert store.open_rounds() == []


def test_all_rounds_of_a_run_are_closed_together(store):
    open_round(store, [1], run="a", step=1)
    open_round(store, [2], run="a", step=2)
    other = open_round(store, [3], run="b")
    store.close_open_rounds("a")
    assert store.open_rounds() == [other]


def test_a_round_that_is_opened_again_keeps_its_answers(store):
    first = open_round(store, [1, 2], deadline=5.0)
    one, _ = store.items_of(first.id)
    give(store, first, one, "a")
    store.close_round(first.id)
    again = open_round(store, [1, 2], deadline=99.0)
    assert (again.id, again.deadline) == (first.id, 99.0)
    assert store.progress(again.id).answers == 1
    assert offered(store, "b") == [2]
    assert len(store.items_of(again.id)) == 2
    for other in ({"step": 2}, {"run": "s"}):
        assert open_round(store, [1, 2], **other).id != first.id
    assert open_round(store, [2, 1]).id != first.id
    assert open_round(store, [1], [2]).id != first.id


def test_an_item_of_another_round_and_an_unknown_answer_are_refused(store):
    one, two = open_round(store, [1], step=1), open_round(store, [2], step=2)
    with raises("feedback-item", round=two.id, item=store.items_of(one.id)[0].id):
        give(store, two, store.items_of(one.id)[0], "a")
    with raises("feedback-item", answer="maybe"):
        give(store, one, store.items_of(one.id)[0], "a", "maybe")
    assert store.answers() == []


@pytest.mark.parametrize("name", ["", "..", "../answers.sqlite", "/etc/passwd", "0" * 64, "G" * 64, "a" * 63 + "\n"])
def test_image_path_finds_only_images_of_the_store(store, name):
    open_round(store, [1])
    assert store.image_path(name) is None


def test_a_link_out_of_the_folder_is_not_followed(store, tmp_path):
    outside = tmp_path / "secret.png"
    outside.write_bytes(b"secret")
    (store.folder / "images" / f"{'a' * 64}.png").symlink_to(outside)
    assert store.image_path("a" * 64) is None


def test_likes_share(store):
    opened = open_round(store, [1])
    (item,) = store.items_of(opened.id)
    assert like_fraction([]) is None
    give(store, opened, item, "a", "skip")
    assert like_fraction(store.answers()) is None
    for person, answer in (("b", "like"), ("c", "like"), ("d", "dislike")):
        give(store, opened, item, person, answer)
    assert like_fraction(store.answers()) == pytest.approx(2 / 3)


def test_concurrent_answers_are_neither_lost_nor_duplicated(store):
    opened = open_round(store, list(range(40)), judges=4)
    items = store.items_of(opened.id)
    failures = []

    def judge(person):
        mine = FeedbackStore(store.folder)
        try:
            for item in items:
                for _ in range(2):
                    give(mine, opened, item, person, key=f"{person}-{item.id}")
        except Exception as error:
            failures.append(error)
        finally:
            mine.close()

    threads = [threading.Thread(target=judge, args=(f"p{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert store.progress(opened.id).done == 40
    assert len(history(store)) == 160


def test_several_threads_can_create_the_same_folder(tmp_path):
    opened, failures = [], []

    def begin():
        try:
            opened.append(FeedbackStore(tmp_path / "f"))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=begin) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    open_round(opened[0], [1])
    assert all(len(store.open_rounds()) == 1 for store in opened)
    for store in opened:
        store.close()


def test_a_failed_transaction_changes_nothing(store):
    opened = open_round(store, [1])
    (item,) = store.items_of(opened.id)

    class Broken(str):
        def __conform__(self, _):
            raise MemoryError

    with pytest.raises((MemoryError, Tdmr1Error)):
        give(store, opened, item, "p", name=Broken("x"))
    assert store.answers() == []
    give(store, opened, item, "p")
    assert words(store) == [("p", "like")]


def refused(folder, code="feedback-store", **values):
    """Check the error of opening a folder, and that it has a hint."""
    with raises(code, **values) as caught:
        FeedbackStore(folder)
    assert caught.value.hint


def test_another_version_is_refused(store):
    with sqlite3.connect(store.folder / "answers.sqlite") as connection:
        connection.execute("PRAGMA user_version = 99")
    refused(store.folder, version=99, path=str(store.folder / "answers.sqlite"))


def test_a_file_that_is_not_a_database_is_refused_and_unchanged(tmp_path):
    path = tmp_path / "answers.sqlite"
    path.write_text("these are my notes, and they are longer than a header of SQLite would be" * 9)
    before = path.read_bytes()
    refused(tmp_path, path=str(path))
    assert path.read_bytes() == before


def test_a_database_of_another_program_is_refused_and_unchanged(tmp_path):
    path = tmp_path / "answers.sqlite"
    with sqlite3.connect(path) as connection:
        connection.execute("CREATE TABLE mine (x)")
    before = path.read_bytes()
    refused(tmp_path, path=str(path), application_id=0)
    assert path.read_bytes() == before


def test_a_file_in_place_of_the_folder_is_an_error(tmp_path):
    (tmp_path / "f").write_text("")
    refused(tmp_path / "f", "not-writable", path=str(tmp_path / "f" / "images"))


def test_a_full_disk_is_an_error(store, monkeypatch):
    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.fsync", full)
    with raises("not-writable", reason="No space left on device"):
        open_round(store, [1])
    assert list((store.folder / "images").iterdir()) == []
