"""The feedback store: `answers.sqlite` and `images/` in one folder, shared by training processes and labelling pages.

Every method is one transaction. It is durable, except that of `next_items`. Several threads and processes may use the
same folder at once.
"""

from __future__ import annotations

import json
import sqlite3
import time
from collections.abc import Sequence
from pathlib import Path

from tdmr1_rewards.errors import Tdmr1Error
from tdmr1_rewards.feedback.database import FILE, Database
from tdmr1_rewards.feedback.images import ImageFolder
from tdmr1_rewards.feedback.queries import (
    ANSWER_COUNT,
    GIVEN,
    ITEM,
    JUDGED,
    OPEN_ITEMS,
    ROUND,
    add_row,
    available,
    open_row,
    round_content,
)
from tdmr1_rewards.feedback.records import (
    ANSWERS,
    Answer,
    GivenAnswer,
    Item,
    NewItem,
    Offer,
    Progress,
    Round,
    UnknownItem,
    like_fraction,
)

__all__ = ["Answer", "FeedbackStore", "GivenAnswer", "Item", "NewItem", "Offer", "Progress", "Round", "like_fraction"]

DEFAULT_QUESTION = "Do you like this image?"
LOAN = 60.0
"""Seconds for which an item that one person was offered counts as answered when items are offered to others."""


class FeedbackStore:
    """Items, rounds and answers in one folder, which is created if it is missing.

    Raises Tdmr1Error if the folder or its database cannot be opened, or if the database belongs to another program or
    version.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        images = self.folder / "images"
        try:
            images.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Tdmr1Error(
                f"cannot create the folder {images}: {error.strerror}",
                "use a folder that you can write to",
                code="not-writable",
                values={"path": str(images), "reason": error.strerror},
            ) from error
        self._images = ImageFolder(images)
        self._database = Database(self.folder / FILE)

    def open_round(
        self,
        title: str,
        groups: Sequence[Sequence[NewItem]],
        *,
        run: str,
        step: int | None,
        judges: int = 1,
        deadline: float | None = None,
    ) -> Round:
        """Open a round of `groups` of images; `judges` people judge each image.

        The same groups, run and step always give the same round: it is opened again and keeps its answers. Raises
        Tdmr1Error for an item that is not an image, and for fewer than one judge.
        """
        listed = [(team, new) for team, group in enumerate(groups) for new in group]
        hashes = self._add_images([new.image for _, new in listed])
        rows = [(team, name, new.prompt) for (team, new), name in zip(listed, hashes, strict=True)]
        with self._database.transaction() as cursor:
            opened = open_row(cursor, (title, run, step, judges, deadline), round_content(run, step, rows))
            known = cursor.execute("SELECT 1 FROM round_items WHERE round = ?", (opened.id,)).fetchone()
            for position, (team, name, prompt) in enumerate(() if known else rows):
                add_row(cursor, opened.id, position, team, name, prompt)
        return opened

    def open_growing_round(self, title: str, source: object, *, run: str, judges: int = 1) -> Round:
        """Open a round whose items are added later, with `add_items`.

        `source` is JSON data that describes the items: the same source and run give the same round, with the items and
        answers that it has. Raises Tdmr1Error for fewer than one judge.
        """
        with self._database.transaction() as cursor:
            return open_row(cursor, (title, run, None, judges, None), round_content(run, "growing", source))

    def add_items(self, round_id: int, items: Sequence[tuple[int, int, NewItem]]) -> None:
        """Add items to a round: each with its position and the number of its group.

        Raises Tdmr1Error for an item that is not an image.
        """
        hashes = self._add_images([new.image for _, _, new in items])
        with self._database.transaction() as cursor:
            for (position, team, new), name in zip(items, hashes, strict=True):
                add_row(cursor, round_id, position, team, name, new.prompt)

    def stored_positions(self, round_id: int) -> set[int]:
        """The positions of the items of a round whose image files exist."""
        with self._database.reading() as cursor:
            query = "SELECT position, hash FROM round_items JOIN items ON items.id = round_items.item WHERE round = ?"
            found = cursor.execute(query, (round_id,)).fetchall()
        names = self._images.names()
        return {position for position, name in found if name in names}

    def close_round(self, round_id: int) -> None:
        """Stop offering the items of a round; its answers are kept."""
        with self._database.transaction() as cursor:
            cursor.execute("UPDATE rounds SET closed = ? WHERE id = ? AND closed IS NULL", (time.time(), round_id))

    def close_open_rounds(self, run: str) -> None:
        """Close every open round of a run."""
        with self._database.transaction() as cursor:
            cursor.execute("UPDATE rounds SET closed = ? WHERE run = ? AND closed IS NULL", (time.time(), run))

    def open_rounds(self) -> list[Round]:
        """The open rounds, newest first."""
        with self._database.reading() as cursor:
            found = cursor.execute(f"SELECT {ROUND} FROM rounds WHERE closed IS NULL ORDER BY opened DESC, id DESC")
            return [Round(*row) for row in found]

    def items_of(self, round_id: int) -> list[Item]:
        """The items of a round in the order of `open_round`, including duplicates."""
        with self._database.reading() as cursor:
            found = cursor.execute(
                f"SELECT {ITEM} FROM round_items JOIN items ON items.id = round_items.item WHERE round = ? "
                "ORDER BY position",
                (round_id,),
            )
            return [Item(*row) for row in found]

    def items(self) -> list[Item]:
        """The items of all rounds, oldest first."""
        with self._database.reading() as cursor:
            return [Item(*row) for row in cursor.execute(f"SELECT {ITEM} FROM items ORDER BY id")]

    def answers(self, items: Sequence[Item] | None = None) -> list[GivenAnswer]:
        """The valid answers (not undone or replaced) to these items, or to all items, oldest first."""
        if items is None:
            return self._given("", ())
        chosen = json.dumps([item.id for item in items])
        return self._given("AND answers.item IN (SELECT value FROM json_each(?)) ", (chosen,))

    def answers_by_hash(self, hashes: Sequence[str]) -> dict[str, list[GivenAnswer]]:
        """The valid answers to each image, for all of its prompts, oldest first."""
        found: dict[str, list[GivenAnswer]] = {name: [] for name in hashes}
        chosen = json.dumps(list(found))
        for given in self._given("AND items.hash IN (SELECT value FROM json_each(?)) ", (chosen,)):
            found[given.item.hash].append(given)
        return found

    def progress(self, round_id: int) -> Progress:
        """The progress of a round. Answers given to its items in other rounds count."""
        with self._database.reading() as cursor:
            row = cursor.execute(
                f"SELECT count(*), coalesce(sum(given >= judges), 0), coalesce(sum(given), 0) FROM "
                f"(SELECT DISTINCT items.id, rounds.judges, ({ANSWER_COUNT}) AS given FROM rounds "
                "JOIN round_items ON round_items.round = rounds.id JOIN items ON items.id = round_items.item "
                "WHERE rounds.id = ?)",
                (round_id,),
            ).fetchone()
            return Progress(*row)

    def tallies(self, round_id: int) -> list[tuple[int, int]]:
        """(likes, dislikes) of each answered item of a round."""
        with self._database.reading() as cursor:
            found = cursor.execute(
                "SELECT sum(answer = 'like'), sum(answer = 'dislike') FROM answers WHERE withdrawn IS NULL "
                "AND item IN (SELECT item FROM round_items WHERE round = ?) GROUP BY item",
                (round_id,),
            )
            return list(found)

    def unfinished(self) -> int:
        """The number of items of open rounds that lack answers."""
        with self._database.reading() as cursor:
            found = cursor.execute(f"SELECT count(DISTINCT items.id) {OPEN_ITEMS} AND ({ANSWER_COUNT}) < rounds.judges")
            return int(found.fetchone()[0])

    def judged(self, person: str) -> int:
        """The number of items that are unfinished, and that this person has judged."""
        with self._database.reading() as cursor:
            return int(cursor.execute(JUDGED, {"person": person}).fetchone()[0])

    def remaining(self, person: str) -> int:
        """The number of items of open rounds that a person can still judge."""
        return self.unfinished() - self.judged(person)

    def next_items(self, person: str, limit: int, *, whole_groups: bool = False) -> list[Offer]:
        """The items that a person may judge next, reserved for them for LOAN seconds.

        Items that the person has undone come first. With `whole_groups` the last group is complete,
        even beyond `limit`.
        """
        now = time.time()
        offers: dict[int, Offer] = {}
        with self._database.transaction(durable=False) as cursor:
            for row in available(cursor, person, now):
                offer = _offer(row)
                last = next(reversed(offers.values()), None)
                same = last is not None and (offer.round.id, offer.group) == (last.round.id, last.group)
                if len(offers) >= limit and not (whole_groups and same):
                    break
                offers.setdefault(offer.item.id, offer)
            cursor.execute("DELETE FROM loans WHERE ends <= ?", (now,))
            for item_id in offers:
                _lend(cursor, item_id, person, now)
        return list(offers.values())

    def give(
        self, *, key: str, item_id: int, round_id: int, person: str, answer: Answer, name: str | None = None
    ) -> GivenAnswer:
        """Store a person's answer. It replaces an earlier answer of the same person to the item.

        `key` identifies the answer: a second call with the same key changes nothing. `name` is the person's display
        name; None keeps the present one. Raises Tdmr1Error for an unknown answer, and UnknownItem for an item that is
        not in the round.
        """
        if answer not in ANSWERS:
            raise Tdmr1Error(
                f"{answer!r} is not an answer",
                f"use one of {', '.join(ANSWERS)}",
                code="feedback-item",
                values={"answer": answer, "expected": list(ANSWERS)},
            )
        now = time.time()
        with self._database.transaction() as cursor:
            if not cursor.execute("SELECT 1 FROM answers WHERE key = ?", (key,)).fetchone():
                in_round = "SELECT 1 FROM round_items WHERE round = ? AND item = ?"
                if not cursor.execute(in_round, (round_id, item_id)).fetchone():
                    raise UnknownItem(
                        f"round {round_id} has no item {item_id}",
                        "reload the page",
                        code="feedback-item",
                        values={"round": round_id, "item": item_id},
                    )
                cursor.execute("INSERT OR IGNORE INTO people (id, name) VALUES (?, '')", (person,))
                if name is not None:
                    cursor.execute("UPDATE people SET name = ? WHERE id = ?", (name, person))
                cursor.execute(
                    "UPDATE answers SET withdrawn = ?, reason = 'replaced' "
                    "WHERE item = ? AND person = ? AND withdrawn IS NULL",
                    (now, item_id, person),
                )
                cursor.execute(
                    "INSERT INTO answers (key, item, round, person, answer, time) VALUES (?, ?, ?, ?, ?, ?)",
                    (key, item_id, round_id, person, answer, now),
                )
                cursor.execute("DELETE FROM loans WHERE item = ? AND person = ?", (item_id, person))
            return _answer(cursor.execute(f"{GIVEN} WHERE answers.key = ?", (key,)).fetchone())

    def undo(self, person: str, *, key: str | None = None) -> Offer | None:
        """Withdraw a person's newest valid answer in the open rounds, and return its item as an offer.

        `key` identifies this undo: a second call with the same key changes nothing. None if there is nothing to undo.
        """
        now = time.time()
        with self._database.transaction() as cursor:
            if key is not None and cursor.execute("SELECT 1 FROM undos WHERE key = ?", (key,)).fetchone():
                return None
            newest = cursor.execute(
                "SELECT max(answers.id) FROM answers JOIN round_items ON round_items.item = answers.item "
                "JOIN rounds ON rounds.id = round_items.round "
                "WHERE answers.person = ? AND answers.withdrawn IS NULL AND rounds.closed IS NULL",
                (person,),
            ).fetchone()[0]
            if key is not None:
                cursor.execute("INSERT INTO undos (key, answer) VALUES (?, ?)", (key, newest))
            if newest is None:
                return None
            cursor.execute("UPDATE answers SET withdrawn = ?, reason = 'undone' WHERE id = ?", (now, newest))
            row = cursor.execute(
                f"SELECT {ITEM}, {ROUND}, round_items.team {OPEN_ITEMS} "
                "AND items.id = (SELECT item FROM answers WHERE id = ?) ORDER BY rounds.opened DESC, rounds.id DESC",
                (newest,),
            ).fetchone()
            offer = _offer(row)
            _lend(cursor, offer.item.id, person, now)
            return offer

    def image_path(self, hash: str) -> Path | None:
        """The PNG file of the image with this hash; None if the store has no such image."""
        return self._images.find(hash)

    def question(self) -> str:
        """The question that the page asks, and that all valid answers belong to."""
        with self._database.reading() as cursor:
            return _note(cursor, "question") or DEFAULT_QUESTION

    def answered_question(self) -> str | None:
        """The question of the valid answers; None if there are none, so that it may be changed."""
        with self._database.reading() as cursor:
            given = cursor.execute("SELECT 1 FROM answers WHERE withdrawn IS NULL LIMIT 1").fetchone()
            return (_note(cursor, "question") or DEFAULT_QUESTION) if given else None

    def set_question(self, question: str) -> None:
        """Set the question. Raises Tdmr1Error if there are valid answers to another one."""
        with self._database.transaction() as cursor:
            present = _note(cursor, "question") or DEFAULT_QUESTION
            given = "SELECT count(*) FROM answers WHERE withdrawn IS NULL"
            count = cursor.execute(given).fetchone()[0] if question != present else 0
            if count:
                raise Tdmr1Error(
                    f"the {count} answers in {self.folder} are answers to {present!r}, not to {question!r}",
                    "use another folder for another question, or keep the question of this one",
                    code="feedback-item",
                    values={"path": str(self.folder), "question": present, "expected": question},
                )
            _set_note(cursor, "question", question)

    def set_message(self, message: str) -> None:
        """Set the message about the run that the page shows; an empty message shows nothing."""
        with self._database.transaction() as cursor:
            _set_note(cursor, "message", message)

    def message(self) -> str:
        """The message about the run; empty if none was set."""
        with self._database.reading() as cursor:
            return _note(cursor, "message")

    def close(self) -> None:
        """Close the database."""
        self._database.close()

    def _add_images(self, images: Sequence[object]) -> list[str]:
        try:
            return self._images.add(images)
        except OSError as error:
            raise Tdmr1Error(
                f"cannot write images to {self.folder / 'images'}: {error.strerror}",
                "check that the disk is not full or read-only",
                code="not-writable",
                values={"path": str(self.folder / "images"), "reason": error.strerror},
            ) from error

    def _given(self, condition: str, values: Sequence[object]) -> list[GivenAnswer]:
        query = f"{GIVEN} WHERE answers.withdrawn IS NULL {condition} ORDER BY answers.id"
        with self._database.reading() as cursor:
            return [_answer(row) for row in cursor.execute(query, tuple(values))]


def _note(cursor: sqlite3.Cursor, name: str) -> str:
    row = cursor.execute("SELECT text FROM notes WHERE name = ?", (name,)).fetchone()
    return row[0] if row else ""


def _set_note(cursor: sqlite3.Cursor, name: str, text: str) -> None:
    cursor.execute("INSERT OR REPLACE INTO notes (name, text) VALUES (?, ?)", (name, text))


def _offer(row: Sequence[object]) -> Offer:
    *found, group = row
    return Offer(Item(*found[:3]), Round(*found[3:]), group)  # type: ignore[arg-type]


def _answer(row: Sequence[object]) -> GivenAnswer:
    return GivenAnswer(Item(*row[:3]), *row[3:])  # type: ignore[arg-type]


def _lend(cursor: sqlite3.Cursor, item_id: int, person: str, now: float) -> None:
    cursor.execute("INSERT OR REPLACE INTO loans (item, person, ends) VALUES (?, ?, ?)", (item_id, person, now + LOAN))
