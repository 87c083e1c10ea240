"""The alpha of each module of a LoRA file: the numerator of the scale alpha / rank of its update."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from peft.utils.other import get_pattern_key

from tdmr1_core.errors import Tdmr1Error
from tdmr1_core.models.lora.raw import RawLora

DefaultAlpha = float | Literal["rank"] | None
"""The alpha of a file that does not contain it: a number, the rank of each module, or unknown."""


@dataclass(frozen=True)
class StatedModule:
    """A module of a LoRA file: its rank, and the alpha of its tensor.

    `config_name` is its name as the patterns of PEFT's config see it.
    """

    name: str
    config_name: str
    rank: int
    alpha: float | None


def module_alphas(raw: RawLora, modules: Sequence[StatedModule], default: DefaultAlpha, path: Path) -> list[float]:
    """The alpha of each module: that of its tensor or of PEFT's config, otherwise `default`.

    In a file in which other modules have an alpha, a module without one is scaled by 1, as kohya, ComfyUI and diffusers
    do. Kohya's record of the alpha is used only if it is the rank: the other loaders ignore it, and converted files
    contain it although their weights are already scaled. Raises Tdmr1Error if alpha is unknown, contradictory or not
    positive, or if the config has another rank than the weights.
    """
    return [_alpha(raw, module, default, path) for module in modules]


def _alpha(raw: RawLora, of: StatedModule, default: DefaultAlpha, path: Path) -> float:
    module, rank, given = of.name, of.rank, of.alpha
    stated = _stated_alpha(raw.config, of.config_name, rank, path)
    if given is not None and stated is not None and given != stated:
        raise Tdmr1Error(
            f"{path} has two alphas for {module}: {given:g} as a tensor, {stated:g} in its config",
            "remove one of them",
            code="lora-unsupported",
            values={"path": str(path), "module": module, "alphas": [given, stated]},
        )
    found = stated if given is None else given
    if found is None and raw.stores_alphas:
        found = float(rank)
    if found is None and default is not None:
        found = float(rank) if default == "rank" else default
    if found is None and raw.network_alpha == rank:
        found = float(rank)
    if found is None:
        hint = f"set it with --set model.alpha=…; if the file has no adapter config, diffusers uses the rank, {rank}"
        if raw.network_alpha is not None:
            hint += f". The LoRA was trained with the alpha {raw.network_alpha:g}, but a converted file can contain it"
        raise Tdmr1Error(
            f"the LoRA file {path} does not contain its alpha, the numerator of the scale alpha / rank",
            hint,
            code="lora-alpha",
            values={"path": str(path), "rank": rank, "network_alpha": raw.network_alpha},
        )
    if not 0 < found < math.inf:
        raise Tdmr1Error(
            f"{path} has the alpha {found:g} for {module}, expected a positive number",
            "correct the alpha in the file: the tools that load LoRAs disagree about such a value",
            code="lora-unsupported",
            values={"path": str(path), "module": module, "alpha": found},
        )
    return found


def _stated_alpha(config: Mapping[str, Any], name: str, rank: int, path: Path) -> float | None:
    """The alpha of a module in PEFT's adapter config, as scale x rank; None without one.

    Raises Tdmr1Error if the config has another rank than the weights.
    """
    ranks = config.get("rank_pattern") or {}
    stated = ranks.get(get_pattern_key(list(ranks), name), config.get("r", rank))
    if stated != rank:
        raise Tdmr1Error(
            f"the metadata of {path} has rank {stated} for {name}, but its weights have rank {rank}",
            "export the LoRA again, or correct the rank `r` in its adapter config",
            code="lora-mismatch",
            values={"path": str(path), "stated": stated, "rank": rank},
        )
    alphas = config.get("alpha_pattern") or {}
    alpha = alphas.get(get_pattern_key(list(alphas), name), config.get("lora_alpha"))
    if alpha is None:
        return None
    return float(alpha) * (rank**0.5 if config.get("use_rslora") else 1)
