"""SQL of the feedback store that several of its methods use, and the statements that add rounds and find offers."""

from __future__ import annotations

import hashlib
import json
import sqlite3
import time
from collections.abc import Iterator, Sequence

from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.feedback.records import Round

ITEM = "items.id, items.hash, items.prompt"
ROUND = "rounds.id, rounds.title, rounds.run, rounds.step, rounds.judges, rounds.deadline, rounds.opened"
GIVEN = (
    f"SELECT {ITEM}, answers.answer, answers.person, people.name, answers.time, rounds.run, rounds.step FROM answers "
    "JOIN items ON items.id = answers.item JOIN rounds ON rounds.id = answers.round "
    "JOIN people ON people.id = answers.person "
)
ANSWER_COUNT = "SELECT count(*) FROM answers AS given WHERE given.item = items.id AND given.withdrawn IS NULL"
UNANSWERED = (
    "NOT EXISTS (SELECT 1 FROM answers WHERE item = items.id AND person = :person AND withdrawn IS NULL) "
    f"AND ({ANSWER_COUNT}) < rounds.judges"
)
OPEN_ITEMS = (
    "FROM rounds JOIN round_items ON round_items.round = rounds.id JOIN items ON items.id = round_items.item "
    "WHERE rounds.closed IS NULL "
)
JUDGED = (
    "SELECT count(DISTINCT items.id) FROM answers JOIN items ON items.id = answers.item "
    "JOIN round_items ON round_items.item = items.id JOIN rounds ON rounds.id = round_items.round "
    f"WHERE person = :person AND withdrawn IS NULL AND rounds.closed IS NULL AND ({ANSWER_COUNT}) < rounds.judges"
)
AVAILABLE = (
    f"{UNANSWERED} AND ({ANSWER_COUNT}) + "
    "(SELECT count(*) FROM loans WHERE item = items.id AND person <> :person AND ends > :now) < rounds.judges"
)
"""Whether an item of an open round can be offered to a person now."""
UNDONE_OFFERS = (
    f"SELECT {ITEM}, {ROUND}, round_items.team FROM "
    "(SELECT item, max(withdrawn) AS undone FROM answers WHERE person = :person AND reason = 'undone' GROUP BY item) "
    "AS mine JOIN items ON items.id = mine.item JOIN round_items ON round_items.item = items.id "
    f"JOIN rounds ON rounds.id = round_items.round WHERE rounds.closed IS NULL AND {AVAILABLE} "
    "ORDER BY mine.undone DESC, rounds.opened DESC, rounds.id DESC, round_items.position"
)
OFFERS_OF_ROUND = (  # in the order of the primary key, so that reading stops at the limit
    f"SELECT {ITEM}, {ROUND}, round_items.team FROM round_items CROSS JOIN items ON items.id = round_items.item "
    f"CROSS JOIN rounds ON rounds.id = round_items.round WHERE round_items.round = :round AND {AVAILABLE} "
    "ORDER BY round_items.position"
)


def round_content(run: str, step: object, rows: object) -> str:
    """A hash of what identifies a round."""
    return hashlib.sha256(json.dumps([run, step, rows]).encode()).hexdigest()


def open_row(cursor: sqlite3.Cursor, settings: tuple[str, str, int | None, int, float | None], content: str) -> Round:
    """Open the round with this content, which may exist. `settings` are title, run, step, judges and deadline.

    Raises Tdmr1Error for fewer than one judge.
    """
    judges = settings[3]
    if judges < 1:
        raise Tdmr1Error(
            f"a round needs at least 1 judge per image, not {judges}",
            "set judges to 1 or more",
            code="argument-invalid",
            values={"judges": judges},
        )
    cursor.execute(
        "INSERT INTO rounds (title, run, step, judges, deadline, opened, content) VALUES (?, ?, ?, ?, ?, ?, ?) "
        "ON CONFLICT (content) DO UPDATE SET title = excluded.title, judges = excluded.judges, "
        "deadline = excluded.deadline, opened = excluded.opened, closed = NULL",
        (*settings, time.time(), content),
    )
    return Round(*cursor.execute(f"SELECT {ROUND} FROM rounds WHERE content = ?", (content,)).fetchone())


def add_row(cursor: sqlite3.Cursor, round_id: int, position: int, team: int, name: str, prompt: str) -> None:
    """Add an item to a round; it replaces an item at the same position."""
    cursor.execute("INSERT OR IGNORE INTO items (hash, prompt) VALUES (?, ?)", (name, prompt))
    cursor.execute(
        "INSERT OR REPLACE INTO round_items (round, position, team, item) "
        "SELECT ?, ?, ?, id FROM items WHERE hash = ? AND prompt = ?",
        (round_id, position, team, name, prompt),
    )


def available(cursor: sqlite3.Cursor, person: str, now: float) -> Iterator[Sequence[object]]:
    """The items that can be offered to a person: undone ones, then those of each open round, newest round first."""
    values = {"person": person, "now": now}
    yield from cursor.execute(UNDONE_OFFERS, values).fetchall()
    order = "SELECT id FROM rounds WHERE closed IS NULL ORDER BY opened DESC, id DESC"
    for (round_id,) in cursor.execute(order).fetchall():
        # `yield from` would close the cursor at the end of the generator.
        for row in cursor.execute(OFFERS_OF_ROUND, values | {"round": round_id}):  # noqa: UP028
            yield row
