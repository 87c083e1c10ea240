"""Files are found by path or downloaded from the hub; each failure has its own code."""

import sys

import huggingface_hub
import pytest
import torch
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError
from safetensors.torch import save_file
from support.errors import raises

from tdmr1_rewards.builtin.optional import find_file, first_line, import_optional, read_state_dict

pytestmark = pytest.mark.unit


def test_an_existing_path_is_returned(tmp_path):
    path = tmp_path / "head.pth"
    path.write_bytes(b"")
    assert find_file(str(path)) == path


@pytest.mark.parametrize("reference", ["nowhere.pth", "folder/nowhere.pth", "/org/repo/file.pth", "org//file.pth"])
def test_a_missing_path_that_is_no_hub_reference_is_an_error(reference):
    with raises("file-missing", path=reference):
        find_file(reference)


def test_a_hub_file_is_downloaded_by_repository_and_name(monkeypatch, tmp_path):
    calls = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *names: calls.append(names) or str(tmp_path / "f"))
    assert find_file("org/repo/deep/head.pth") == tmp_path / "f"
    assert calls == [("org/repo", "deep/head.pth")]


def test_an_unreachable_hub_is_an_error_with_the_first_line_of_the_cause(monkeypatch):
    def offline(*names):
        raise OSError("no connection\nand a long story")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with raises("hub-unavailable", name="org/repo/head.pth", error="no connection"):
        find_file("org/repo/head.pth")


@pytest.mark.parametrize("kind", [GatedRepoError, RepositoryNotFoundError])
def test_a_repository_that_the_hub_refuses_has_another_code(monkeypatch, kind):
    def refused(*names):
        raise OSError("wrapped") from kind.__new__(kind)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", refused)
    with raises("hub-denied", name="org/repo/head.pth"):
        find_file("org/repo/head.pth")


def test_a_missing_module_is_an_error_with_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "easyocr", None)
    with raises("dependency-missing", module="easyocr", install="tdmr1[ocr]") as caught:
        import_optional("easyocr", "tdmr1[ocr]")
    assert caught.value.hint == "pip install 'tdmr1[ocr]'"


def test_the_first_line_of_an_error_without_a_message_is_its_type():
    assert first_line(ValueError()) == "ValueError"


@pytest.mark.parametrize(("suffix", "save"), [("pt", torch.save), ("safetensors", save_file)])
def test_a_state_dict_is_read(tmp_path, suffix, save):
    path = tmp_path / f"head.{suffix}"
    save({"weight": torch.ones(2)}, path)
    assert {name: value.tolist() for name, value in read_state_dict(path, "the head").items()} == {"weight": [1, 1]}


def test_a_file_that_holds_no_state_dict_is_an_empty_one(tmp_path):
    torch.save([1, 2], tmp_path / "list.pt")
    assert read_state_dict(tmp_path / "list.pt", "the head") == {}


def test_an_unreadable_state_dict_is_an_error(tmp_path):
    path = tmp_path / "head.pt"
    path.write_bytes(b"not weights")
    with raises("reward-weights", path=str(path)) as caught:
        read_state_dict(path, "the head")
    assert caught.value.message.startswith(f"the head {path} cannot be read: ")
