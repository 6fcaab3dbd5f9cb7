"""What the three training stages share: the data on the device, the schedule, the average of the weights, the log."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from .data import Dataset


class Samples:
    """The pictures and their tokenized captions on one device, drawn by weight."""

    def __init__(self, dataset: Dataset, caption_ids: dict[str, int], device: str) -> None:
        images = torch.from_numpy(dataset.images)
        self.images = images.to(device).permute(0, 3, 1, 2).contiguous()
        self.weights = torch.from_numpy(dataset.weights).to(device)
        counts = torch.tensor([len(captions) for captions in dataset.captions])
        self.counts = counts.to(device)
        self.first = (counts.cumsum(0) - counts).to(device)
        flat = [caption_ids[caption] for captions in dataset.captions for caption in captions]
        self.captions = torch.tensor(flat, device=device)

    def draw(self, batch: int) -> tuple[Tensor, Tensor]:
        """Picture indices and caption ids, both (batch,); every caption of a picture is as likely."""
        picture = torch.multinomial(self.weights, batch, replacement=True)
        variant = (torch.rand(batch, device=picture.device) * self.counts[picture]).long()
        return picture, self.captions[self.first[picture] + variant]

    def pixels(self, picture: Tensor) -> Tensor:
        """(b, 3, 128, 128) in [-1, 1]."""
        return self.images[picture].float() / 127.5 - 1


class Average:
    """An exponential moving average of a module's parameters, held by a copy of the module."""

    def __init__(self, module: nn.Module, copy: nn.Module, decay: float) -> None:
        self.module, self.copy, self.decay, self.updates = module, copy.eval().requires_grad_(False), decay, 0
        copy.load_state_dict(module.state_dict())

    @torch.no_grad()
    def update(self) -> None:
        """Move the average towards the module; early on it follows faster."""
        self.updates += 1
        decay = min(self.decay, (1 + self.updates) / (10 + self.updates))
        torch._foreach_lerp_(list(self.copy.parameters()), list(self.module.parameters()), 1 - decay)


class Budget:
    """A training run that lasts a given time: steps, and a learning rate that warms up and falls as a cosine."""

    def __init__(self, stage: str, work: Path, seconds: float) -> None:
        self.stage, self.seconds, self.log = stage, seconds, work / f"{stage}.jsonl"
        self.start = time.monotonic()
        self.log.unlink(missing_ok=True)

    @property
    def progress(self) -> float:
        """The share of the time that has passed."""
        return (time.monotonic() - self.start) / self.seconds

    def steps(self, optimizer: torch.optim.Optimizer, *, warmup: int = 300) -> Iterator[int]:
        """Count steps until the time is up; the first one, which compiles, does not count as time."""
        rates = [group["lr"] for group in optimizer.param_groups]
        step = 0
        while step == 0 or self.progress < 1:
            factor = min(1.0, (step + 1) / warmup) * max(0.01, 0.5 + 0.5 * math.cos(math.pi * min(1.0, self.progress)))
            for group, rate in zip(optimizer.param_groups, rates, strict=True):
                group["lr"] = rate * factor
            yield step
            if step == 0:
                self.start = time.monotonic()
            step += 1

    def record(self, step: int, **losses: Tensor) -> None:
        """Append the losses to the stage's log."""
        line = {"step": step, "seconds": round(time.monotonic() - self.start, 2)}
        line |= {name: float(loss.detach()) for name, loss in losses.items()}
        with self.log.open("a", encoding="utf-8") as log:
            log.write(json.dumps(line) + "\n")


def save(module: nn.Module, path: Path) -> None:
    """Write the weights in one move, so that an interrupted run leaves the last good file."""
    partial = path.with_suffix(".partial")
    save_file({name: value.contiguous() for name, value in module.state_dict().items()}, partial)
    partial.replace(path)
