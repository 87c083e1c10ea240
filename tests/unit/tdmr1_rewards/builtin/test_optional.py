"""Files by path or from the hub, and the sentences where they can't be had."""

import huggingface_hub
import pytest

from tdmr1_rewards.builtin.optional import find_file, first_line
from tdmr1_rewards.errors import Tdmr1Error

pytestmark = pytest.mark.unit


def test_a_path_is_itself(tmp_path):
    path = tmp_path / "head.pth"
    path.write_bytes(b"")
    assert find_file(str(path)) == path


@pytest.mark.parametrize("reference", ["nowhere.pth", "folder/nowhere.pth", "/org/repo/file.pth", "org//file.pth"])
def test_what_is_neither_a_path_nor_on_the_hub(reference):
    with pytest.raises(Tdmr1Error, match="there is no file"):
        find_file(reference)


def test_a_file_of_the_hub_is_asked_for_by_repository_and_name(monkeypatch, tmp_path):
    asked = []
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *names: asked.append(names) or str(tmp_path / "f"))
    assert find_file("org/repo/deep/head.pth") == tmp_path / "f"
    assert asked == [("org/repo", "deep/head.pth")]


def test_a_hub_that_can_not_be_reached_is_told(monkeypatch):
    def offline(*names):
        raise OSError("no connection\nand a long story")

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", offline)
    with pytest.raises(Tdmr1Error, match=r"org/repo/head.pth can't be had from the hub: no connection$"):
        find_file("org/repo/head.pth")


def test_an_error_without_words_is_its_type():
    assert first_line(ValueError()) == "ValueError"
