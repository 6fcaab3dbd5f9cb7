"""One safetensors file in the layout of the original code: a whole checkpoint, or a VAE by itself.

Everything but the weights comes from us: configs from keys and shapes (`original/`), tokenizers and schedulers from
what we ship. The network is not asked.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any

from edgediffusion.engines.errors import ExportError

from ..weights import StoredTensor, Weight, read_header, read_metadata
from .base import Config, Part, Source
from .original import controlnet, text, unet, vae
from .original.kinds import KINDS, Kind
from .original.tokenizer import tokenizer_files

UNET, VAE, CONTROLNET = "model.diffusion_model.", "first_stage_model.", "control_model."
CONTROLNETS = (CONTROLNET, controlnet.HINT, controlnet.EMBEDDING)  # how keys of a ControlNet's file may begin
TOKENIZERS = {"text_encoder": "tokenizer", "text_encoder_2": "tokenizer_2"}
# What training left behind, buffers that follow from the config, and marks that are read elsewhere here.
LEFTOVERS = re.compile(
    r"model_ema\.|(alphas|sqrt|log_one_minus|posterior|lvlb)_\w+$|(betas|logvar|scale_factor|v_pred|ztsnr)$"
    r"|denoiser\.sigmas$|first_stage_model\.(loss|model_ema)\.|.*\.(logit_scale|attn_mask|position_ids)$"
    r"|.*\.transformer\.text_projection\."
)
LAST_NORMS = re.compile(rf"{re.escape(UNET)}output_blocks\.(\d+)\.1\.transformer_blocks\.0\.norm1\.bias")
V_PREDICTION_BIAS = 0.09  # ComfyUI's bound, see `_prediction_type`


@dataclass(frozen=True)
class FilePart:
    """The component of the file `where` whose keys begin with `prefix`."""

    where: Path
    prefix: str
    convert: Callable[[Mapping[str, StoredTensor]], Mapping[str, Weight]]
    describe: Callable[[Mapping[str, Any]], Config]

    @property
    def files(self) -> tuple[Path, ...]:
        """The one file."""
        return (self.where,)

    @cached_property
    def weights(self) -> Mapping[str, Weight]:
        """Its tensors under the names of diffusers and transformers."""
        own = {key: tensor for key, tensor in read_header(self.where).items() if not LEFTOVERS.match(key)}
        prefixed = {key[len(self.prefix) :]: tensor for key, tensor in own.items() if key.startswith(self.prefix)}
        return self.convert(prefixed)

    @cached_property
    def config(self) -> Config:
        """What the shapes say."""
        try:
            return self.describe(self.weights)
        except (KeyError, StopIteration, IndexError, ValueError) as error:
            raise ExportError(
                f"{self.where}: the weights under {self.prefix!r} are no whole component ({error!r}); "
                "download the file again"
            ) from None


def open_single_file(path: Path) -> Source:
    """Look at a checkpoint in the original layout.

    Raises:
        ExportError: it is no safetensors file, or holds something else, or something more.
    """
    tensors = read_header(path)
    kind = _recognise(path, tensors)
    towers = {
        folder: FilePart(path, tower.prefix, tower.convert, partial(text.config, hidden_act=tower.hidden_act))
        for folder, tower in kind.towers.items()
    }
    prediction_type = _prediction_type(path, tensors, kind)
    describe = partial(unet.config, head_dim=kind.head_dim, sample_size=kind.sample_sizes[prediction_type])
    parts: dict[str, Part] = {
        **towers,
        "unet": FilePart(path, UNET, unet.convert, describe),
        "vae": vae_part(path, VAE, kind.scaling_factor),
    }
    scheduler = kind.scheduler | {"prediction_type": prediction_type}
    if "ztsnr" in tensors:
        scheduler |= {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"}
    settings = {"scheduler/scheduler_config.json": json.dumps(scheduler, indent=2).encode()}
    for folder, tower in kind.towers.items():
        for name, content in tokenizer_files(tower.pad_token).items():
            settings[f"{TOKENIZERS[folder]}/{name}"] = content
    return Source(name=path.name, index=_index(path, kind, parts, scheduler), parts=parts, settings=settings)


def vae_part(path: Path, prefix: str, scaling_factor: float) -> FilePart:
    """The VAE in the file `path`."""
    return FilePart(path, prefix, vae.convert, partial(vae.config, scaling_factor=scaling_factor))


def controlnet_part(path: Path, prefix: str, attention_head_dim: Any) -> FilePart:
    """The ControlNet in the file `path`, for a UNet that has so many heads."""
    return FilePart(path, prefix, controlnet.convert, partial(controlnet.config, attention_head_dim=attention_head_dim))


def _recognise(path: Path, tensors: Mapping[str, StoredTensor]) -> Kind:
    for kind in KINDS.values():
        prefixes = (UNET, VAE, *(tower.prefix for tower in kind.towers.values()))
        if all(any(key.startswith(prefix) for key in tensors) for prefix in prefixes):
            others = [key for key in tensors if not (key.startswith(prefixes) or LEFTOVERS.match(key))]
            if others:
                raise ExportError(
                    f"{path}: {len(others)} weights belong to no component, first {min(others)}; "
                    "only plain checkpoints in the original layout are read"
                )
            return kind
    raise ExportError(
        f"{path}: not a whole checkpoint in the original layout (first key {min(tensors, default='none')}); "
        f"known: {', '.join(KINDS)}, each with UNet, VAE and text encoders in one file"
    )


def _prediction_type(path: Path, tensors: Mapping[str, StoredTensor], kind: Kind) -> str:
    """What the key `v_pred` says, or else the metadata of the modelspec, or else for SD 2.x what ComfyUI goes by.

    That is how far the biases of the first norm in the last transformer spread: further in the models of 768 x 768,
    which predict v. Those of 512 x 512 and the inpainting ones predict noise.
    """
    said = "v" if "v_pred" in tensors else read_metadata(path).get("modelspec.prediction_type", "")
    if not said and kind.guess_prediction and tensors[f"{UNET}input_blocks.0.0.weight"].shape[1] == 4:
        biases = {int(match[1]): tensors[key] for key in tensors if (match := LAST_NORMS.fullmatch(key))}
        said = "v" if biases[max(biases)].read().float().std() > V_PREDICTION_BIAS else ""
    return "v_prediction" if said.startswith("v") else "epsilon"


def _index(path: Path, kind: Kind, parts: Mapping[str, Part], scheduler: Config) -> Config:
    channels = parts["unet"].config["in_channels"]
    if channels not in kind.pipelines:
        known = ", ".join(map(str, sorted(kind.pipelines)))
        raise ExportError(f"{path}: the UNet reads {channels} channels; known for this kind of checkpoint: {known}")
    encoders = {name: ["transformers", parts[name].config["architectures"][0]] for name in kind.towers}
    tokenizers = {TOKENIZERS[name]: ["transformers", "CLIPTokenizer"] for name in kind.towers}
    return {
        "_class_name": kind.pipelines[channels],
        **kind.index,
        "scheduler": ["diffusers", scheduler["_class_name"]],
        **encoders,
        **tokenizers,
        "unet": ["diffusers", "UNet2DConditionModel"],
        "vae": ["diffusers", "AutoencoderKL"],
    }
