"""The port on which the processes of a run connect."""

import socket

import pytest

from tdmr1_cli import multiprocess

pytestmark = pytest.mark.unit


def test_the_port_is_free_and_not_one_that_systems_choose_for_programs():
    assert multiprocess._free_port() in multiprocess.PORTS


def test_a_port_in_use_is_not_chosen(monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        used = taken.getsockname()[1]
        monkeypatch.setattr(multiprocess, "PORTS", [used] * 50)
        assert multiprocess._free_port() != used
