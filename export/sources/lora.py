"""Low-rank adaptation (arXiv:2106.09685) for the weights: W + scale * alpha / rank * up @ down.

Two spellings of a key are read, kohya's (`lora_unet_down_blocks_0_..._to_q.lora_down.weight`, where SDXL has the
original code's blocks) and that of diffusers and peft (`unet.down_blocks.0...to_q.lora_A.weight`, or `lora.down`).
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from edgediffusion.engines.errors import ExportError
from edgediffusion.engines.json_object import parse_object

from ..weights import Derived, Fused, LowRank, StoredTensor, Weight, read_header, read_metadata
from .base import EditedPart, Part, Source, pickled
from .folder import PICKLES
from .original.unet import original_keys

KOHYA = {
    "unet": ("lora_unet",),
    "text_encoder": ("lora_te", "lora_te1"),
    "text_encoder_2": ("lora_te2",),
}
ROLES = {
    "lora_down.weight": "down",
    "lora_up.weight": "up",
    "lora_mid.weight": "mid",
    "lora_A.weight": "down",
    "lora_B.weight": "up",
    "lora.down.weight": "down",
    "lora.up.weight": "up",
    "lora_linear_layer.down.weight": "down",
    "lora_linear_layer.up.weight": "up",
    "alpha": "alpha",
}
METADATA = "lora_adapter_metadata"  # the key in the header of files that diffusers writes
_OLD_PROCESSOR = re.compile(r"\.processor\.(to_\w+?)_lora\.(down|up)\.weight$")  # diffusers before 0.22


@dataclass(frozen=True)
class Joined(Derived):
    """The first two of a convolution as three (LoCon): 1x1 in, which is `weight`, and k x k between, in one."""

    mid: StoredTensor

    @property
    def dtype(self) -> str:
        """See `Weight`."""
        return "F32"

    @property
    def shape(self) -> tuple[int, ...]:
        """See `Weight`. (rank, in, k, k)"""
        return (self.mid.shape[0], self.weight.shape[1], *self.mid.shape[2:])

    def read(self) -> torch.Tensor:
        """See `Weight`."""
        return torch.einsum("rskl,si->rikl", self.mid.read().float(), self.weight.read().float().flatten(1))


def fuse_loras(source: Source, loras: Sequence[tuple[Path, float]]) -> Source:
    """`source` with each LoRA (file, scale) added to its weights, when they are read.

    Raises:
        ExportError: a file holds something else, or something that fits nothing in the checkpoint.
    """
    for path, scale in loras:
        parts = {name: part for name, part in source.parts.items() if name in KOHYA}
        places = {alias: (name, key) for name, part in parts.items() for key, alias in _aliases(name, part)}
        fused: dict[str, dict[str, Weight]] = {}
        for module, delta in _read(path, scale).items():
            name, key = places.get(module, ("", ""))
            base = parts[name].weights[key] if name else None
            if base is None or (base.shape[0], math.prod(base.shape[1:])) != delta.shape:
                raise ExportError(f"{path}: {module} fits nothing in {source.name}; a LoRA for another family")
            fused.setdefault(name, {})[key] = Fused(base, delta)
        edited = {
            name: EditedPart(
                parts[name].where, parts[name].config, {**parts[name].weights, **weights}, (*parts[name].files, path)
            )
            for name, weights in fused.items()
        }
        source = replace(source, parts={**source.parts, **edited})
    return source


def _aliases(name: str, part: Part) -> list[tuple[str, str]]:
    """The names that a LoRA may have for each weight of `part`, dots as underscores."""
    keys = [key for key in part.weights if key.endswith(".weight")]
    if name == "unet":
        original = original_keys(part.weights)
        spellings = [(key, spelling) for key in keys for spelling in (key, original[key])]
    else:  # with the prefix and without, whichever the checkpoint has
        bare = [(key, key.removeprefix("text_model.")) for key in keys]
        spellings = [(key, spelling) for key, short in bare for spelling in (short, f"text_model.{short}")]
    return [
        (key, f"{prefix}.{spelling.removesuffix('.weight')}".replace(".", "_"))
        for key, spelling in spellings
        for prefix in (name, *KOHYA[name])
    ]


def _read(path: Path, scale: float) -> Mapping[str, LowRank]:
    """The deltas by module, dots as underscores."""
    if path.suffix in PICKLES:
        raise pickled(path)
    groups: dict[str, dict[str, StoredTensor]] = {}
    names: dict[str, str] = {}
    for key, tensor in read_header(path).items():
        plain = _OLD_PROCESSOR.sub(r".\1.lora.\2.weight", key).replace(".to_out.lora", ".to_out.0.lora")
        suffix = next((suffix for suffix in ROLES if plain.endswith(f".{suffix}")), None)
        if suffix is None:
            raise ExportError(f"{path}: {key} is no weight of a LoRA; linear and convolution LoRAs are read")
        name = plain.removesuffix(f".{suffix}")
        names[module := name.replace(".", "_")] = name
        groups.setdefault(module, {})[ROLES[suffix]] = tensor
    for module, group in groups.items():
        if not {"down", "up"} <= group.keys():
            raise ExportError(f"{path}: {module} lacks its down or up matrix; download the file again")
        if group["down"].shape[:1] in ((), (0,)) or group["down"].shape[:1] != group["up"].shape[1:2]:
            shapes = f"{group['up'].shape} and {group['down'].shape}"
            raise ExportError(f"{path}: {module} has matrices of {shapes}, of which no product is; save the LoRA again")
    ranks = {module: group["down"].shape[0] for module, group in groups.items()}
    alphas = _alphas(path, {names[module]: rank for module, rank in ranks.items()})
    deltas = {}
    for module, group in groups.items():
        alpha = float(group["alpha"].read()) if "alpha" in group else alphas.get(names[module], ranks[module])
        down = Joined(group["down"], group["mid"]) if "mid" in group else group["down"]
        deltas[module] = LowRank(group["up"], down, scale * alpha / ranks[module])
    return deltas


def _alphas(path: Path, ranks: Mapping[str, int]) -> dict[str, float]:
    """What the metadata that diffusers writes says of the modules, which it names by a pattern or not at all.

    It holds peft's LoraConfig of each component. With `use_rslora` alpha is divided by the root of the rank
    (arXiv:2312.03732), instead of by the rank as all others are.
    """
    alphas = {}
    try:
        settings = parse_object(read_metadata(path).get(METADATA, "{}"))
        for module, rank in ranks.items():
            component, _, name = module.partition(".")
            if (alpha := settings.get(f"{component}.lora_alpha")) is not None:
                patterns = settings.get(f"{component}.alpha_pattern") or {}
                named = (value for key, value in patterns.items() if re.fullmatch(rf"(.*\.)?({key})", name))
                root = rank**0.5 if settings.get(f"{component}.use_rslora") else 1.0
                alphas[module] = root * float(next(named, alpha))
    except (AttributeError, TypeError, ValueError, re.error) as error:
        raise ExportError(f"{path}: {METADATA} in its header cannot be read ({error}); save the LoRA again") from None
    return alphas
