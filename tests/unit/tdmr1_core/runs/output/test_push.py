"""The upload of an export: errors of the hub, with huggingface_hub's own client and a fake hub over HTTP."""

from __future__ import annotations

import pytest
from huggingface_hub import constants
from support.errors import raises
from support.fake_hub import TOKEN, Repository, serving

from tdmr1_core.runs.output.push import check_access, check_repository, push_export

pytestmark = pytest.mark.unit

CARD = b"---\nlibrary_name: diffusers\n---\n# A LoRA\n"
NAMES = ["pytorch_lora_weights.safetensors", "README.md"]


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A fake hub that this process uses with its token, without Xet."""
    with serving() as served:
        monkeypatch.setattr(constants, "ENDPOINT", served.url)
        monkeypatch.setattr("huggingface_hub.hf_api.constants.ENDPOINT", served.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        yield served


@pytest.fixture
def export(tmp_path):
    """A folder with the files of an export, and one that does not belong to it."""
    folder = tmp_path / "lora"
    folder.mkdir()
    (folder / NAMES[0]).write_bytes(b"weights" * 1000)
    (folder / NAMES[1]).write_bytes(CARD)
    (folder / "notes.txt").write_text("private")
    return folder


@pytest.mark.parametrize("without_xet", [True, False], ids=["one-commit", "pipeline"])
def test_the_files_of_the_export_arrive_in_one_commit(hub, export, monkeypatch, without_xet):
    """Both uploads of huggingface_hub: the one for LFS, and the one for Xet with files that it sends in the commit."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", without_xet)
    if not without_xet:
        hub.lfs = (".not-used",)
    assert push_export(export, NAMES, "me/my-lora", private=False) == f"{hub.url}/me/my-lora"
    (files,) = hub.repositories["me/my-lora"].commits
    assert files == {name: (export / name).read_bytes() for name in NAMES}
    assert not hub.repositories["me/my-lora"].private
    assert bool(hub.uploads) == without_xet


def test_an_existing_repository_gets_another_commit(hub, export):
    hub.repositories["me/my-lora"] = Repository(private=True)
    push_export(export, NAMES, "me/my-lora", private=True)
    assert len(hub.repositories["me/my-lora"].commits) == 1


def test_private_files_do_not_reach_a_public_repository(hub, export):
    hub.repositories["me/my-lora"] = Repository(private=False)
    with raises("option-conflict", repository="me/my-lora"):
        push_export(export, NAMES, "me/my-lora", private=True)
    assert hub.repositories["me/my-lora"].commits == []
    assert not hub.uploads


@pytest.mark.parametrize(
    ("status", "code"), [(401, "hub-denied"), (403, "hub-denied"), (404, "hub-denied"), (418, "hub-unavailable")]
)
def test_a_refusal_is_one_sentence_and_keeps_the_files(hub, export, status, code):
    hub.denied = status
    with raises(code, repo="me/my-lora", status=status) as caught:
        push_export(export, NAMES, "me/my-lora", private=False)
    assert f"HTTP status {status}" in caught.value.message
    assert "\n" not in caught.value.message
    assert str(export) in caught.value.hint
    assert (export / NAMES[1]).read_bytes() == CARD


def test_a_wrong_token_is_refused_and_not_printed(hub, export, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_another_secret")
    with raises("hub-denied", repo="me/my-lora", status=401) as caught:
        push_export(export, NAMES, "me/my-lora", private=False)
    assert "hf auth login" in caught.value.hint
    assert "hf_another" not in str(caught.value.document())
    assert hub.repositories == {}


def test_a_card_that_the_hub_refuses(hub, export):
    (export / NAMES[1]).write_text("no front matter")
    with raises("hub-unavailable", status=400):
        push_export(export, NAMES, "me/my-lora", private=False)
    assert hub.repositories["me/my-lora"].commits == []


def test_an_error_of_xet_is_one_sentence(hub, export, monkeypatch):
    """The fake hub has no Xet server, and answers the request for its token with 404."""
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    with raises("hub-unavailable", repo="me/my-lora") as caught:
        push_export(export, NAMES, "me/my-lora", private=False)
    assert "\n" not in caught.value.message
    assert hub.repositories["me/my-lora"].commits == []


def test_no_network(hub, export, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with raises("hub-unavailable", repo="me/my-lora") as caught:
        push_export(export, NAMES, "me/my-lora", private=False)
    assert "cannot be reached" in caught.value.message
    assert str(export) in caught.value.hint


def test_without_a_token_nothing_is_contacted(hub, export, monkeypatch):
    monkeypatch.delenv("HF_TOKEN")
    with raises("hub-denied", repo="me/my-lora") as caught:
        check_access("me/my-lora")
    assert "hf auth login" in caught.value.hint
    assert "HF_TOKEN" in caught.value.hint
    assert hub.requests == []


def test_offline_mode(hub, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with raises("hub-unavailable", repo="me/my-lora", offline=True):
        check_access("me/my-lora")
    assert hub.requests == []


@pytest.mark.parametrize(
    "repository",
    [
        "",
        "name",
        "a/b/c",
        "/name",
        "me/",
        "me/na me",
        "me/-name",
        "me/a--b",
        "me/a.git",
        "https://huggingface.co/me/name",
    ],
)
def test_a_malformed_repository_id(repository):
    with raises("argument-invalid", repository=repository) as caught:
        check_repository(repository)
    assert "OWNER/NAME" in caught.value.message
    assert "\n" not in caught.value.message


def test_a_repository_id():
    check_repository("me/my-lora_1.0")
