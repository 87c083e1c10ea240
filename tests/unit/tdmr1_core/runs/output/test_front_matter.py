"""The front matter of model cards: licenses of the hub, and bases that are on the hub or not."""

from __future__ import annotations

from dataclasses import replace

import pytest
from huggingface_hub import ModelCardData

from tdmr1_core.models.catalog import BUILTIN_MODELS
from tdmr1_core.models.pipeline_files import hub_id_of, public_name
from tdmr1_core.runs.output.front_matter import HUB_LICENSES, TAGS, front_matter, license_of

pytestmark = pytest.mark.unit

MODELS = {entry.name: entry for entry in BUILTIN_MODELS}
SNAPSHOT = "/cache/hub/models--Tongyi-MAI--Z-Image-Turbo/snapshots/0123abcd"


def test_a_base_on_the_hub_is_named():
    entry = MODELS["sd3.5-tdm"]
    matter = front_matter(entry)
    assert matter == {
        "base_model": entry.base,
        "base_model_relation": "adapter",
        "library_name": "diffusers",
        "pipeline_tag": "text-to-image",
        "tags": [*TAGS, "sd3"],
        "license": "other",
        "license_name": "stabilityai-ai-community",
        "license_link": f"https://huggingface.co/{entry.base}",
    }
    assert ModelCardData(**matter).to_dict() == matter


def test_a_base_in_a_local_directory_is_not_named(tmp_path):
    matter = front_matter(replace(MODELS["z-image-turbo"], base=str(tmp_path)))
    assert "base_model" not in matter
    assert "base_model_relation" not in matter
    assert str(tmp_path) not in str(matter)
    assert matter["license"] == "apache-2.0"


@pytest.mark.parametrize("entry", BUILTIN_MODELS, ids=lambda entry: entry.name)
def test_the_license_of_every_model_is_named(entry):
    assert license_of(entry.licence)["license"] in HUB_LICENSES | {"other"}


@pytest.mark.parametrize(
    ("licence", "expected"),
    [
        ("Apache-2.0", {"license": "apache-2.0"}),
        ("MIT", {"license": "mit"}),
        ("CC-BY-NC-4.0", {"license": "cc-by-nc-4.0"}),
        ("Krea 2 Community License", {"license": "other", "license_name": "krea-2-community-license"}),
        ("FLUX.1 [dev] (non-commercial)", {"license": "other", "license_name": "flux.1-dev-non-commercial"}),
        ("unknown", {}),
        ("", {}),
    ],
)
def test_licenses(licence, expected):
    assert license_of(licence) == expected


@pytest.mark.parametrize(
    ("source", "base", "name"),
    [
        ("owner/name", "owner/name", "owner/name"),
        (SNAPSHOT, "Tongyi-MAI/Z-Image-Turbo", "Tongyi-MAI/Z-Image-Turbo"),
        (f"{SNAPSHOT}/transformer", None, "path/to/transformer"),
        ("/home/alice/models/sd3", None, "path/to/sd3"),
        ("/snapshots/sd3", None, "path/to/sd3"),
        ("/cache/models--gpt2/snapshots/0123abcd", None, "path/to/0123abcd"),
    ],
)
def test_public_names(source, base, name):
    assert (hub_id_of(source), public_name(source)) == (base, name)


def test_a_local_directory_with_the_form_of_a_hub_id(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "owner" / "name").mkdir(parents=True)
    assert public_name("owner/name") == "path/to/name"
