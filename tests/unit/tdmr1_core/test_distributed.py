"""Threads of a process, and a process that cannot join the others."""

import pytest
import torch

from tdmr1_core.distributed import join_processes, set_threads
from tdmr1_core.errors import Tdmr1Error

pytestmark = pytest.mark.unit


def test_the_setting_is_an_upper_limit_of_threads(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    for most in (None, 2, 64):
        set_threads(most)
    assert chosen == [2, 8]


@pytest.mark.parametrize(
    ("minutes", "why"), [(15, ": the address is in use"), (0, " within 0 minutes")], ids=["at once", "too late"]
)
def test_why_processes_are_not_connected(monkeypatch, minutes, why):
    def fail(*_, **__):
        raise RuntimeError("the address\nis in use")

    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.setattr(torch.distributed, "rendezvous", fail)
    with pytest.raises(Tdmr1Error) as caught:
        join_processes("cpu", minutes)
    assert caught.value.message == f"the 2 processes could not be connected{why}"
