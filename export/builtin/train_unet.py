"""Trains the UNet to predict noise in the latents, given the text tower's hidden states (arXiv:2112.10752)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from . import configs
from .training import Average, Budget, Samples, save

CAPTION_DROPOUT = 0.1
MIN_SNR_GAMMA = 5.0  # arXiv:2303.09556


def alphas_cumprod(device: str) -> Tensor:
    """(1000,) of the scaled_linear schedule."""
    alphas: Tensor = configs.scheduler().alphas_cumprod
    return alphas.to(device)


@torch.no_grad()
def embed(text_encoder: configs.Network, tokens: Tensor, batch: int = 1024) -> Tensor:
    """Hidden states of every caption, (captions, 77, d), in bfloat16."""
    return torch.cat([text_encoder(part).last_hidden_state.bfloat16() for part in torch.split(tokens, batch)])


def train(
    samples: Samples,
    latents: Tensor,
    contexts: Tensor,
    unconditional: Tensor,
    preview: Preview,
    work: Path,
    seconds: float,
    batch: int,
) -> None:
    """Write `unet.safetensors` (the averaged weights) to `work`, and a sheet of samples every two minutes.

    Args:
        samples: which pictures and captions to draw.
        latents: (n, 4, 16, 16), standard deviation 1.
        contexts: (captions, 77, d).
        unconditional: (77, d) of the empty prompt.
        preview: draws the sheets.
        work: the folder of the run.
        seconds: how long to train.
        batch: pictures a step.
    """
    device = latents.device.type
    unet = configs.unet().to(device, memory_format=torch.channels_last)
    average = Average(unet, configs.unet().to(device), 0.9995)
    forward: configs.Network = torch.compile(unet, disable=device == "cpu")
    optimizer = torch.optim.AdamW(unet.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-2)
    alpha = alphas_cumprod(device)
    snr = alpha / (1 - alpha)
    loss_weights = snr.clamp(max=MIN_SNR_GAMMA) / snr
    budget = Budget("unet", work, seconds)
    previews = 1
    for step in budget.steps(optimizer, warmup=1000):
        picture, caption = samples.draw(batch)
        context = contexts[caption]
        context[torch.rand(batch, device=device) < CAPTION_DROPOUT] = unconditional
        timestep = torch.randint(1000, (batch,), device=device)
        noise = torch.randn(batch, 4, 16, 16, device=device)
        signal = alpha[timestep, None, None, None]
        noisy = signal.sqrt() * latents[picture] + (1 - signal).sqrt() * noise
        noisy = noisy.contiguous(memory_format=torch.channels_last)
        with torch.autocast(device, torch.bfloat16):
            predicted = forward(noisy, timestep, context, return_dict=False)[0]
        error = (predicted.float() - noise).square().mean((1, 2, 3))
        loss = (error * loss_weights[timestep]).mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        average.update()
        if step % 200 == 0:
            budget.record(step, loss=loss, error=error.mean())
        if budget.progress * seconds > 120 * previews:
            preview.draw(average.copy, work / f"preview_{previews:02d}.png")
            save(average.copy, work / "unet.safetensors")
            previews += 1
    save(average.copy, work / "unet.safetensors")
    preview.draw(average.copy, work / "preview.png")


class Preview:
    """Draws one sheet of pictures from given prompts, twenty steps each."""

    def __init__(self, vae: configs.Network, contexts: Tensor, unconditional: Tensor) -> None:
        self.vae, self.contexts, self.unconditional = vae, contexts, unconditional

    @torch.no_grad()
    def draw(self, unet: configs.Network, path: Path, guidance_scale: float = 5.0, columns: int = 16) -> None:
        """Write the sheet to `path`, `columns` pictures a row."""
        count, device = len(self.contexts), self.contexts.device
        scheduler = configs.scheduler()
        scheduler.set_timesteps(20, device=device)
        generator = torch.Generator().manual_seed(0)
        latents = torch.randn(count, 4, 16, 16, generator=generator).to(device)
        context = torch.cat([self.unconditional.expand_as(self.contexts), self.contexts]).float()
        for timestep in scheduler.timesteps:
            without, with_text = unet(torch.cat([latents, latents]), timestep, context).sample.chunk(2)
            noise_pred = without + guidance_scale * (with_text - without)
            latents = scheduler.step(noise_pred, timestep, latents).prev_sample
        pixels = self.vae.decode(latents / self.vae.config.scaling_factor).sample
        write_sheet(pixels, path, columns)


def write_sheet(pixels: Tensor, path: Path, columns: int) -> None:
    """Pictures (n, 3, h, w) in [-1, 1] side by side, n a multiple of `columns`."""
    array = ((pixels.clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    rows = [np.concatenate(list(array[i : i + columns]), axis=1) for i in range(0, len(array), columns)]
    Image.fromarray(np.concatenate(rows)).save(path)
