"""Trains the text and the vision tower together on the captioned pictures (CLIP, arXiv:2103.00020)."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import configs
from .training import Average, Budget, Samples, save


class Towers(nn.Module):
    """Both towers and the logit scale."""

    def __init__(self) -> None:
        super().__init__()
        self.text = configs.text_encoder()
        self.vision = configs.image_encoder()
        self.logit_scale = nn.Parameter(torch.tensor(2.65926))  # ln(1 / 0.07)

    def forward(self, input_ids: Tensor, pixels: Tensor) -> Tensor:
        """Logits (texts, pictures)."""
        text = F.normalize(self.text(input_ids).pooler_output.float(), dim=-1)
        image = F.normalize(self.vision(pixels).image_embeds.float(), dim=-1)
        return self.logit_scale.clamp(max=4.6).exp() * text @ image.T


def contrastive_loss(logits: Tensor, captions: Tensor) -> Tensor:
    """Cross-entropy both ways; equal captions in a batch share their target."""
    target = (captions[:, None] == captions[None]).float()
    target /= target.sum(1, keepdim=True)
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def jitter(pixels: Tensor) -> Tensor:
    """Move and scale each picture a little, on white."""
    batch = pixels.shape[0]
    scale = torch.empty(batch, device=pixels.device).uniform_(0.95, 1.3)
    shift = torch.empty(batch, 2, device=pixels.device).uniform_(-0.15, 0.15)
    theta = torch.zeros(batch, 2, 3, device=pixels.device)
    theta[:, 0, 0] = theta[:, 1, 1] = scale
    theta[:, :, 2] = shift
    grid = F.affine_grid(theta, list(pixels.shape), align_corners=False)
    return F.grid_sample(pixels - 1, grid, align_corners=False) + 1


def train(samples: Samples, tokens: Tensor, work: Path, seconds: float, batch: int) -> None:
    """Write `clip.safetensors` (keys `text.*` and `vision.*`) to `work`.

    Args:
        samples: the pictures.
        tokens: (captions, 77) int64.
        work: the folder of the run.
        seconds: how long to train.
        batch: pictures a step.
    """
    device = tokens.device.type
    towers = Towers().to(device)
    average = Average(towers, Towers().to(device), 0.999)
    optimizer = torch.optim.AdamW(towers.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.1)
    budget = Budget("clip", work, seconds)
    for step in budget.steps(optimizer):
        picture, caption = samples.draw(batch)
        with torch.autocast(device, torch.bfloat16):
            logits = towers(tokens[caption], jitter(samples.pixels(picture)))
        loss = contrastive_loss(logits, caption)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(towers.parameters(), 1.0)
        optimizer.step()
        average.update()
        if step % 100 == 0:
            accuracy = (caption[logits.argmax(1)] == caption).float().mean()
            budget.record(step, loss=loss, accuracy=accuracy)
    save(average.copy, work / "clip.safetensors")
