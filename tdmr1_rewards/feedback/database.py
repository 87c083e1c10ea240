"""The SQLite file of the feedback store: its tables, its version, and durable transactions."""

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
"""Version of the tables below. Increase it when they change."""
APPLICATION = 0x74646D31
"""SQLite application id that marks the file as a feedback store of tdmr1."""
LOCK_TIMEOUT = 30.0
"""Seconds that a transaction waits for a transaction of another process."""

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
    """One connection, safe for several threads. Other processes may have the same file open.

    Raises Tdmr1Error if the file cannot be opened, is not a feedback store or has another version. Every method raises
    it if the file cannot be read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        with self._translated_errors():
            self._connection = sqlite3.connect(path, LOCK_TIMEOUT, isolation_level=None, check_same_thread=False)
        try:
            with self._translated_errors():
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
        """A cursor in a write transaction: durable when the block ends, undone if it raises."""
        with self._lock, self._translated_errors():
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
        """A cursor in a read transaction. It sees one state of the file and never waits for writers."""
        with self._lock, self._translated_errors():
            cursor = self._connection.cursor()
            cursor.execute("BEGIN")
            try:
                yield cursor
            finally:
                self._connection.rollback()

    def close(self) -> None:
        """Close the connection."""
        with self._lock:
            self._connection.close()

    def _check(self) -> None:
        """Raise Tdmr1Error if another program wrote the file, or if it has another version."""
        found = self._connection.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]
        application = self._connection.execute("PRAGMA application_id").fetchone()[0]
        version = self._connection.execute("PRAGMA user_version").fetchone()[0]
        if found and application != APPLICATION:
            raise Tdmr1Error(
                f"{self._path} is a database of another program",
                "move the file, or use another folder",
                code="feedback-store",
                values={"path": str(self._path), "application_id": application},
            )
        if found and version != VERSION:
            raise Tdmr1Error(
                f"{self._path} has format version {version}; this tdmr1 reads version {VERSION}",
                "use the tdmr1 version that wrote it, or move the file",
                code="feedback-store",
                values={"path": str(self._path), "version": version, "expected": VERSION},
            )

    def _write_ahead(self) -> None:
        """Use a write-ahead log. Retries, because SQLite refuses at once while another process opens the file."""
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                self._connection.execute("PRAGMA journal_mode=WAL")
                break
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode & 0xFF != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        self._connection.execute("PRAGMA synchronous=FULL")
        self._connection.execute("PRAGMA foreign_keys=ON")

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise Tdmr1Error(
                f"cannot read or write the answers in {self._path}: {error}",
                "check that the disk is not full or read-only, and that the file is a database",
                code="feedback-store",
                values={"path": str(self._path), "error": str(error)},
            ) from error


def _create(cursor: sqlite3.Cursor) -> None:
    for statement in TABLES.split(";"):
        cursor.execute(statement)
    cursor.execute(f"PRAGMA application_id = {APPLICATION}")
    cursor.execute(f"PRAGMA user_version = {VERSION}")
