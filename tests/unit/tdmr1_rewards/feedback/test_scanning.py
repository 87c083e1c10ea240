"""Images are read while the page is open, broken ones are skipped, and each folder has one page."""

import errno
import threading
import time
from pathlib import Path

import pytest
from PIL import Image
from support.errors import raises
from support.feedback_images import solid_image

from tdmr1_rewards.errors import RewardWarning, Tdmr1Error
from tdmr1_rewards.feedback import overview as overview_module
from tdmr1_rewards.feedback import page_lock as page_lock_module
from tdmr1_rewards.feedback import scanning
from tdmr1_rewards.feedback.image_groups import group_images
from tdmr1_rewards.feedback.overview import SharedOverview
from tdmr1_rewards.feedback.page_lock import ADDRESS, page_lock
from tdmr1_rewards.feedback.scanning import NAMED, FolderScan
from tdmr1_rewards.feedback.store import FeedbackStore

pytestmark = pytest.mark.unit


@pytest.fixture
def folder(tmp_path):
    for number in range(40):
        Image.fromarray(solid_image(number)).save(tmp_path / f"{number:02d}.png")
    return tmp_path


@pytest.fixture
def store(tmp_path):
    made = FeedbackStore(tmp_path / "feedback")
    yield made
    made.close()


def scan_of(store, folder, said=None):
    groups = group_images(folder, shuffle=False)
    return FolderScan(store, folder, groups, run="label x", judges=1, skip=(said if said is not None else []).append)


def finished(scan):
    scan._thread.join(30)
    assert scan.read == scan.total
    return scan


def items(store):
    (opened,) = store.open_rounds()
    return store.progress(opened.id).items


def test_images_can_be_judged_while_others_are_read(store, folder, monkeypatch):
    read, more = scanning.read_image, threading.Event()

    def slow(path):
        if int(Path(path).stem) >= 20:
            more.wait(30)
        return read(path)

    monkeypatch.setattr(scanning, "read_image", slow)
    monkeypatch.setattr(scanning, "START", 0)
    scan = scan_of(store, folder)
    scan.start()
    assert 0 < items(store) < 40
    assert "of 40 images were read" in store.message()
    first = store.next_items("p", 1)[0].item
    more.set()
    finished(scan)
    assert items(store) == 40
    assert store.message() == ""
    assert store.items_of(store.open_rounds()[0].id)[0].hash == first.hash


def test_broken_images_are_named_skipped_and_counted(store, folder):
    for number in (3, 7):
        (folder / f"{number:02d}.png").write_bytes(b"\x89PNG\r\n\x1a\n no image")
    said = []
    scan = scan_of(store, folder, said)
    scan.start()
    finished(scan)
    assert (scan.skipped, items(store)) == (2, 38)
    assert said == [
        *(f"cannot read {folder / name} as an image; it is skipped" for name in ("03.png", "07.png")),
        "2 of 40 images cannot be read and were skipped",
    ]


def test_a_folder_with_broken_images_only_is_an_error_that_names_one(store, folder):
    for path in folder.glob("*.png"):
        path.write_bytes(b"no image")
    said = []
    with raises("file-unreadable", path=str(folder), images=40) as caught:
        scan_of(store, folder, said).start()
    assert str(folder / "00.png") in caught.value.message
    assert len(said) == NAMED


def test_unchanged_files_are_not_read_again_and_changed_ones_are(store, folder, monkeypatch):
    scan = scan_of(store, folder)
    scan.start()
    opened = finished(scan) and store.open_rounds()[0]
    given = store.next_items("p", 1)[0].item
    store.give(key="k", item_id=given.id, round_id=opened.id, person="p", answer="like")
    store.close_open_rounds("label x")
    read, paths = scanning.read_image, []
    monkeypatch.setattr(scanning, "read_image", lambda path: paths.append(path) or read(path))
    scan = scan_of(store, folder)
    scan.start()
    finished(scan)
    assert paths == []
    assert store.open_rounds()[0].id == opened.id
    assert store.remaining("p") == 39
    store.close_open_rounds("label x")
    store.image_path(given.hash).unlink()
    scan = scan_of(store, folder)
    scan.start()
    finished(scan)
    assert len(paths) == 1
    Image.fromarray(solid_image(500)).save(folder / "05.png")
    store.close_open_rounds("label x")
    scan = scan_of(store, folder)
    scan.start()
    finished(scan)
    assert items(store) == 40
    assert store.remaining("p") == 39


def test_a_full_disk_stops_reading_and_is_reported(store, folder, monkeypatch):
    add, calls = store.add_items, []

    def full(round_id, rows):
        calls.append(rows)
        if len(calls) > 2:
            raise Tdmr1Error("the disk is full", code="not-writable")
        add(round_id, rows)

    monkeypatch.setattr(scanning, "START", 0)
    monkeypatch.setattr(store, "add_items", full)
    said = []
    scan = scan_of(store, folder, said)
    scan.start()
    scan._thread.join(20)
    assert said == [f"stopped reading images after {scan.read} of 40: the disk is full"]
    assert items(store) == scan.read < 40
    assert scan.error.code == "not-writable"


def test_reading_can_be_stopped(store, folder, monkeypatch):
    read = scanning.read_image
    monkeypatch.setattr(scanning, "START", 0)
    monkeypatch.setattr(scanning, "BATCH", 1)
    monkeypatch.setattr(scanning, "read_image", lambda path: time.sleep(0.05) or read(path))
    scan = scan_of(store, folder)
    scan.start()
    scan.stop()
    assert 0 < scan.read < 40


def test_a_second_page_is_refused_with_the_address_of_the_first(tmp_path):
    folder = tmp_path / "images" / "feedback"
    with page_lock(folder) as address:
        with raises("feedback-store", url=None), page_lock(folder):
            pass
        address.write("http://127.0.0.1:1/#t")
        assert (folder / ADDRESS).stat().st_mode & 0o777 == 0o600
        with raises("feedback-store", path=str(folder), url="http://127.0.0.1:1/#t") as caught, page_lock(folder):
            pass
        assert f"serves {tmp_path / 'images'} at http://127.0.0.1:1/#t" in caught.value.message
    with page_lock(folder):
        assert not (folder / ADDRESS).exists()


@pytest.mark.parametrize("error", [NotImplementedError("no flock"), OSError(errno.ENOLCK, "No locks available")])
def test_a_file_system_without_locks_causes_a_warning(tmp_path, monkeypatch, error):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr(page_lock_module.FileLock, "acquire", fail)
    with pytest.warns(RewardWarning, match="has no locks"), page_lock(tmp_path) as address:
        address.write("http://127.0.0.1:1/#t")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_cannot_be_written_is_an_error(tmp_path):
    (tmp_path / "feedback").touch()
    with raises("not-writable", path=str(tmp_path / "feedback")), page_lock(tmp_path / "feedback"):
        pass


def test_the_overview_of_many_items_is_used_again_and_of_few_it_is_not(store, folder, monkeypatch):
    scan = scan_of(store, folder)
    scan.start()
    finished(scan)
    shared = SharedOverview(store)
    item, opened = store.next_items("p", 1)[0].item, store.open_rounds()[0]
    assert shared.get().progress.done == 0
    store.give(key="k", item_id=item.id, round_id=opened.id, person="p", answer="like")
    assert shared.get().progress.done == 1
    monkeypatch.setattr(overview_module, "LARGE", 10)
    store.undo("p", key="u")
    assert shared.get().progress.done == 1
    monkeypatch.setattr(overview_module, "AGE", 0)
    assert shared.get().progress.done == 0
    with shared._reading:  # another request reads it
        store.give(key="l", item_id=item.id, round_id=opened.id, person="p", answer="like")
        assert shared.get().progress.done == 0
