"""Threads of a process."""

import pytest
import torch

from tdmr1_core.distributed import set_threads

pytestmark = pytest.mark.unit


def test_the_setting_is_an_upper_limit_of_threads(monkeypatch):
    chosen = []
    monkeypatch.setattr(torch, "get_num_threads", lambda: 8)
    monkeypatch.setattr(torch, "set_num_threads", chosen.append)
    for most in (None, 2, 64):
        set_threads(most)
    assert chosen == [2, 8]
