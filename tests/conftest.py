"""Settings of every test: one thread, no access to a hub, and Ctrl-C enabled in the processes that tests start."""

import os
import signal

import pytest

from tdmr1_rewards.calling import process_state
from tdmr1_rewards.texts import redaction

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # set by a shell for a background job; child processes inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def secrets_forgotten():
    """Secrets of one test are not redacted in the messages of the next ones."""
    yield
    redaction.forget()


@pytest.fixture(autouse=True)
def hanging_rewards_forgotten():
    """A reward that still hangs in a thread after its test changes nothing in the next ones.

    At its end, the thread would restore the process as it was in its own test, with what that test had patched.
    """
    yield
    if process_state._active:
        process_state._active, process_state._shared = {}, None


@pytest.fixture(scope="session", autouse=True)
def warm_cli_closed():
    """Ends the process from which commands are forked, if a test has started it."""
    yield
    from support.command_line import warm

    warm.close()
