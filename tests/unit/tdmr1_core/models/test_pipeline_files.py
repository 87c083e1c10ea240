"""What is not a pipeline directory, or has weights in another format, is named together with a way forward."""

from __future__ import annotations

import shutil

import pytest
from support.errors import raises
from support.paths import ROOT

from tdmr1_core.models.pipeline_files import family_of, fetch

pytestmark = pytest.mark.unit

TINY = ROOT / "tdmr1_core" / "tiny" / "pipeline"


@pytest.mark.parametrize("name", ["model.safetensors", "model.ckpt", "model.gguf", "notes.txt"])
def test_a_single_file_is_named(tmp_path, name):
    (tmp_path / name).write_bytes(b"weights")
    with raises("model-incomplete", source=str(tmp_path / name)) as caught:
        family_of(str(tmp_path / name))
    assert "from_single_file" in caught.value.hint


@pytest.mark.parametrize("inside", ["snapshots/0123abc", "pipeline"])
def test_the_directory_inside_is_named(tmp_path, inside):
    """The root of a repository in the hub cache, or a directory that contains the pipeline."""
    (tmp_path / "blobs").mkdir()
    shutil.copytree(TINY, tmp_path / inside)
    with raises("model-incomplete", found=[str(tmp_path / inside)]) as caught:
        family_of(str(tmp_path))
    assert str(tmp_path / inside) in caught.value.hint


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("diffusion_pytorch_model.fp16.safetensors", "variant"),
        ("diffusion_pytorch_model.fp16-00001-of-00002.safetensors", "variant"),
        ("diffusion_pytorch_model.bf16.safetensors", "variant"),
        ("diffusion_pytorch_model.bin", "use_safetensors=False"),
        ("transformer-Q4_K_S.gguf", "made from"),
    ],
)
def test_weights_in_another_format_are_named(tmp_path, name, hint):
    shutil.copytree(TINY / "transformer", tmp_path / "transformer")
    weights = tmp_path / "transformer" / "diffusion_pytorch_model.safetensors"
    weights.rename(weights.with_name(name))
    with raises("model-incomplete", missing="transformer") as caught:
        fetch(str(tmp_path), ["transformer"])
    assert name in caught.value.values["problem"]
    assert hint in caught.value.hint
