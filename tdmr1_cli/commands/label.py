"""`tdmr1 label`: people like and dislike pictures on a local page."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tdmr1_cli.options import JsonOption
from tdmr1_cli.output import data, emit_json, message, warning
from tdmr1_cli.targets import is_run
from tdmr1_core.errors import Tdmr1Error
from tdmr1_rewards.serving.addresses import ANY_HOST, is_loopback, network_address

if TYPE_CHECKING:
    from tdmr1_rewards.feedback.serving import Page
    from tdmr1_rewards.feedback.store import FeedbackStore, NewItem

REFRESH = 1.0
"""Seconds between two looks at the answers, for the line of progress."""


def command(
    target: Annotated[
        Path, typer.Argument(metavar="RUN|FOLDER", help="A run with the reward `human`, or a folder of pictures.")
    ],
    judges: Annotated[int, typer.Option("--judges", metavar="N", min=1, help="People who judge each picture.")] = 1,
    host: Annotated[
        str, typer.Option("--host", metavar="ADDRESS", help="Where to listen; 0.0.0.0 lets phones and others in.")
    ] = "127.0.0.1",
    port: Annotated[
        int, typer.Option("--port", metavar="N", min=0, max=65535, help="0 takes the last one, or a free one.")
    ] = 0,
    open_browser: Annotated[
        bool | None, typer.Option("--open/--no-open", help="Open the page here; if left out, where there is a screen.")
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", metavar="FILE", help="Write all answers to FILE.jsonl or FILE.csv, and serve nothing."
        ),
    ] = None,
    shuffle: Annotated[bool, typer.Option("--shuffle/--no-shuffle", help="Mix the pictures of a folder.")] = True,
    json: JsonOption = False,
) -> None:
    """Let people like and dislike pictures on a local page; Ctrl-C stops it.

    Answers are kept in TARGET/feedback. Prompts come from a folder's metadata.jsonl or metadata.csv (file_name, text);
    `tdmr1 sample` writes one.
    """
    if export is not None:
        _export(target, export, json)
        return
    groups = None if is_run(str(target)) else _gathered(target, shuffle)
    if groups is None:
        _check_used(target)
    if not is_loopback(host):
        warning(f"{host} can be reached from other machines, and the token and pictures travel unencrypted")
    from tdmr1_rewards.feedback.serving import open_page

    page = open_page(_folder(target), host, port, message)
    _open_round(page.store, target, groups, judges)
    _say(page, target, host, json)
    if _wants_browser(open_browser, host):
        webbrowser.open(page.url)
    _serve(page, target)


def _folder(target: Path) -> Path:
    from tdmr1_rewards.feedback.image_groups import FEEDBACK

    return target / FEEDBACK


def _database(target: Path) -> Path:
    from tdmr1_rewards.feedback.database import FILE

    return _folder(target) / FILE


def _gathered(target: Path, shuffle: bool) -> list[list[NewItem]]:
    from tdmr1_rewards.feedback.image_groups import group_images

    return group_images(target, shuffle=shuffle)


def _check_used(target: Path) -> None:
    if not _database(target).is_file():
        raise Tdmr1Error(
            f"{target} has nothing to judge: it was not trained with the reward `human`",
            f"`tdmr1 sample {target} --prompt … --output DIR`, then `tdmr1 label DIR`",
        )


def _export(target: Path, file: Path, json: bool) -> None:
    from tdmr1_rewards.feedback.exporting import export_answers
    from tdmr1_rewards.feedback.store import FeedbackStore

    if not _database(target).is_file():
        raise Tdmr1Error(f"{target} has no answers: nobody has labelled it", f"`tdmr1 label {target}` asks for some")
    store = FeedbackStore(_folder(target))
    try:
        count = export_answers(store, file)
    finally:
        store.close()
    if json:
        emit_json({"file": str(file), "answers": count})
    else:
        data(str(file))
        message(f"{count} answers")


def _open_round(store: FeedbackStore, target: Path, groups: list[list[NewItem]] | None, judges: int) -> None:
    """Put the folder's pictures before people; of a run, those of its rounds that still lack answers."""
    own = _own_rounds(target)
    store.close_open_rounds(own)
    name = target.resolve().name
    if groups is not None:
        store.open_round(name, groups, run=own, step=None, judges=judges)
    elif left := _unanswered(store, judges):
        store.open_round(f"{name}: earlier pictures", left, run=own, step=None, judges=judges)


def _own_rounds(target: Path) -> str:
    """What this command's rounds have in the place of a run: a training must not take them for its own."""
    return f"label {target.resolve().name}"


def _unanswered(store: FeedbackStore, judges: int) -> list[list[NewItem]]:
    from tdmr1_rewards.feedback.store import NewItem

    current = {item.id for each in store.open_rounds() for item in store.items_of(each.id)}
    counts: dict[int, int] = {}
    for given in store.answers():
        counts[given.item.id] = counts.get(given.item.id, 0) + 1
    groups: dict[str, list[NewItem]] = {}
    for item in store.items():
        path = store.image_path(item.hash)
        if path is not None and item.id not in current and counts.get(item.id, 0) < judges:
            groups.setdefault(item.prompt, []).append(NewItem(path, item.prompt))
    return list(groups.values())


def _say(page: Page, target: Path, host: str, json: bool) -> None:
    pictures = sum(page.store.progress(each.id).items for each in page.store.open_rounds())
    if json:
        emit_json({"url": page.url, "folder": str(page.store.folder), "pictures": pictures})
        return
    data(page.url)
    if host in ANY_HOST and (address := network_address()):
        port_and_token = page.url.rpartition(":")[2]
        message(f"from a phone or another machine: http://{address}:{port_and_token}")
    message(f"{pictures} pictures of {target} to judge; who has the link can judge; Ctrl-C stops")


def _wants_browser(wanted: bool | None, host: str) -> bool:
    """Unless it was said: on a terminal with a screen, since elsewhere a browser of text would take the terminal."""
    if wanted is not None:
        return wanted
    screen = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    return sys.stdout.isatty() and screen and is_loopback(host)


def _serve(page: Page, target: Path) -> None:
    before = len(page.store.answers())
    try:
        with _progress(page), suppress(KeyboardInterrupt):
            page.run()
    finally:
        _end(target, before)


def _end(target: Path, before: int) -> None:
    """Close what was opened here, so that a training that goes on asks only for its own, and tell how it went."""
    from tdmr1_rewards.feedback.store import FeedbackStore

    store = FeedbackStore(_folder(target))
    store.close_open_rounds(_own_rounds(target))
    after = len(store.answers())
    store.close()
    message(f"{after} answers ({after - before:+d}) are in {_database(target)}")


@contextmanager
def _progress(page: Page) -> Iterator[None]:
    """On a terminal, a line that says how far people are."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    ended = threading.Event()
    with console.status("waiting for somebody to open the page") as status:

        def refresh() -> None:
            while not ended.wait(REFRESH):
                with suppress(Tdmr1Error):  # what goes wrong with the store is told by the server itself
                    status.update(_progress_line(page))

        thread = threading.Thread(target=refresh, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _progress_line(page: Page) -> str:
    progress = [page.store.progress(each.id) for each in page.store.open_rounds()]
    done, items, answers = (sum(getattr(each, name) for each in progress) for name in ("done", "items", "answers"))
    people = len(page.names())
    return f"{done}/{items} pictures judged, {items - done} left, {answers} answers, {people} at the page"
