"""The log of the servers: one escaped line for each event, and a bounded number of lines."""

import io
import logging

import pytest

from tdmr1_rewards.serving import logs
from tdmr1_rewards.serving.logs import LINES, LONGEST, escaped, logged

pytestmark = pytest.mark.unit


@pytest.fixture
def stream():
    return io.StringIO()


def test_a_line_has_no_control_characters_and_a_limited_length(stream, monkeypatch):
    # pytest also catches what reaches the root logger, and cannot send a surrogate from a process of pytest-xdist.
    monkeypatch.setattr(logging.getLogger("tdmr1_rewards.serving.server"), "propagate", True)
    monkeypatch.setattr(logging.getLogger("tdmr1_rewards.serving"), "propagate", False)
    with logged(logging.StreamHandler(stream)):
        logging.getLogger("tdmr1_rewards.serving.server").warning("a\nb\x1b[2J\r\u2028\ud800 %s", "x" * 10_000)
    (line,) = stream.getvalue().splitlines()
    assert "a b\\x1b[2J \\ud800 xxx" in line
    assert len(line) < 2 * LONGEST
    assert escaped("\x00\u202e") == "\\x00\\u202e"


def test_a_traceback_is_part_of_one_line(stream):
    with logged(logging.StreamHandler(stream)):
        try:
            raise KeyError("a\nb")
        except KeyError:
            logging.getLogger("uvicorn.error").exception("Exception in ASGI application\n")
    (line,) = stream.getvalue().splitlines()
    assert "KeyError: 'a\\nb'" in line
    assert "test_logs.py, line" in line


def test_a_flood_is_counted_instead_of_written(stream, monkeypatch):
    now, second = [0.0], io.StringIO()
    monkeypatch.setattr(logs.time, "monotonic", lambda: now[0])
    logger = logging.getLogger("tdmr1_rewards.serving.limits")
    with logged(logging.StreamHandler(stream)), logged(logging.StreamHandler(second)):
        for number in range(10_000):
            logger.warning("refused %d", number)
        assert len(stream.getvalue().splitlines()) == LINES
        now[0] = logs.PERIOD
        logger.warning("next %s", "line")
        logger.warning("and one more")
    assert second.getvalue() == stream.getvalue()
    lines = stream.getvalue().splitlines()
    assert lines[LINES].endswith(f"next line ({10_000 - LINES} lines before this were not logged)")
    assert lines[LINES + 1].endswith("and one more")
    assert logger.handlers == []
