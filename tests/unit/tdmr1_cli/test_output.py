import io
import json
from pathlib import Path

import pytest
from rich.console import Console
from support.errors import raises

from tdmr1_cli.output import data, emit_json, fields, message, number, table, warning
from tdmr1_cli.progress import Bar, Lines, Stages
from tdmr1_core.durable_files import check_writable
from tdmr1_rewards.errors import printable

pytestmark = pytest.mark.unit


def test_json_holds_no_nan(capsys):
    emit_json({"a": float("nan"), "b": (float("inf"), 1.5), "path": Path("x")})
    assert json.loads(capsys.readouterr().out) == {"a": None, "b": [None, 1.5], "path": "x"}


HOSTILE = "a\x1b[31m\r\n\x9b\u202e\u2028\udcff\x7fé—b"
ESCAPED = "a\\x1b[31m\\r\\n\\x9b\\u202e\\u2028\\udcff\\x7fé—b"


def test_messages_tables_and_results_escape_what_controls_a_terminal(capsys):
    for write in (message, data, warning):
        write(HOSTILE)
    table([HOSTILE], [[HOSTILE]], title=HOSTILE)
    fields([(HOSTILE, HOSTILE)])
    Lines(Path("run")).waiting(HOSTILE)
    out, err = capsys.readouterr()
    assert (out.count(ESCAPED), err.count(ESCAPED)) == (6, 3)
    assert not set(out + err) & set(HOSTILE.replace("\n", "")) - set(ESCAPED)
    assert printable("a\nb\t", lines=True) == "a\nb\\t"


def test_a_live_bar_escapes_what_controls_a_terminal():
    console, screen = terminal()
    with Bar(Path("run"), console) as bar:
        bar.waiting(f"one {HOSTILE}")
        bar.saved(Path("checkpoint"))
        bar.evaluating("generator", f"two {HOSTILE}")
        bar._say(f"three {HOSTILE}")
    assert all(f"{word} {ESCAPED}" in screen.getvalue() for word in ("two", "three"))
    assert "\x1b[31m" not in screen.getvalue()


@pytest.mark.parametrize("encoding", ["utf-8", "ascii", "cp1252"])
def test_json_keeps_the_data_in_any_encoding(monkeypatch, encoding):
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr("sys.stdout", stream)
    emit_json({HOSTILE: [HOSTILE]})
    written = stream.buffer.getvalue().decode(encoding)
    assert json.loads(written) == {HOSTILE: [HOSTILE]}
    assert written.replace("\n", "").isprintable()


def test_tables_take_brackets_as_they_are(capsys):
    table(["[a]"], [["[red]x"]], title="t [b]")
    out = capsys.readouterr().out
    assert all(part in out for part in ("[a]", "[red]x", "t [b]"))


def test_fields_are_aligned(capsys):
    fields([("a", "1"), ("long", "2")])
    assert capsys.readouterr().out == "a     1\nlong  2\n"


def test_numbers():
    assert number(0.12345) == "0.123"
    assert number(float("nan")) == "–"


def terminal() -> tuple[Console, io.StringIO]:
    screen = io.StringIO()
    return Console(file=screen, force_terminal=True, width=120, color_system=None), screen


def test_stages_show_a_bar_with_rate_and_time_left():
    console, screen = terminal()
    with Stages(console) as stages:
        for done in range(11):
            stages("drawing", done, 10)
    last = screen.getvalue()[screen.getvalue().rindex("drawing") :]
    assert "10/10" in last
    assert "/s  0:00 left" in last


def test_stages_tell_a_few_lines_in_a_pipe(capsys):
    with Stages() as stages:
        for done in range(41):
            stages("drawing", done, 40)
    lines = capsys.readouterr().err.splitlines()
    assert [line.split("  ")[0] for line in lines] == [f"drawing: {done}/40" for done in (0, 10, 20, 30, 40)]
    assert all(line.endswith("left") for line in lines[1:])


def test_writability_is_checked_at_the_nearest_folder(tmp_path):
    (tmp_path / "file").write_text("")
    check_writable(tmp_path / "new" / "newer")
    for path in (tmp_path / "file", tmp_path / "file" / "run"):
        with raises("not-writable", folder=str(path)):
            check_writable(path)


def test_a_stop_is_confirmed_even_during_a_write(capfd):
    class Interrupted(io.RawIOBase):
        """A stream whose write is interrupted by a stop signal."""

        def writable(self):
            return True

        def write(self, data):
            observer.stopping()
            return len(data)

    observer = Lines(Path("run"))
    buffered = io.BufferedWriter(Interrupted())
    buffered.write(b"iteration 1")
    buffered.flush()
    assert "stopping after this iteration" in capfd.readouterr().err


def test_a_wait_for_people_is_reported_at_intervals(capsys, monkeypatch):
    now = [100.0]
    monkeypatch.setattr("tdmr1_cli.progress.time.monotonic", lambda: now[0])
    observer = Lines(Path("run"))
    for seconds, text in [(0, "labelling page: http://h/#t"), (0, "waiting: 0 of 6"), (1, "waiting: 1 of 6")]:
        now[0] += seconds
        observer.waiting(text)
    now[0] += 30
    observer.waiting("waiting: 5 of 6")
    assert capsys.readouterr().err.splitlines() == [
        "labelling page: http://h/#t",
        "waiting: 0 of 6",
        "waiting: 5 of 6",
    ]
