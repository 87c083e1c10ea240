"""`tdmr1 label`: a local page on which people like or dislike images."""

from __future__ import annotations

import os
import sys
import threading
import webbrowser
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from tdmr1_cli.options import JsonOption
from tdmr1_cli.output import data, emit_json, message, results, warning
from tdmr1_cli.targets import is_run
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.settings.bounds import MOST_WORKERS
from tdmr1_rewards.serving.addresses import ANY_HOST, is_loopback, network_address

if TYPE_CHECKING:
    from tdmr1_rewards.feedback.scanning import FolderScan
    from tdmr1_rewards.feedback.serving import Page
    from tdmr1_rewards.feedback.store import FeedbackStore, NewItem

REFRESH = 1.0
"""Seconds between two updates of the progress line."""


def command(
    target: Annotated[
        Path, typer.Argument(metavar="RUN|FOLDER", help="A run with the reward `human`, or a folder of images.")
    ],
    question: Annotated[
        str | None,
        typer.Option(
            "--question",
            metavar="TEXT",
            help='What people are asked; like means yes, dislike means no (default: "Do you like this image?"). All '
            "answers of a folder belong to one question.",
        ),
    ] = None,
    judges: Annotated[
        int,
        typer.Option("--judges", metavar="N", min=1, max=MOST_WORKERS, help="Number of people who judge each image."),
    ] = 1,
    host: Annotated[
        str,
        typer.Option(
            "--host", metavar="ADDRESS", help="Address to listen on; 0.0.0.0 lets phones and other machines connect."
        ),
    ] = "127.0.0.1",
    port: Annotated[
        int,
        typer.Option(
            "--port", metavar="N", min=0, max=65535, help="Port; 0 is the last port of this folder, or a free one."
        ),
    ] = 0,
    open_browser: Annotated[
        bool | None,
        typer.Option(
            "--open/--no-open", help="Open the page in a browser; the default is to do so if there is a screen."
        ),
    ] = None,
    export: Annotated[
        Path | None,
        typer.Option(
            "--export", metavar="FILE", help="Write all answers to FILE.jsonl or FILE.csv, and do not serve the page."
        ),
    ] = None,
    shuffle: Annotated[
        bool, typer.Option("--shuffle/--no-shuffle", help="Show the images of a folder in random order.")
    ] = True,
    json: JsonOption = False,
) -> None:
    """Let people like or dislike images on a local page. Ctrl-C stops it.

    Answers are stored in TARGET/feedback. The prompts of a folder come from its metadata.jsonl or metadata.csv
    (file_name, text); `tdmr1 sample` writes one.
    """
    if export is not None:
        _export(target, export, json)
        return
    from tdmr1_rewards.feedback.question import read_question

    asked = None if question is None else read_question(question)
    groups = None if is_run(str(target)) else _image_groups(target, shuffle)
    if groups is None:
        _check_has_answers(target)
    if not is_loopback(host):
        warning(f"other machines can connect to {host}; the token and the images are sent unencrypted")
    from tdmr1_rewards.feedback.page_lock import page_lock
    from tdmr1_rewards.feedback.serving import open_page

    with page_lock(_folder(target)) as address, closing(open_page(_folder(target), host, port, message)) as page:
        if asked is not None:
            page.store.set_question(asked)
        with _opened_round(page.store, target, groups, judges) as scan, suppress(KeyboardInterrupt):
            address.write(page.url)
            _print_address(page, target, host, scan, json)
            if _wants_browser(open_browser, host):
                webbrowser.open(page.url)
            with _progress(page, scan):
                page.run()


def _folder(target: Path) -> Path:
    from tdmr1_rewards.feedback.image_groups import FEEDBACK

    return target / FEEDBACK


def _database(target: Path) -> Path:
    from tdmr1_rewards.feedback.database import FILE

    return _folder(target) / FILE


def _image_groups(target: Path, shuffle: bool) -> list[list[NewItem]]:
    from tdmr1_rewards.feedback.image_groups import group_images

    return group_images(target, shuffle=shuffle)


def _check_has_answers(target: Path) -> None:
    if not _database(target).is_file():
        raise Tdmr1Error(
            f"the run {target} has no images to judge, because it was not trained with the reward `human`",
            f"generate images with `tdmr1 sample {target} --prompt … --output DIR`, then run `tdmr1 label DIR`",
            code="feedback-empty",
            values={"path": str(target)},
        )


def _export(target: Path, file: Path, json: bool) -> None:
    from tdmr1_rewards.feedback.exporting import export_answers
    from tdmr1_rewards.feedback.store import FeedbackStore

    if not _database(target).is_file():
        raise Tdmr1Error(
            f"{target} has no answers to export",
            f"collect answers with `tdmr1 label {target}`",
            code="feedback-empty",
            values={"path": str(target)},
        )
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


@contextmanager
def _opened_round(
    store: FeedbackStore, target: Path, groups: list[list[NewItem]] | None, judges: int
) -> Iterator[FolderScan | None]:
    """Open a round of the images of a folder, or of the images of a run that still lack answers.

    At the end, also after Ctrl-C, the totals are printed and the rounds of this command are closed, so that a running
    training shows only its own.
    """
    from tdmr1_rewards.feedback.scanning import FolderScan

    run, before = _round_owner(target), len(store.answers())
    store.close_open_rounds(run)
    scan: FolderScan | None = None
    with ExitStack() as ending:
        ending.callback(store.close_open_rounds, run)
        if groups is not None:
            scan = FolderScan(store, target, groups, run=run, judges=judges, skip=warning)
            ending.callback(scan.stop)
            scan.start()
        elif missing := _unanswered(store, judges):
            store.open_round(f"{target.resolve().name}: earlier images", missing, run=run, step=None, judges=judges)
        ending.callback(_print_totals, store, target, before)
        yield scan


def _print_totals(store: FeedbackStore, target: Path, before: int) -> None:
    after = len(store.answers())
    message(f"{after} answers ({after - before:+d}) in {_database(target)}")


def _round_owner(target: Path) -> str:
    """The run name of the rounds of this command. It differs from every name that a training run uses."""
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


def _print_address(page: Page, target: Path, host: str, scan: FolderScan | None, json: bool) -> None:
    opened = sum(page.store.progress(each.id).items for each in page.store.open_rounds())
    images = scan.total if scan is not None else opened
    if json:
        emit_json(
            {
                "url": page.url,
                "folder": str(page.store.folder),
                "pictures": images,
                "question": page.store.question(),
            }
        )
        return
    data(page.url)
    if host in ANY_HOST and (address := network_address()):
        port_and_token = page.url.rpartition(":")[2]
        message(f"from a phone or another machine: http://{address}:{port_and_token}")
    message(f"question: {page.store.question()} (like: yes, dislike: no)")
    message(f"{images} images of {target} to judge; everyone with the link can judge; Ctrl-C stops")


def _wants_browser(wanted: bool | None, host: str) -> bool:
    """Whether to open a browser. By default only on a terminal with a screen, so that no text browser starts."""
    if wanted is not None:
        return wanted
    screen = sys.platform in ("darwin", "win32") or any(map(os.environ.get, ("DISPLAY", "WAYLAND_DISPLAY")))
    return results().isatty() and screen and is_loopback(host)


@contextmanager
def _progress(page: Page, scan: FolderScan | None) -> Iterator[None]:
    """Show a progress line on a terminal."""
    from rich.console import Console

    console = Console(stderr=True)
    if not console.is_terminal:
        yield
        return
    ended = threading.Event()
    with console.status("waiting until the page is opened") as status:

        def refresh() -> None:
            while not ended.wait(REFRESH):
                with suppress(Tdmr1Error):  # the server reports errors of the store
                    status.update(_progress_line(page, scan))

        thread = threading.Thread(target=refresh, daemon=True)
        thread.start()
        try:
            yield
        finally:
            ended.set()
            thread.join()


def _progress_line(page: Page, scan: FolderScan | None) -> str:
    progress = [page.store.progress(each.id) for each in page.store.open_rounds()]
    done, items, answers = (sum(getattr(each, name) for each in progress) for name in ("done", "items", "answers"))
    people = len(page.names())
    line = f"{done}/{items} images judged, {items - done} left, {answers} answers, {people} at the page"
    return f"reading images: {scan.read}/{scan.total}; {line}" if scan is not None and scan.read < scan.total else line
