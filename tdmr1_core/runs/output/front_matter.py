"""The front matter of a model card: what the Hugging Face hub reads of a LoRA."""

from __future__ import annotations

import re
from typing import Any

from tdmr1_core.models.pipeline_files import hub_id_of
from tdmr1_core.models.registry import ModelEntry

UNKNOWN = ModelEntry.licence
"""The license of a model whose entry names none."""
TAGS = ("lora", "text-to-image", "diffusers", "tdm-r1", "few-step")
HUB_LICENSES = frozenset(
    {
        *("apache-2.0", "mit", "bsd", "bsd-2-clause", "bsd-3-clause", "bsl-1.0", "isc", "zlib", "unlicense", "wtfpl"),
        *("openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m", "bigcode-openrail-m"),
        *("cc", "cc0-1.0", "cc-by-2.0", "cc-by-3.0", "cc-by-4.0", "cc-by-sa-3.0", "cc-by-sa-4.0", "cc-by-nd-4.0"),
        *("cc-by-nc-2.0", "cc-by-nc-3.0", "cc-by-nc-4.0", "cc-by-nc-nd-4.0", "cc-by-nc-sa-4.0"),
        *("gpl", "gpl-2.0", "gpl-3.0", "lgpl", "lgpl-3.0", "agpl-3.0", "mpl-2.0", "gemma", "llama3", "llama3.1"),
        *("llama3.2", "llama3.3", "deepfloyd-if-license", "apple-amlr"),
    }
)
"""License ids of the hub that models use. Other licenses are `other`, with their name."""
LICENSE_NAMES = {"Stability AI Community License": "stabilityai-ai-community"}
"""The `license_name` with which the hub knows a community license; the default is its text in lower case."""


def front_matter(entry: ModelEntry) -> dict[str, Any]:
    """The metadata of the model card of a LoRA for the base of a model entry, in the order of the card.

    A base in a local directory is not named.
    """
    base = hub_id_of(entry.base)
    origin = {"base_model": base, "base_model_relation": "adapter"} if base else {}
    shown = {"library_name": "diffusers", "pipeline_tag": "text-to-image", "tags": [*TAGS, entry.family]}
    return origin | shown | license_of(entry.licence, base)


def license_of(licence: str, base: str | None = None) -> dict[str, str]:
    """The license keys of a model card for the license text of a model entry; empty if the license is not known.

    The link of a license that the hub does not know leads to the page of the base.
    """
    found = licence.strip()
    if not found or found == UNKNOWN:
        return {}
    if found.lower() in HUB_LICENSES:
        return {"license": found.lower()}
    slug = re.sub(r"[^a-z0-9.]+", "-", found.lower()).strip("-.")
    named = {"license": "other", "license_name": LICENSE_NAMES.get(found, slug)}
    return named | ({"license_link": f"https://huggingface.co/{base}"} if base else {})
