"""The SQLite file of the answers: its tables, its version, and transactions that are on disk when they end."""

from __future__ import annotations

import sqlite3
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tdmr1_rewards.errors import Tdmr1Error

FILE = "answers.sqlite"
VERSION = 1
"""Of the tables below; it rises when they change."""
APPLICATION = 0x74646D31
"""Marks the file as ours."""
PATIENCE = 30.0
"""Seconds that a transaction waits for that of another process."""

TABLES = """
CREATE TABLE items (
    id INTEGER PRIMARY KEY,
    hash TEXT NOT NULL,
    prompt TEXT NOT NULL,
    UNIQUE (hash, prompt)
);
CREATE TABLE rounds (
    id INTEGER PRIMARY KEY,
    title TEXT NOT NULL,
    run TEXT NOT NULL,
    step INTEGER,
    judges INTEGER NOT NULL,
    deadline REAL,
    opened REAL NOT NULL,
    closed REAL,
    content TEXT NOT NULL UNIQUE
);
CREATE TABLE round_items (
    round INTEGER NOT NULL REFERENCES rounds (id),
    position INTEGER NOT NULL,
    team INTEGER NOT NULL,
    item INTEGER NOT NULL REFERENCES items (id),
    PRIMARY KEY (round, position)
) WITHOUT ROWID;
CREATE INDEX rounds_of_item ON round_items (item);
CREATE TABLE people (
    id TEXT PRIMARY KEY,
    name TEXT NOT NULL
) WITHOUT ROWID;
CREATE TABLE answers (
    id INTEGER PRIMARY KEY AUTOINCREMENT,
    key TEXT NOT NULL UNIQUE,
    item INTEGER NOT NULL REFERENCES items (id),
    round INTEGER NOT NULL REFERENCES rounds (id),
    person TEXT NOT NULL REFERENCES people (id),
    answer TEXT NOT NULL CHECK (answer IN ('like', 'dislike', 'skip')),
    time REAL NOT NULL,
    withdrawn REAL,
    reason TEXT CHECK (reason IN ('replaced', 'undone')),
    CHECK ((withdrawn IS NULL) = (reason IS NULL))
);
CREATE UNIQUE INDEX one_standing_answer ON answers (item, person) WHERE withdrawn IS NULL;
CREATE INDEX answers_of_person ON answers (person, item);
CREATE TABLE undos (
    key TEXT PRIMARY KEY,
    answer INTEGER REFERENCES answers (id)
) WITHOUT ROWID;
CREATE TABLE loans (
    item INTEGER NOT NULL REFERENCES items (id),
    person TEXT NOT NULL,
    ends REAL NOT NULL,
    PRIMARY KEY (item, person)
) WITHOUT ROWID;
CREATE TABLE notes (
    name TEXT PRIMARY KEY,
    text TEXT NOT NULL
) WITHOUT ROWID;
"""


class Database:
    """One connection, for any number of threads; other processes may have the same file open.

    Raises Tdmr1Error if the file can't be opened, isn't ours or is of another version, and later if it can't be
    read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with self._telling():
            self._connection = sqlite3.connect(path, PATIENCE, isolation_level=None, check_same_thread=False)
        try:
            with self._telling():
                self._check()
                self._write_ahead()
                with self.transaction() as cursor:
                    if not cursor.execute("SELECT 1 FROM sqlite_master").fetchone():
                        _create(cursor)
                self._check()
        except BaseException:
            self._connection.close()
            raise

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Cursor]:
        """A cursor whose changes are on disk together at the end, or, after an error, not at all."""
        with self._lock, self._telling():
            cursor = self._connection.cursor()
            cursor.execute("BEGIN IMMEDIATE")
            try:
                yield cursor
                self._connection.commit()
            except BaseException:
                self._connection.rollback()
                raise

    @contextmanager
    def reading(self) -> Iterator[sqlite3.Cursor]:
        """A cursor that sees one state of the file, and never waits for who writes."""
        with self._lock, self._telling():
            cursor = self._connection.cursor()
            cursor.execute("BEGIN")
            try:
                yield cursor
            finally:
                self._connection.rollback()

    def close(self) -> None:
        """Let go of the file."""
        with self._lock:
            self._connection.close()

    def _check(self) -> None:
        """Raise Tdmr1Error for a file that has something else in it."""
        found = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        application = self._connection.execute("PRAGMA application_id").fetchone()[0]
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if found and application != APPLICATION:
            raise Tdmr1Error(f"{self._path} is a database of something else", "move it, or name another folder")
        if found and version != VERSION:
            raise Tdmr1Error(
                f"{self._path} is in version {version} of its format, and this tdmr1 knows version {VERSION}",
                "use the version of tdmr1 that wrote it, or move the file",
            )

    def _write_ahead(self) -> None:
        """Switch to the write-ahead log, which SQLite refuses without waiting while another process is just opening."""
        patience = time.monotonic() + PATIENCE
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > patience:
                    raise
                time.sleep(0.05)
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("PRAGMA foreign_keys=ON")

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise Tdmr1Error(
                f"the answers in {self._path} can't be read or written: {error}",
                "look whether the disk is full or read-only, and whether the file is a database",
            ) from error


def _create(cursor: sqlite3.Cursor) -> None:
    for statement in TABLES.split(";"):
        cursor.execute(statement)
    cursor.execute(f"PRAGMA application_id = {APPLICATION}")
    cursor.execute(f"PRAGMA user_version = {VERSION}")
