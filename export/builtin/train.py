"""Trains the built-in model, stage by stage, on one GPU (about twenty minutes on an H200 or H100).

    python -m edgediffusion.export.builtin.train DATA WORK            all stages; assemble.py comes next
    python -m edgediffusion.export.builtin.train DATA WORK --stage clip|vae|unet [--seconds N] [--batch N]

DATA is the file that data.py packs. The stages clip and vae can run side by side; unet needs both.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import CLIPTokenizer

from . import configs, data, tokenizer, train_clip, train_unet, train_vae
from .assemble import part
from .training import Samples

STAGES = {"clip": (120.0, 1024), "vae": (420.0, 128), "unet": (1000.0, 512)}  # seconds, batch
PREVIEW = (
    "a red apple", "a smiling cat face", "a rocket", "a slice of pizza", "a blue car", "a green frog", "a house",
    "a sunflower", "a robot", "a purple heart", "a cup of coffee", "an airplane", "a guitar", "a fish",
    "a birthday cake", "a tree",
)  # fmt: skip


def main() -> None:
    """Run one stage or all of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("work", type=Path)
    parser.add_argument("--stage", choices=STAGES)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--batch", type=int)
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(0)
    torch.backends.cuda.matmul.allow_tf32 = True
    torch.backends.cudnn.benchmark = True
    dataset = data.load(arguments.data)
    for stage in [arguments.stage] if arguments.stage else STAGES:
        seconds, batch = STAGES[stage]
        run(stage, dataset, arguments.work, arguments.seconds or seconds, arguments.batch or batch)


def run(stage: str, dataset: data.Dataset, work: Path, seconds: float, batch: int) -> None:
    """Train one stage from what the earlier ones left in `work`."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    captions = sorted({caption for captions in dataset.captions for caption in captions})
    samples = Samples(dataset, {caption: i for i, caption in enumerate(captions)}, device)
    if stage == "clip":
        words = tokenizer.train(captions)
        tokenizer.save(words, work / "tokenizer")
        train_clip.train(samples, _tokens(words, captions, device), work, seconds, batch)
    elif stage == "vae":
        train_vae.train(samples, work, seconds, batch)
    else:
        _train_unet(samples, captions, work, seconds, batch, device)


def _train_unet(samples: Samples, captions: list[str], work: Path, seconds: float, batch: int, device: str) -> None:
    words = CLIPTokenizer.from_pretrained(work / "tokenizer")
    text_encoder = configs.text_encoder().to(device).eval()
    text_encoder.load_state_dict(part(load_file(work / "clip.safetensors"), "text."))
    vae = configs.vae().to(device).eval()
    vae.load_state_dict(load_file(work / "vae.safetensors"))
    prompts = [f"{prompt}{style}" for style in ("", ", 3d", ", noto") for prompt in PREVIEW]
    unconditional = train_unet.embed(text_encoder, _tokens(words, [""], device))[0]
    preview = train_unet.Preview(vae, train_unet.embed(text_encoder, _tokens(words, prompts, device)), unconditional)
    means = train_vae.encode_all(vae, samples)
    shown = means[:: len(means) // 48][:48]
    train_unet.write_sheet(vae.decode(shown).sample.detach(), work / "decoded.png", columns=16)
    contexts = train_unet.embed(text_encoder, _tokens(words, captions, device))
    train_unet.train(samples, means * vae.config.scaling_factor, contexts, unconditional, preview, work, seconds, batch)


def _tokens(words: CLIPTokenizer, texts: list[str], device: str) -> torch.Tensor:
    encoded = words(texts, padding="max_length", max_length=configs.MAX_TOKENS, truncation=True)
    return torch.tensor(encoded.input_ids, device=device)


if __name__ == "__main__":
    main()
