"""The SQLite file of the feedback store: its tables, its version, and durable transactions."""

from __future__ import annotations

import sqlite3
import threading
import time
import warnings
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tdmr1_rewards.errors import RewardWarning, Tdmr1Error, one_line

FILE = "answers.sqlite"
VERSION = 1
"""Version of the tables below. Increase it when they change."""
APPLICATION = 0x74646D31
"""SQLite application id that marks the file as a feedback store of tdmr1."""
LOCK_TIMEOUT = 10.0
"""Seconds that a transaction waits for a transaction of another process."""
READERS = 4
"""Largest number of connections for reading that are kept open."""

NO_SHARED_MEMORY = (sqlite3.SQLITE_CANTOPEN, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_PROTOCOL)
"""SQLite results where the file system cannot share memory between processes."""
DAMAGED_HINT = (
    "the file is kept: repair it with `sqlite3 answers.sqlite .recover`, restore a copy, or move it to start again"
)
OTHER_HINT = "check that the disk is not full or read-only"
HINTS = {
    sqlite3.SQLITE_BUSY: "another program has locked the file: close it, and try again",
    sqlite3.SQLITE_CORRUPT: DAMAGED_HINT,
    sqlite3.SQLITE_NOTADB: DAMAGED_HINT,
}

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
    """One connection for writing and some for reading, safe for several threads. Reading never waits for writing.

    Other processes may have the same file open. Raises Tdmr1Error if the file cannot be opened, is damaged, is not a
    feedback store or has another version; the file is not changed then. Every method raises it if the file cannot be
    read or written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._lock = threading.Lock()
        self._readers: deque[sqlite3.Connection] = deque()
        self._closed = False
        self._fast = "FULL"
        self._connection = self._connect()
        try:
            with self._translated_errors():
                self._open()
                with self.transaction() as cursor:
                    if not cursor.execute("SELECT 1 FROM sqlite_master").fetchone():
                        _create(cursor)
                self._check()
        except BaseException:
            self._connection.close()
            raise

    @contextmanager
    def transaction(self, *, durable: bool = True) -> Iterator[sqlite3.Cursor]:
        """A cursor in a write transaction: durable when the block ends, undone if it raises.

        One that is not `durable` is faster, and is lost if the power fails before the next one that is.
        """
        with self._lock, self._translated_errors():
            cursor = self._connection.cursor()
            cursor.execute(f"PRAGMA synchronous={'FULL' if durable else self._fast}")
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
        with self._translated_errors():
            connection = self._reader()
            try:
                cursor = connection.cursor()
                cursor.execute("BEGIN")
                yield cursor
            finally:
                connection.rollback()
                self._keep(connection)

    def close(self) -> None:
        """Close all connections."""
        with self._lock:
            self._closed = True
            while self._readers:
                self._readers.pop().close()
            self._connection.close()

    def _connect(self) -> sqlite3.Connection:
        with self._translated_errors():
            return sqlite3.connect(self._path, LOCK_TIMEOUT, isolation_level=None, check_same_thread=False)

    def _reader(self) -> sqlite3.Connection:
        """A connection that no other thread uses."""
        if self._closed:
            raise sqlite3.ProgrammingError("the store is closed")
        try:
            return self._readers.pop()
        except IndexError:
            return self._connect()

    def _keep(self, connection: sqlite3.Connection) -> None:
        if self._closed or len(self._readers) >= READERS:
            connection.close()
        else:
            self._readers.append(connection)

    def _check_damage(self) -> None:
        damage = self._connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        if damage != "ok":
            raise self._error(f"{self._path} is damaged: {one_line(damage)}", DAMAGED_HINT, damage)

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

    def _open(self) -> None:
        """Check the file, and use a write-ahead log, or a journal where the file system has no shared memory for it."""
        deadline = time.monotonic() + LOCK_TIMEOUT
        while True:
            try:
                self._check()
                self._check_damage()
                mode = self._connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
                self._check()
                break
            except sqlite3.OperationalError as error:
                reason = error.sqlite_errorcode & 0xFF
                if reason in NO_SHARED_MEMORY:
                    mode = self._use_journal()
                    break
                # SQLite refuses at once while another process opens the file.
                if reason != sqlite3.SQLITE_BUSY or time.monotonic() > deadline:
                    raise
                time.sleep(0.05)
        if mode != "wal":
            message = f"{self._path} is on a file system without shared memory: the page is slower"
            values = {"path": str(self._path), "journal_mode": mode}
            warnings.warn(RewardWarning(message, code="feedback-store", values=values), stacklevel=2)
        else:
            self._fast = "NORMAL"
        self._connection.execute("PRAGMA foreign_keys=ON")

    def _use_journal(self) -> str:
        """Replace a write-ahead log by a journal. In exclusive mode SQLite reads the log without shared memory."""
        self._connection.close()
        self._connection = self._connect()
        self._connection.execute("PRAGMA locking_mode=EXCLUSIVE")
        mode = self._connection.execute("PRAGMA journal_mode=DELETE").fetchone()[0]
        self._connection.close()
        self._connection = self._connect()
        return str(mode)

    @contextmanager
    def _translated_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            hint = HINTS.get(getattr(error, "sqlite_errorcode", 0) & 0xFF, OTHER_HINT)
            raise self._error(f"cannot read or write the answers in {self._path}: {error}", hint, str(error)) from error

    def _error(self, message: str, hint: str, reason: str) -> Tdmr1Error:
        return Tdmr1Error(message, hint, code="feedback-store", values={"path": str(self._path), "error": reason})


def _create(cursor: sqlite3.Cursor) -> None:
    for statement in TABLES.split(";"):
        cursor.execute(statement)
    cursor.execute(f"PRAGMA application_id = {APPLICATION}")
    cursor.execute(f"PRAGMA user_version = {VERSION}")
