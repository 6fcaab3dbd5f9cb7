"""A bundle whose graphs are Python functions: the same files and the same checks, no weights and no backend."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from edgediffusion.engines.base import Building
from edgediffusion.engines.fake import FakeEngine
from edgediffusion.engines.registry import BACKENDS
from edgediffusion.engines.spec import Array, GraphSpec, TensorSpec
from edgediffusion.runtime import bundle as bundle_module
from edgediffusion.runtime.manifest import MANIFEST, FileRecord, GraphRecord, Manifest, Parity

WIDTH = 8
WORDS = ("red", "apple", "blue", "car", "rocket")
WEIGHTS = {"text_encoder": "model.safetensors"}
CONFIGS: dict[str, dict[str, Any]] = {
    "model_index.json": {"_class_name": "StableDiffusionPipeline"},
    "unet/config.json": {"sample_size": 2, "in_channels": 4},
    "vae_decoder/config.json": {"block_out_channels": [8, 8, 8, 8], "scaling_factor": 0.5},
    "scheduler/scheduler_config.json": {"_class_name": "EulerDiscreteScheduler", "beta_schedule": "scaled_linear"},
    "tokenizer/tokenizer_config.json": {"model_max_length": 77},
}
SPECS = {
    "text_encoder": GraphSpec(
        "text_encoder",
        (TensorSpec("input_ids", "int64", ("batch", 77)),),
        (TensorSpec("last_hidden_state", "float32", ("batch", 77, WIDTH)),),
    ),
    "unet": GraphSpec(
        "unet",
        (
            TensorSpec("sample", "float32", ("batch", 4, "height", "width")),
            TensorSpec("timestep", "float32", (1,)),
            TensorSpec("encoder_hidden_states", "float32", ("batch", "sequence_length", WIDTH)),
        ),
        (TensorSpec("out_sample", "float32", ("batch", 4, "height", "width")),),
    ),
    "vae_decoder": GraphSpec(
        "vae_decoder",
        (TensorSpec("latent_sample", "float32", ("batch", 4, "height", "width")),),
        (TensorSpec("sample", "float32", ("batch", 3, "image_height", "image_width")),),
    ),
    "vae_encoder": GraphSpec(
        "vae_encoder",
        (TensorSpec("sample", "float32", ("batch", 3, "image_height", "image_width")),),
        (TensorSpec("latent_parameters", "float32", ("batch", 8, "height", "width")),),
    ),
}


def text_encoder(feeds: Mapping[str, Array]) -> dict[str, Array]:
    angles = feeds["input_ids"][..., None] * np.arange(1, WIDTH + 1)
    return {"last_hidden_state": np.sin(angles).astype(np.float32)}


def unet(feeds: Mapping[str, Array]) -> dict[str, Array]:
    """Noise around a picture that depends on the words, so that pictures stay within range."""
    sample = feeds["sample"]
    words = feeds["encoder_hidden_states"][:, :8].mean(axis=(1, 2))[:, None, None, None]
    time = np.cos(feeds["timestep"] / 300)
    return {"out_sample": (sample - 0.02 * words + 0.01 * np.tanh(sample) * time).astype(np.float32)}


def vae_decoder(feeds: Mapping[str, Array]) -> dict[str, Array]:
    return {"sample": np.tanh(0.3 * feeds["latent_sample"][:, :3]).repeat(8, axis=2).repeat(8, axis=3)}


def vae_encoder(feeds: Mapping[str, Array]) -> dict[str, Array]:
    return {"latent_parameters": np.repeat(feeds["sample"][:, :1, ::8, ::8], 8, axis=1)}


FUNCTIONS: dict[str, Callable[[Mapping[str, Array]], dict[str, Array]]] = {
    "text_encoder": text_encoder,
    "unet": unet,
    "vae_decoder": vae_decoder,
    "vae_encoder": vae_encoder,
}


@dataclass
class Opened:
    """What the runtime did with engines: names in the order of opening, their dialects, and the feeds of each call."""

    names: list[str] = field(default_factory=list)
    calls: list[tuple[str, dict[str, Array]]] = field(default_factory=list)
    engines: dict[str, FakeEngine] = field(default_factory=dict)
    dialects: dict[str, dict[str, Path]] = field(default_factory=dict)

    def open(
        self,
        model: Path,
        spec: GraphSpec,
        *,
        backend: str,
        device: str,
        dialects: Mapping[str, Path],
        building: Building,
    ) -> FakeEngine:
        assert backend in BACKENDS
        self.dialects[spec.name] = dict(dialects)
        assert model.read_bytes() == b"graph"

        def function(feeds: Mapping[str, Array]) -> dict[str, Array]:
            self.calls.append((spec.name, dict(feeds)))
            return FUNCTIONS[spec.name](feeds)

        self.names.append(spec.name)
        self.engines[spec.name] = FakeEngine(spec, function)
        return self.engines[spec.name]


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> Opened:
    """Engines are fake ones while this fixture is in use."""
    opened = Opened()
    monkeypatch.setattr(bundle_module, "open_engine", opened.open)
    return opened


@pytest.fixture(scope="session")
def clip_tokenizer() -> Tokenizer:
    """A BPE in CLIP's manner, in which a few words are one token and all else is bytes."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges: list[tuple[str, str]] = []
    for word in WORDS:
        left, *rest = [*word[:-1], word[-1] + "</w>"]
        for piece in rest:
            merges.append((left, piece))
            left += piece
    tokens = [*alphabet, *(sign + "</w>" for sign in alphabet), *("".join(pair) for pair in merges)]
    vocab = {token: i for i, token in enumerate(["<|startoftext|>", "<|endoftext|>", *dict.fromkeys(tokens)])}
    bpe = models.BPE(vocab, list(dict.fromkeys(merges)), unk_token="<|endoftext|>", end_of_word_suffix="</w>")
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence([normalizers.NFC(), normalizers.Lowercase()])
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Whitespace(), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    return tokenizer


@pytest.fixture
def bundle_path(tmp_path: Path, clip_tokenizer: Tokenizer) -> Path:
    """The folder of a whole bundle; its weights are a few bytes."""
    path = tmp_path / "bundle"
    files = {name: json.dumps(config).encode() for name, config in CONFIGS.items()}
    files["tokenizer/tokenizer.json"] = clip_tokenizer.to_str().encode()
    graphs = {}
    for name, spec in SPECS.items():
        graph = GraphRecord(
            model=f"{name}/model.onnx",
            weights=f"{name}/{WEIGHTS.get(name, 'diffusion_pytorch_model.safetensors')}",
            spec=spec,
            parity=Parity(error=0.0, tolerance=1e-4, worst="zeros"),
            dtype="float32",
            weights_dtype="float32",
        )
        files[graph.model] = b"graph"
        files[graph.weights] = b"weights of " + name.encode()
        graphs[name] = graph
    for name, content in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(content)
    manifest = Manifest(
        family="sd",
        source="a test",
        source_sha256={},
        opset=18,
        license="Apache-2.0",
        versions={},
        graphs=graphs,
        files={
            name: FileRecord(bytes=len(content), sha256=hashlib.sha256(content).hexdigest())
            for name, content in files.items()
        },
    )
    (path / MANIFEST).write_text(manifest.to_json())
    return path


@pytest.fixture
def bundle(bundle_path: Path, opened: Opened) -> str:
    """A bundle that fake engines run."""
    return str(bundle_path)


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a command runs: an empty folder."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return tmp_path / "here"


def names(folder: Path) -> list[str]:
    """Of the files there."""
    return sorted(path.name for path in folder.iterdir())
