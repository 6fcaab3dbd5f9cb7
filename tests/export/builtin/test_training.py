"""The training of the built-in model: its rules, on tiny numbers."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn
from transformers import CLIPTokenizer

from edgediffusion.export.builtin import configs, tokenizer
from edgediffusion.export.builtin.assemble import bake_latent_statistics
from edgediffusion.export.builtin.data import Dataset
from edgediffusion.export.builtin.train_clip import contrastive_loss
from edgediffusion.export.builtin.training import Average, Samples

CAPTIONS = ["a red apple, 3d", "a red apple", "a blue car, noto", "the cat's 2 eyes", "a piñata"]


@torch.no_grad()
def test_baked_latents_have_mean_0_and_deviation_1_and_decode_to_the_same() -> None:
    torch.manual_seed(0)
    vae = configs.vae().double().eval()
    for weights in (vae.quant_conv, vae.post_quant_conv):
        weights.weight.normal_()
        weights.bias.normal_()
    pixels = torch.rand(4, 3, 32, 32, dtype=torch.float64) * 2 - 1
    before = vae.encode(pixels).latent_dist
    decoded = vae.decode(before.mean).sample
    bake_latent_statistics(vae, before.mean.mean((0, 2, 3)), before.mean.std((0, 2, 3)))
    after = vae.encode(pixels).latent_dist
    latents = after.mean * vae.config.scaling_factor
    torch.testing.assert_close(latents.mean((0, 2, 3)), torch.zeros(4).double(), rtol=0, atol=1e-6)
    torch.testing.assert_close(latents.std((0, 2, 3)), torch.ones(4).double(), rtol=1e-6, atol=0)
    error = (vae.decode(after.mean).sample - decoded).norm() / decoded.norm()
    assert error < 1e-4
    scale = latents.std((0, 2, 3)) / (before.mean.std((0, 2, 3)) * vae.config.scaling_factor)
    torch.testing.assert_close(after.std, before.std * scale[:, None, None])


def test_average_is_the_weighted_sum_of_what_it_saw() -> None:
    module, copy = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    nn.init.constant_(module.weight, 1.0)
    average = Average(module, copy, 0.25)
    assert copy.weight.item() == 1
    nn.init.constant_(module.weight, 3.0)
    average.update()  # the first decay is (1 + 1) / (10 + 1)
    assert copy.weight.item() == pytest.approx(2 / 11 * 1 + 9 / 11 * 3)
    nn.init.constant_(module.weight, 5.0)
    average.update()  # (1 + 2) / (10 + 2) is the decay asked for, and the next ones are held to it
    second = 0.25 * (2 / 11 + 27 / 11) + 0.75 * 5
    assert copy.weight.item() == pytest.approx(second)
    average.update()
    assert copy.weight.item() == pytest.approx(0.25 * second + 0.75 * 5)
    assert not copy.weight.requires_grad


def samples(weights: list[float], captions: list[list[str]]) -> Samples:
    images = np.zeros((len(weights), 128, 128, 3), np.uint8)
    images[0] = 255
    ids = {caption: i for i, caption in enumerate(sorted({c for variants in captions for c in variants}))}
    return Samples(Dataset(images, captions, np.array(weights, np.float32), ["3d"] * len(weights)), ids, "cpu")


def test_draw_respects_weights_and_gives_captions_of_the_picture() -> None:
    torch.manual_seed(0)
    drawn = samples([1.0, 0.0, 3.0], [["a", "b"], ["c"], ["d", "e", "a"]])  # ids a 0, b 1, c 2, d 3, e 4
    picture, caption = drawn.draw(8000)
    assert set(zip(picture.tolist(), caption.tolist(), strict=True)) == {(0, 0), (0, 1), (2, 0), (2, 3), (2, 4)}
    share = torch.bincount(picture, minlength=3) / 8000
    torch.testing.assert_close(share, torch.tensor([0.25, 0.0, 0.75]), rtol=0, atol=0.02)
    variants = torch.bincount(caption[picture == 2], minlength=5) / (picture == 2).sum()
    torch.testing.assert_close(variants, torch.tensor([1, 0, 0, 1, 1]) / 3, rtol=0, atol=0.03)


def test_pixels_lie_between_minus_1_and_1() -> None:
    pixels = samples([1.0, 1.0], [["a"], ["b"]]).pixels(torch.tensor([1, 0]))
    assert pixels.shape == (2, 3, 128, 128)
    assert pixels.mean((1, 2, 3)).tolist() == [-1, 1]


def test_the_saved_vocabulary_gives_the_same_ids(tmp_path: Path) -> None:
    trained = tokenizer.train(CAPTIONS)
    tokenizer.save(trained, tmp_path)
    read = CLIPTokenizer(vocab=str(tmp_path / "vocab.json"), merges=str(tmp_path / "merges.txt"))
    texts = [*CAPTIONS, "", "never seen: ünïcode 42!"]
    assert len(trained) == len(read) == configs.VOCAB_SIZE
    ids = [trained(text).input_ids for text in texts]
    assert ids == [read(text).input_ids for text in texts] == CLIPTokenizer.from_pretrained(tmp_path)(texts).input_ids
    assert ids[-2] == [configs.VOCAB_SIZE - 2, configs.VOCAB_SIZE - 1]
    assert len(ids[1]) == 5, "words seen in training are one token each"


def test_equal_captions_share_their_target() -> None:
    """Captions 0 and 1 are the same, so either picture is right for both: half the weight each."""
    rows = [[2.0, 1.0, 0.0], [0.0, 3.0, 1.0], [1.0, 0.0, 4.0]]
    weights = [[0.5, 0.5, 0.0], [0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]

    def cross_entropy(logits: list[list[float]]) -> float:
        sums = [math.log(sum(map(math.exp, row))) for row in logits]
        terms = [
            w * (total - x)
            for row, ws, total in zip(logits, weights, sums, strict=True)
            for x, w in zip(row, ws, strict=True)
        ]
        return sum(terms) / len(logits)

    columns = [list(column) for column in zip(*rows, strict=True)]
    loss = contrastive_loss(torch.tensor(rows), torch.tensor([7, 7, 9]))
    assert loss.item() == pytest.approx((cross_entropy(rows) + cross_entropy(columns)) / 2)


def test_the_four_networks_fit_into_32_mb() -> None:
    networks = (configs.text_encoder(), configs.image_encoder(), configs.vae(), configs.unet())
    parameters = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    assert [round(count / 1e6, 1) for count in parameters] == [2.5, 0.8, 3.5, 9.0]
    assert 2 * sum(parameters) < 32e6
