"""Record what torch's CUDA generator draws on the GPU of this machine, for tests/runtime/test_noise.py: JSON.

From a clone: PYTHONPATH=.dev python bench/scripts/record_cuda_noise.py tests/golden/torch_cuda_noise.json
"""

from __future__ import annotations

import base64
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch

from edgediffusion.runtime.noise_torch import TorchCudaNoise

SEEDS = (0, 1, 2**40 + 7, 2**63 - 1)
# Drawn one after the other from one generator. The largest has more values than any GPU has threads, so its layout
# depends on the number of multiprocessors, and what follows shows that the offset is right after it.
SHAPES = ((1, 4, 64, 64), (1,), (3,), (7,), (16,), (1, 4, 128, 128), (1, 4, 600, 600), (5,))
SAMPLES = 256
INTEGERS = 512


def positions(size: int) -> list[int]:
    """Which values of a tensor are recorded: all of a small one, else evenly spread ones, first and last among them."""
    spread: list[int] = np.linspace(0, size - 1, min(size, SAMPLES)).astype(int).tolist()
    return spread


def text(values: Any) -> str:
    """The bits, little-endian, as base64."""
    return base64.b64encode(values.cpu().numpy().tobytes()).decode()


def generator(seed: int) -> torch.Generator:
    """A new one on the GPU."""
    return torch.Generator("cuda").manual_seed(seed)


def integers(seed: int) -> str:
    """The first integers of 64 bits."""
    empty = torch.empty(INTEGERS, dtype=torch.int64, device="cuda")
    return text(empty.random_(-(2**63), None, generator=generator(seed)))


def draws(seed: int, noise: TorchCudaNoise) -> list[dict[str, Any]]:
    """Of each shape: the recorded values, and over all values how far `noise`, ours, is from torch's."""
    torch_generator = generator(seed)
    result = []
    for shape in SHAPES:
        theirs = torch.randn(shape, generator=torch_generator, device="cuda", dtype=torch.float32).flatten()
        ours = noise.normal((math.prod(shape),))[0]
        difference = np.abs(ours.astype(np.float64) - theirs.cpu().numpy())
        result.append(
            {
                "shape": shape,
                "positions": positions(theirs.numel()),
                "float32": text(theirs[positions(theirs.numel())]),
                "largest_difference": float(difference.max()),
                "different": int((difference > 0).sum()),
            }
        )
    return result


def main(path: Path) -> None:
    """Write the JSON, and print the largest difference between ours and torch's."""
    gpu: Any = torch.cuda.get_device_properties(0)
    settings = {
        "multiprocessors": gpu.multi_processor_count,
        "threads_per_multiprocessor": gpu.max_threads_per_multi_processor,
    }
    seeds: list[dict[str, Any]] = [
        {"seed": seed, "int64": integers(seed), "draws": draws(seed, TorchCudaNoise(seed, **settings))}
        for seed in SEEDS
    ]
    facts = {"device": gpu.name, "torch": torch.__version__, "cuda": torch.version.cuda}
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**facts, **settings, "seeds": seeds}) + "\n", encoding="utf-8")
    for draw in (draw for seed in seeds for draw in seed["draws"]):
        sys.stdout.write(f"{draw['shape']}: largest difference {draw['largest_difference']:.2g}, ")
        sys.stdout.write(f"{draw['different']} of {math.prod(draw['shape'])} differ\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
