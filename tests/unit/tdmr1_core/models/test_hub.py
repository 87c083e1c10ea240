"""What is said when a model can't be had: a stand-in hub answers over HTTP, and caches are half full."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from huggingface_hub import constants
from huggingface_hub.errors import LocalEntryNotFoundError
from safetensors.torch import save_file
from support.paths import ROOT

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models import pipeline_files
from tdmr1_core.models.hub import hub_file, is_hub_id, revision_of
from tdmr1_core.models.loading import fetch_model, find_lora
from tdmr1_core.models.registry import ModelRegistry

pytestmark = pytest.mark.unit

ANSWERS = {
    "gated": (403, {"X-Error-Code": "GatedRepo"}),
    "missing": (404, {"X-Error-Code": "RepoNotFound"}),
    "empty": (404, {"X-Error-Code": "EntryNotFound"}),
    "refused": (401, {"X-Error-Message": "Invalid credentials in Authorization header"}),
    "forbidden": (403, {}),
}


class StandIn(BaseHTTPRequestHandler):
    """Answers by the name of the repository."""

    def do_GET(self):
        kind = next(name for name in ANSWERS if name in self.path)
        status, headers = ANSWERS[kind]
        self.send_response(status)
        for name, value in {**headers, "Content-Length": "0"}.items():
            self.send_header(name, value)
        self.end_headers()

    do_HEAD = do_GET

    def log_message(self, *_):
        pass


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """An empty hub cache, and no token."""
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_TOKEN_PATH", str(tmp_path / "token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    pipeline_files._hub_config.cache_clear()
    return tmp_path / "cache"


ASK = """
import json, sys
from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.hub import hub_file
for repo in sys.argv[1:]:
    try:
        hub_file(repo, "model_index.json")
    except Tdmr1Error as error:
        print(json.dumps([error.message, error.hint]))
print(sorted({"torch", "diffusers", "transformers"} & sys.modules.keys()))
"""
REPOSITORIES = [f"owner/{name}" for name in ANSWERS]


def ask(folder, **environment):
    """What a process says that asks the stand-in hub for each repository: (message, hint) by name."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), StandIn)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("HF_")}
    own = {"HF_ENDPOINT": f"http://127.0.0.1:{server.server_port}", "HF_HOME": str(folder), "NO_PROXY": "127.0.0.1"}
    done = subprocess.run(
        [sys.executable, "-c", ASK, *REPOSITORIES],
        env={**kept, **own, **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    server.shutdown()
    *told, loaded = done.stdout.splitlines()
    assert loaded == "[]"
    return dict(zip(ANSWERS, map(json.loads, told), strict=True))


@pytest.fixture(scope="module")
def said(tmp_path_factory):
    """What is said without a token."""
    return ask(tmp_path_factory.mktemp("hub"))


@pytest.mark.parametrize(
    ("name", "message", "hint"),
    [
        ("gated", "owner/gated is gated: its licence must be accepted", "https://huggingface.co/owner/gated"),
        ("missing", "no such model on the hub, or it is private", "hf auth login"),
        ("empty", "owner/empty has no model_index.json", "diffusers"),
        ("refused", "the hub refused owner/refused (status 401)", "hf auth login"),
        ("forbidden", "the hub refused owner/forbidden (status 403)", "--model-path"),
    ],
)
def test_what_the_hub_refuses(said, name, message, hint):
    assert message in said[name][0]
    assert hint in said[name][1]
    assert "\n" not in said[name][0]


def test_a_token_that_is_not_enough(tmp_path):
    assert "check the token's permissions" in ask(tmp_path, HF_TOKEN="hf_something")["gated"][1]


def test_no_network(cache, monkeypatch):
    def unreachable(*_, **__):
        raise LocalEntryNotFoundError("no file") from ConnectionError("no route")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", unreachable)
    with pytest.raises(Tdmr1Error, match="the hub can't be reached, and owner/name is not in its cache"):
        hub_file("owner/name", "model_index.json")


def test_offline_without_the_model(cache):
    for source in ("owner/name", "stabilityai/stable-diffusion-3.5-medium"):
        with pytest.raises(Tdmr1Error, match=f"{source} is not in the hub's cache here") as caught:
            pipeline_files.family_of(source)
        assert "unset HF_HUB_OFFLINE" in caught.value.hint
        assert f"hf download {source}" in caught.value.hint


def cached(cache, repo, files):
    """A repository as the hub's client keeps it."""
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
    """The files of a pipeline, as far as they are looked at before anything is loaded."""
    whole = weights(folder)
    files = {
        "model_index.json": {
            "_class_name": "ZImagePipeline",
            **{part: ["x", "X"] for part in ("scheduler", "text_encoder", "tokenizer", "transformer", "vae")},
        },
        "scheduler/scheduler_config.json": {"shift": 3.0},
        "tokenizer/tokenizer_config.json": {},
        "text_encoder/config.json": {},
        "text_encoder/model.safetensors": whole,
        "transformer/config.json": {},
        "transformer/diffusion_pytorch_model.safetensors.index.json": {
            "weight_map": {"a": "one.safetensors", "b": "two.safetensors"}
        },
        "transformer/one.safetensors": whole,
        "transformer/two.safetensors": whole,
        "vae/config.json": {"block_out_channels": [1, 1, 1, 1]},
        "vae/diffusion_pytorch_model.safetensors": whole,
    }
    files |= changes
    return {name: content for name, content in files.items() if content is not None}


def test_a_cached_model_is_used_without_a_network(cache, tmp_path):
    folder = cached(cache, "Tongyi-MAI/Z-Image-Turbo", zimage(tmp_path))
    found = fetch_model(ModelRegistry().get("z-image-turbo"), training=True)
    assert (found.folder, found.revision, found.lora) == (folder, "a" * 40, None)
    assert ModelRegistry().get("Tongyi-MAI/Z-Image-Turbo").family == "zimage"
    assert revision_of(tmp_path) is None


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("transformer/two.safetensors", None, "transformer/two.safetensors is missing"),
        ("transformer/two.safetensors", "cut", "transformer/two.safetensors is cut short or damaged"),
        ("vae/diffusion_pytorch_model.safetensors", None, "vae has no safetensors weights"),
        ("tokenizer/tokenizer_config.json", None, "tokenizer/tokenizer_config.json is missing"),
    ],
)
@pytest.mark.parametrize("local", [True, False])
def test_a_half_downloaded_model(cache, tmp_path, name, content, said, local):
    files = zimage(tmp_path, **{name: weights(tmp_path)[:-40] if content == "cut" else None})
    folder = cached(cache, "Tongyi-MAI/Z-Image-Turbo", files)
    entry = ModelRegistry().get("z-image-turbo", path=folder if local else None)
    with pytest.raises(Tdmr1Error, match=f"is incomplete: {said}") as caught:
        fetch_model(entry, training=True)
    assert ("copy or download" if local else "hf download Tongyi-MAI/Z-Image-Turbo") in caught.value.hint


def test_wrong_families(cache, tmp_path):
    folder = cached(cache, "owner/name", zimage(tmp_path))
    with pytest.raises(Tdmr1Error, match=r"holds a ZImagePipeline, but the model sd3\.5-tdm is a"):
        ModelRegistry().get("sd3.5-tdm", path=folder)
    (folder / "model_index.json").write_text('{"_class_name": "FluxPipeline"}')
    pipeline_files._hub_config.cache_clear()
    for source in ("owner/name", str(folder)):
        with pytest.raises(Tdmr1Error, match="holds a FluxPipeline, which is not supported"):
            ModelRegistry().get(source)


def test_a_scheduler_that_shifts_by_resolution(cache, tmp_path):
    changed = {"scheduler/scheduler_config.json": {"use_dynamic_shifting": True}}
    cached(cache, "owner/name", zimage(tmp_path, **changed))
    with pytest.raises(Tdmr1Error, match="shifts its levels by resolution"):
        ModelRegistry().get("owner/name")


def test_a_model_without_a_published_lora(cache):
    with pytest.raises(Tdmr1Error, match=r"no few-step LoRA is published for sd3\.5-large-tdm") as caught:
        fetch_model(ModelRegistry().get("sd3.5-large-tdm"), training=True)
    assert "--lora" in caught.value.hint


def test_loras_of_the_hub(cache, tmp_path):
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
def test_what_reads_as_a_hub_id(text, is_id):
    assert is_hub_id(text) is is_id
