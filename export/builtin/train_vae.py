"""Trains the autoencoder: L1 on pixels and edges, a small KL term, and a patch discriminator in the second half.

The recipe is that of latent diffusion (arXiv:2112.10752, appendix G) with a loss on edges in place of LPIPS, whose
network has no open weights at hand.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import spectral_norm

from . import configs
from .assemble import bake_latent_statistics
from .training import Average, Budget, Samples, save

KL_WEIGHT = 5e-4
ADVERSARIAL_FROM = 0.5
ADVERSARIAL_WEIGHT = 0.3


def discriminator() -> nn.Module:
    """Judges patches of 46 x 46 pixels (arXiv:1611.07004), spectrally normalised."""
    layers: list[nn.Module] = []
    width = 3
    for channels in (64, 128, 256):
        layers += [spectral_norm(nn.Conv2d(width, channels, 4, stride=2, padding=1)), nn.LeakyReLU(0.2)]
        width = channels
    layers += [spectral_norm(nn.Conv2d(width, 256, 3, padding=1)), nn.LeakyReLU(0.2)]
    return nn.Sequential(*layers, spectral_norm(nn.Conv2d(256, 1, 3, padding=1)))


def reconstruction_loss(decoded: Tensor, pixels: Tensor) -> Tensor:
    """L1 of the pixels and of their differences to the neighbours right and below."""
    error = decoded - pixels
    edges = error.diff(dim=2).abs().mean() + error.diff(dim=3).abs().mean()
    return error.abs().mean() + edges


class Autoencode(nn.Module):
    """Pixels to pixels and the KL term, in one call that compiles."""

    def __init__(self, vae: configs.Network) -> None:
        super().__init__()
        self.vae = vae

    def forward(self, pixels: Tensor, noise: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the decoded pixels and the mean KL divergence of a latent value from N(0, 1)."""
        mean, logvar = self.vae.quant_conv(self.vae.encoder(pixels)).float().chunk(2, dim=1)
        logvar = logvar.clamp(-20, 10)
        kl = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
        latents = mean + noise * (0.5 * logvar).exp()
        return self.vae.decoder(self.vae.post_quant_conv(latents)), kl


def train(samples: Samples, work: Path, seconds: float, batch: int) -> None:
    """Write `vae.safetensors` and, without the discriminator's part, `vae_l1.safetensors` to `work`."""
    device = samples.images.device.type
    vae, judge = configs.vae().to(device, memory_format=torch.channels_last), discriminator().to(device)
    average = Average(vae, configs.vae().to(device), 0.999)
    autoencode = torch.compile(Autoencode(vae), disable=device == "cpu")
    optimizer = torch.optim.AdamW(vae.parameters(), lr=1e-3, betas=(0.9, 0.99), weight_decay=1e-3)
    judge_optimizer = torch.optim.AdamW(judge.parameters(), lr=2e-4, betas=(0.5, 0.9))
    budget = Budget("vae", work, seconds)
    adversarial = False
    for step in budget.steps(optimizer):
        pixels = samples.pixels(samples.draw(batch)[0]).contiguous(memory_format=torch.channels_last)
        noise = torch.randn(batch, 4, 16, 16, device=device)
        with torch.autocast(device, torch.bfloat16):
            decoded, kl = autoencode(pixels, noise)
        decoded = decoded.float()
        reconstruction = reconstruction_loss(decoded, pixels)
        (gradient,) = torch.autograd.grad(reconstruction, decoded, retain_graph=True)
        if not adversarial and budget.progress > ADVERSARIAL_FROM:
            adversarial = True
            finish(average.copy, samples, work / "vae_l1.safetensors")
        if adversarial:
            gradient = gradient + adversarial_gradient(judge, judge_optimizer, decoded, pixels, gradient)
        optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward([decoded, KL_WEIGHT * kl], [gradient, None])
        nn.utils.clip_grad_norm_(vae.parameters(), 1.0)
        optimizer.step()
        average.update()
        if step % 100 == 0:
            budget.record(step, reconstruction=reconstruction, kl=kl)
    finish(average.copy, samples, work / "vae.safetensors")


def adversarial_gradient(
    judge: nn.Module, optimizer: torch.optim.Optimizer, decoded: Tensor, pixels: Tensor, reference: Tensor
) -> Tensor:
    """One step of the discriminator (hinge loss), then its gradient on the pixels, sized against `reference`."""
    device = decoded.device.type
    with torch.autocast(device, torch.bfloat16):
        real, fake = judge(pixels), judge(decoded.detach())
    optimizer.zero_grad(set_to_none=True)
    (F.relu(1 - real.float()).mean() + F.relu(1 + fake.float()).mean()).backward()  # type: ignore[no-untyped-call]
    optimizer.step()
    image = decoded.detach().requires_grad_()
    with torch.autocast(device, torch.bfloat16):
        verdict = -judge(image).float().mean()
    (gradient,) = torch.autograd.grad(verdict, image)
    scaled: Tensor = gradient * ADVERSARIAL_WEIGHT * reference.norm() / gradient.norm().clamp(min=1e-12)
    return scaled


@torch.no_grad()
def encode_all(vae: configs.Network, samples: Samples, batch: int = 256) -> Tensor:
    """The mean latents of every picture, (n, 4, 16, 16) float32, before the scaling factor."""
    pictures = torch.arange(len(samples.images), device=samples.images.device)
    return torch.cat([vae.encode(samples.pixels(part)).latent_dist.mean for part in torch.split(pictures, batch)])


def finish(average: nn.Module, samples: Samples, path: Path) -> None:
    """Save a copy of the averaged autoencoder whose latents have mean 0 and deviation 1 / scaling factor."""
    vae = configs.vae().to(samples.images.device)
    vae.load_state_dict(average.state_dict())
    latents = encode_all(vae.eval(), samples)
    bake_latent_statistics(vae, latents.mean((0, 2, 3)), latents.std((0, 2, 3)))
    save(vae, path)
