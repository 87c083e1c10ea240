"""Errors for models that are not available, with a fake hub over HTTP and incomplete caches."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from support.errors import raises
from support.paths import ROOT

from tdmr1_core.models import pipeline_files
from tdmr1_core.models.catalog import BUILTIN_MODELS
from tdmr1_core.models.hub import hub_file, revision_of
from tdmr1_core.models.loading import fetch_model, find_lora
from tdmr1_core.models.pipeline_files import is_hub_id
from tdmr1_core.models.registry import ModelRegistry
from tdmr1_core.plugins import discover
from tdmr1_core.preflight.layers import Flags, resolve_settings

pytestmark = pytest.mark.unit

RESPONSES = {
    "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "missing": (404, {"X-Error-Code": "RepoNotFound"}),
    "empty": (404, {"X-Error-Code": "EntryNotFound"}),
    "refused": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "forbidden": (403, {}),
}


class FakeHub(BaseHTTPRequestHandler):
    """Responds according to the name of the repository."""

    def do_GET(self):
        kind = next(name for name in RESPONSES if name in self.path)
        status, headers = RESPONSES[kind]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache without a token."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    pipeline_files._hub_config.cache_clear()
    return tmp_path / "cache"


REQUEST = """
import json, sys
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.hub import hub_file
for repo in sys.argv[1:]:
    try:
        hub_file(repo, "model_index.json")
    except Tdmr1Error as error:
        print(json.dumps(error.document()))
print(sorted({"torch", "diffusers", "transformers"} & sys.modules.keys()))
"""
REPOSITORIES = [f"owner/{name}" for name in RESPONSES]


def request_all(folder, **environment):
    """The errors of a process that requests each repository from the fake hub, by name."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), FakeHub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    hub = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(folder), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", REQUEST, *REPOSITORIES],
        env={**kept, **hub, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    server.shutdown()
    *errors, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    return dict(zip(RESPONSES, map(json.loads, errors), strict=True))


@pytest.fixture(scope="module")
def errors(tmp_path_factory):
    """The errors without a token, by repository."""
    return request_all(tmp_path_factory.mktemp("hub"))


@pytest.mark.parametrize(
    ("name", "code", "values", "hint"),
    [
        ("gated", "hub-denied", {"repo": "owner/gated"}, "https://huggingface.co/owner/gated"),
        ("missing", "hub-denied", {"repo": "owner/missing"}, "hf auth login"),
        ("empty", "model-incomplete", {"source": "owner/empty", "missing": "model_index.json"}, "diffusers"),
        ("refused", "hub-denied", {"repo": "owner/refused", "status": 401}, "hf auth login"),
        ("forbidden", "hub-denied", {"repo": "owner/forbidden", "status": 403}, "--model-path"),
    ],
)
def test_errors_of_the_hub(errors, name, code, values, hint):
    error = errors[name]
    assert (error["code"], error["values"]) == (code, values)
    assert hint in error["hint"]
    assert "\n" not in error["message"]


def test_a_token_without_permission(tmp_path):
    assert "check the token's permissions" in request_all(tmp_path, HF_TOKEN="hf_something")["gated"]["hint"]


def test_no_network(cache, monkeypatch):
    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("no file") from ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with raises("hub-unavailable", repo="owner/name") as caught:
        hub_file("owner/name", "model_index.json")
    assert "offline" not in caught.value.values


def test_offline_without_the_model(cache):
    for source in ("owner/name", "stabilityai/stable-diffusion-3.5-medium"):
        with raises("hub-unavailable", repo=source, offline=True) as caught:
            pipeline_files.family_of(source)
        assert "unset HF_HUB_OFFLINE" in caught.value.hint
        assert f"hf download {source}" in caught.value.hint


def cached(cache, repo, files):
    """Write a repository in the layout of the hub cache. Returns its snapshot folder."""
    folder = cache / f"models--{repo.replace('/', '--')}"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("a" * 40)
    for name, content in files.items():
        path = folder / "snapshots" / ("a" * 40) / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content if isinstance(content, bytes) else json.dumps(content).encode())
    return folder / "snapshots" / ("a" * 40)


def weights(folder):
    save_file({"weight": torch.zeros(100)}, folder / "weights.safetensors")
    return (folder / "weights.safetensors").read_bytes()


def zimage(folder, **changes):
    """The files of a pipeline that are checked before anything is loaded."""
    complete = weights(folder)
    files = {
        "model_index.json": {
            "_class_name": "ZImagePipeline",
            **{part: ["x", "X"] for part in ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")},
        },
        "scheduler/scheduler_config.json": {"shift": 3.0},
        "tokenizer/tokenizer_config.json": {},
        "text_encoder/config.json": {},
        "text_encoder/model.safetensors": complete,
        "transformer/config.json": {},
        "transformer/diffusion_pytorch_model.safetensors.index.json": {
            "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}
        },
        "transformer/one.safetensors": complete,
        "transformer/two.safetensors": complete,
        "vae/config.json": {"block_out_channels": [1, 1, 1, 1]},
        "vae/diffusion_pytorch_model.safetensors": complete,
    }
    files |= changes
    return {name: content for name, content in files.items() if content is not None}


def test_a_cached_model_needs_no_network(cache, tmp_path):
    folder = cached(cache, "Tongyi-MAI/Z-Image-Turbo", zimage(tmp_path))
    found = fetch_model(ModelRegistry(BUILTIN_MODELS).get("z-image-turbo"), training=True)
    assert (found.folder, found.revision, found.lora) == (folder, "a" * 40, None)
    assert ModelRegistry(BUILTIN_MODELS).get("Tongyi-MAI/Z-Image-Turbo").family == "zimage"
    assert revision_of(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "content", "missing", "problem"),
    [
        ("transformer/two.safetensors", None, "transformer/two.safetensors", "is missing"),
        ("transformer/two.safetensors", "truncated", "transformer/two.safetensors", "is truncated or damaged"),
        ("vae/diffusion_pytorch_model.safetensors", None, "vae", "has no safetensors weights"),
        ("tokenizer/tokenizer_config.json", None, "tokenizer/tokenizer_config.json", "is missing"),
    ],
)
@pytest.mark.parametrize("local", [True, False])
def test_an_incomplete_model(cache, tmp_path, name, content, missing, problem, local):
    files = zimage(tmp_path, **{name: weights(tmp_path)[:-40] if content == "truncated" else None})
    folder = cached(cache, "Tongyi-MAI/Z-Image-Turbo", files)
    entry = ModelRegistry(BUILTIN_MODELS).get("z-image-turbo", path=folder if local else None)
    with raises("model-incomplete", source=str(folder), missing=missing, problem=problem) as caught:
        fetch_model(entry, training=True)
    assert ("copy or download" if local else "hf download Tongyi-MAI/Z-Image-Turbo") in caught.value.hint


def test_wrong_pipeline_classes(cache, tmp_path):
    folder = cached(cache, "owner/name", zimage(tmp_path))
    with raises("model-invalid", pipeline="ZImagePipeline", model="sd3.5-tdm", expected="StableDiffusion3Pipeline"):
        ModelRegistry(BUILTIN_MODELS).get("sd3.5-tdm", path=folder)
    (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionXLPipeline"}')
    pipeline_files._hub_config.cache_clear()
    for source in ("owner/name", str(folder)):
        with raises("model-unsupported", source=source, pipeline="StableDiffusionXLPipeline"):
            ModelRegistry(BUILTIN_MODELS).get(source)


def test_a_scheduler_that_shifts_by_resolution(cache, tmp_path):
    changed = {"scheduler/scheduler_config.json": {"use_dynamic_shifting": True}}
    cached(cache, "owner/name", zimage(tmp_path, **changed))
    with raises("model-unsupported", pipeline="ZImagePipeline", setting="use_dynamic_shifting"):
        ModelRegistry(BUILTIN_MODELS).get("owner/name")


def test_a_model_without_a_published_lora(cache):
    with raises("lora-missing", model="sd3.5-large-tdm") as caught:
        fetch_model(ModelRegistry(BUILTIN_MODELS).get("sd3.5-large-tdm"), training=True)
    assert "--lora" in caught.value.hint


def test_loras_on_the_hub(cache, tmp_path):
    folder = cached(cache, "Luo-Yihong/TDM_sd3-5_lora", {"tdm_sd3-5_lora.ckpt": b"x"})
    assert find_lora("Luo-Yihong/TDM_sd3-5_lora/tdm_sd3-5_lora.ckpt") == folder / "tdm_sd3-5_lora.ckpt"
    folder = cached(cache, "Luo-Yihong/TDM_sd3_lora", {"pytorch_lora_weights.safetensors": b"x"})
    assert find_lora("Luo-Yihong/TDM_sd3_lora") == folder
    (tmp_path / "a" / "b").mkdir(parents=True)
    assert find_lora(str(tmp_path / "a" / "b")) == tmp_path / "a" / "b"


@pytest.mark.parametrize(
    ("text", "is_id"),
    [("owner/name", True), ("Tongyi-MAI/Z-Image", True), ("name", False), ("./a/b", False), ("/a/b", False)],
)
def test_hub_ids(text, is_id):
    assert is_hub_id(text) is is_id


@pytest.mark.parametrize("inside", ["folder/lora.safetensors", "folder/deeper/adapter_model.safetensors"])
def test_a_lora_in_a_folder_of_a_repository(cache, inside):
    name = inside.rpartition("/")[2]
    beside = inside.replace(name, "adapter_config.json")
    folder = cached(cache, "owner/loras", {inside: b"x", beside: b"{}"})
    assert find_lora(f"owner/loras/{inside}") == folder / inside
    assert find_lora(f"owner/loras/{inside.rpartition('/')[0]}") == (folder / inside).parent


def test_a_lora_on_the_hub_can_be_named_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    resolved = resolve_settings(Flags(model="tiny-tdm", lora=Path("owner/loras/a.safetensors")), "train", discover())
    assert resolved.entry.lora == "owner/loras/a.safetensors"
    (tmp_path / "student").mkdir()
    resolved = resolve_settings(Flags(model="tiny-tdm", lora=Path("student")), "train", discover())
    assert resolved.entry.lora == str(tmp_path / "student")
