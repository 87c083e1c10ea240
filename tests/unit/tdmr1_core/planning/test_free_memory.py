"""The free memory of cards, from a stand-in for `nvidia-smi` and for torch."""

from __future__ import annotations

import os

import pytest
import torch

from tdmr1_core.planning.free_memory import MIB, FoundCard, device_name, found_card, free_memory

pytestmark = pytest.mark.unit


@pytest.fixture
def tool(tmp_path, monkeypatch):
    """Writes an `nvidia-smi` that runs a shell line."""
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

    def write(line: str) -> None:
        path = tmp_path / "nvidia-smi"
        path.write_text(f"#!/bin/sh\n{line}\n")
        path.chmod(0o755)

    return write


def test_the_first_card_is_that_of_a_single_process(tool):
    tool("echo 20000, NVIDIA L4; echo 10000, NVIDIA A10; echo 5000, NVIDIA A10")
    assert found_card() == FoundCard(20000 * MIB, "NVIDIA L4")
    assert found_card(2) == FoundCard(10000 * MIB, "NVIDIA A10")
    assert found_card(4) is None


def test_only_visible_cards_count(tool, monkeypatch):
    tool('case "$*" in *--id=1*) echo 10000, B;; *) echo 20000, A;; esac')
    assert found_card() == FoundCard(20000 * MIB, "A")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert found_card() == FoundCard(10000 * MIB, "B")


@pytest.mark.parametrize("line", ["exit 9", "echo No devices were found", "true"])
def test_a_machine_without_a_card(tool, line):
    tool(line)
    assert found_card() is None


def test_a_machine_without_the_tool(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert found_card() is None


def test_free_memory_and_name_are_known_for_cuda_only(monkeypatch):
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA L4")
    assert device_name(torch.device("cuda", 0)) == "NVIDIA L4"
    assert device_name(torch.device("cpu")) is None
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (7, 9))
    assert free_memory(torch.device("cuda", 0)) == 7
    assert free_memory(torch.device("cpu")) is None
