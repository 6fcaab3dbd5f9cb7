"""Export random weights in the real shape of a model, and print time, memory and bytes as JSON.

Arguments: sd15|sd21|sdxl FOLDER [fp16|bf16].

The checkpoint goes to FOLDER/checkpoint, a tensor at a time, the bundle to FOLDER/bundle. Weights are float16.
"""

import dataclasses
import json
import math
import sys
import time
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import init_empty_weights  # type: ignore[import-untyped]

from edgediffusion.export.families import FAMILIES
from edgediffusion.export.options import DTYPES, Options
from edgediffusion.export.sources.original.tokenizer import tokenizer_files
from edgediffusion.export.weights import write_tensors
from edgediffusion.export.write_bundle import export_bundle
from edgediffusion.runtime.doctor import examine
from edgediffusion.runtime.families import FAMILIES as RUNTIME_FAMILIES

CLIP_L: dict[str, Any] = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "max_position_embeddings": 77,
    "vocab_size": 49408,
    "projection_dim": 768,
    "hidden_act": "quick_gelu",
}
CLIP_G = CLIP_L | {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}
VAE: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
    "layers_per_block": 2,
    "latent_channels": 4,
    "sample_size": 512,
    "scaling_factor": 0.18215,
}
UNET: dict[str, Any] = {
    "sample_size": 64,
    "in_channels": 4,
    "out_channels": 4,
    "layers_per_block": 2,
    "block_out_channels": [320, 640, 1280, 1280],
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
    "cross_attention_dim": 768,
    "attention_head_dim": 8,
}
UNET_2 = UNET | {"attention_head_dim": [5, 10, 20, 20], "cross_attention_dim": 1024, "use_linear_projection": True}
UNET_XL = UNET | {
    "sample_size": 128,
    "block_out_channels": [320, 640, 1280],
    "down_block_types": ["DownBlock2D"] + ["CrossAttnDownBlock2D"] * 2,
    "up_block_types": ["CrossAttnUpBlock2D"] * 2 + ["UpBlock2D"],
    "transformer_layers_per_block": [1, 2, 10],
    "attention_head_dim": [5, 10, 20],
    "cross_attention_dim": 2048,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
    "use_linear_projection": True,
}
CLIP_H = CLIP_L | {
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "num_hidden_layers": 23,
    "num_attention_heads": 16,
    "projection_dim": 512,
    "hidden_act": "gelu",
}
VAES = {"vae_encoder": VAE, "vae_decoder": VAE}
MODELS: dict[str, tuple[str, dict[str, dict[str, Any]]]] = {
    "sd15": ("sd", {"text_encoder": CLIP_L, **VAES, "unet": UNET}),
    "sd21": ("sd", {"text_encoder": CLIP_H, **VAES, "unet": UNET_2}),
    "sdxl": ("sdxl", {"text_encoder": CLIP_L, "text_encoder_2": CLIP_G, **VAES, "unet": UNET_XL}),
}
INDEX: dict[str, Any] = {  # for diffusers to open what `edgediffusion export --to-diffusers` makes of sd15 and sd21
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
    **{name: [None, None] for name in ("feature_extractor", "image_encoder", "safety_checker")},
}
SCHEDULER = {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear"}


@dataclass(frozen=True)
class Random:
    """A weight that is drawn when it is written: such that values keep their size from layer to layer."""

    file: Path
    shape: tuple[int, ...]
    dtype: str = "F16"

    def read(self) -> torch.Tensor:
        """Ones for the scale of a norm (the last part of a name is in `file`), zeros for a bias."""
        if len(self.shape) < 2:
            return torch.full(self.shape, float(self.file.name == "weight"), dtype=torch.float16)
        generator = torch.Generator().manual_seed(zlib.crc32(self.file.as_posix().encode()))
        values = torch.randn(self.shape, generator=generator) / math.sqrt(math.prod(self.shape[1:]))
        return values.half()


def write_checkpoint(model: str, folder: Path) -> dict[str, int]:
    """Weights and settings of `model`; the number of weights of each component."""
    family, configs = MODELS[model]
    record = RUNTIME_FAMILIES[family]
    folder.mkdir(parents=True)
    index = {"_class_name": record.pipeline_classes[0], "scheduler": ["diffusers", SCHEDULER["_class_name"]]} | INDEX
    counts = {}
    for component in record.components:
        if component.folder not in configs:
            continue
        config = configs[component.folder]
        with init_empty_weights():
            state = FAMILIES[family][component.folder].module(config).state_dict()
        target = folder / component.folder
        target.mkdir()
        (target / "config.json").write_text(json.dumps(config))
        weights = {key: Random(Path(key.replace(".", "/")), tuple(value.shape)) for key, value in state.items()}
        write_tensors(target / component.weights, weights)
        counts[component.folder] = sum(value.numel() for value in state.values())
    for tokenizer in record.tokenizers:
        (folder / tokenizer).mkdir()
        for name, content in tokenizer_files("<|endoftext|>").items():
            (folder / tokenizer / name).write_bytes(content)
    (folder / "scheduler").mkdir()
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(SCHEDULER))
    (folder / "model_index.json").write_text(json.dumps(index))
    return counts


if __name__ == "__main__":
    model, out = sys.argv[1], Path(sys.argv[2])
    options = Options(dtype={"": DTYPES[sys.argv[3]]} if sys.argv[3:] else {})
    weights = write_checkpoint(model, out / "checkpoint")
    started, lines = time.monotonic(), list[str]()

    def report(line: str) -> None:
        """To stderr with the time, and into the JSON."""
        lines.append(f"{time.monotonic() - started:.1f} s: {line}")
        sys.stderr.write(f"{lines[-1]}\n")

    manifest = export_bundle(out / "checkpoint", out / "bundle", options, report=report)
    figures = {
        "model": model,
        "weights": weights,
        "seconds": time.monotonic() - started,
        "bundle_bytes": sum(record.bytes for record in manifest.files.values()),
        "stages": lines,
        "environment": dataclasses.asdict(examine()),
    }
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
