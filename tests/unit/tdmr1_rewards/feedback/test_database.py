"""The database of answers: readers and writers, locks of other programs, damage, and file systems without WAL."""

import shutil
import sqlite3
import threading
import time

import pytest
from support.errors import raises
from support.feedback_images import open_round

from tdmr1_rewards.errors import RewardWarning
from tdmr1_rewards.feedback import database
from tdmr1_rewards.feedback.store import FeedbackStore

pytestmark = pytest.mark.unit


@pytest.fixture
def without_shared_memory(monkeypatch):
    """Files as on a file system without shared memory: SQLite's other kind of locks has none."""

    def use():
        connect = sqlite3.connect
        monkeypatch.setattr(
            sqlite3,
            "connect",
            lambda path, *rest, **more: connect(f"file:{path}?vfs=unix-dotfile", *rest, uri=True, **more),
        )

    return use


def filled(folder, count=300):
    """A closed store with a round of images, and the path of its database."""
    store = FeedbackStore(folder)
    opened = open_round(store, [1, 2])
    with store._database.transaction() as cursor:
        for number in range(count):
            cursor.execute("INSERT INTO items (hash, prompt) VALUES (?, ?)", (str(number), "a long prompt " * 9))
    store.close()
    return opened, folder / database.FILE


def test_readers_do_not_wait_for_a_writer_of_this_process(store):
    open_round(store, [1])
    with store._database.transaction() as cursor:
        cursor.execute("DELETE FROM round_items")
        counts = []
        thread = threading.Thread(target=lambda: counts.append(store.progress(1).items))
        thread.start()
        thread.join(5)
        assert counts == [1]
    assert store.progress(1).items == 0


def test_readers_do_not_wait_while_a_writer_waits_for_another_program(store, monkeypatch):
    opened = open_round(store, [1])
    with sqlite3.connect(store.folder / database.FILE, isolation_level=None) as other:
        other.execute("BEGIN IMMEDIATE")
        thread = threading.Thread(target=lambda: store.close_round(opened.id))
        thread.start()
        time.sleep(0.1)
        began = time.monotonic()
        assert [each.id for each in store.open_rounds()] == [opened.id]
        assert time.monotonic() - began < 5  # the writer waits up to 10 s
        assert thread.is_alive()
        other.execute("COMMIT")
        thread.join(20)
    assert store.open_rounds() == []
    other.close()


@pytest.mark.parametrize("lock", ["BEGIN IMMEDIATE", "PRAGMA locking_mode=EXCLUSIVE"])
def test_a_database_that_another_program_has_locked_is_an_error(tmp_path, monkeypatch, lock):
    opened, path = filled(tmp_path)
    monkeypatch.setattr(database, "LOCK_TIMEOUT", 0.3)
    other = sqlite3.connect(path, isolation_level=None)
    other.execute(lock)
    if "PRAGMA" in lock:
        other.execute("UPDATE rounds SET title = title")
    with raises("feedback-store", path=str(path)) as caught:
        FeedbackStore(tmp_path).close_round(opened.id)
    assert "another program has locked the file" in caught.value.hint
    other.close()
    store = FeedbackStore(tmp_path)
    assert [each.id for each in store.open_rounds()] == [opened.id]
    store.close()


@pytest.mark.parametrize("damage", ["overwritten page", "truncated", "no header", "overwritten table"])
def test_a_damaged_database_is_an_error_and_stays_as_it_is(tmp_path, damage):
    _, path = filled(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "overwritten page":
        content[-8192:-4096] = b"\xff" * 4096
    elif damage == "truncated":
        del content[len(content) // 2 :]
    elif damage == "no header":
        content[:100] = bytes(100)
    else:
        content[110:3000] = b"\x07" * 2890
    path.write_bytes(content)
    with raises("feedback-store", path=str(path)) as caught:
        FeedbackStore(tmp_path)
    assert "the file is kept" in caught.value.hint
    assert "\n" not in caught.value.message
    assert path.read_bytes() == content


def test_without_shared_memory_a_journal_is_used_with_a_warning(tmp_path, without_shared_memory):
    without_shared_memory()
    with pytest.warns(RewardWarning, match="without shared memory"):
        store = FeedbackStore(tmp_path)
    opened = open_round(store, [1, 2])
    with pytest.warns(RewardWarning):
        second = FeedbackStore(tmp_path)
    assert second.progress(opened.id).items == 2
    second.close_round(opened.id)
    assert store.open_rounds() == []
    store.close()
    second.close()
    assert not (tmp_path / f"{database.FILE}-wal").exists()


def test_a_write_ahead_log_from_another_file_system_is_read(tmp_path, without_shared_memory):
    store = FeedbackStore(tmp_path / "a")
    opened = open_round(store, [1, 2, 3])
    shutil.copytree(tmp_path / "a", tmp_path / "b")  # while the store is open, so that its log is copied
    store.close()
    assert (tmp_path / "b" / f"{database.FILE}-wal").stat().st_size > 0
    without_shared_memory()
    with pytest.warns(RewardWarning):
        copied = FeedbackStore(tmp_path / "b")
    assert copied.progress(opened.id).items == 3
    copied.close()


def test_a_closed_store_is_an_error(store):
    store.close()
    with raises("feedback-store"):
        store.open_rounds()
