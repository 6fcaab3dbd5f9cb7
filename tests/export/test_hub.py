"""Repositories of the hub, without a network: a cache as the hub lays it out, and a hub that is played."""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import huggingface_hub
import pytest
from huggingface_hub.errors import GatedRepoError, RepositoryNotFoundError

from edgediffusion.engines.errors import BackendUnavailable, ExportError
from edgediffusion.export.sources import open_source
from edgediffusion.export.sources.hub import wanted

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The cache of a machine without a network that once had owner/tiny."""
    repository = tmp_path / "hub" / "models--owner--tiny"
    shutil.copytree(checkpoint, repository / "snapshots" / COMMIT)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


def test_what_is_cached_is_read(cache: Path) -> None:
    source = open_source("owner/tiny")
    assert (source.name, source.family, source.license()) == ("owner/tiny", "sd", "apache-2.0")
    assert {"unet", "vae", "text_encoder"} <= source.parts.keys()
    assert open_source("owner/tiny", COMMIT).parts == source.parts


@pytest.mark.parametrize(("name", "revision"), [("owner/other", None), ("owner/tiny", "v2")])
def test_what_is_not_cached(cache: Path, name: str, revision: str | None) -> None:
    with pytest.raises(ExportError, match=f"{name}: no such folder, the hub cannot be reached, and its cache doesn't"):
        open_source(name, revision)
    assert logging.getLogger("huggingface_hub").level == logging.ERROR


NAMES = [
    "README.md",
    "model_index.json",
    "sd-v1.safetensors",
    "safety_checker/config.json",
    "safety_checker/model.safetensors",
    "scheduler/scheduler_config.json",
    "text_encoder/config.json",
    "text_encoder/model.safetensors",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "tokenizer/merges.txt",
    "tokenizer/vocab.json",
    "unet/config.json",
    "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
    "unet/diffusion_pytorch_model-00002-of-00002.safetensors",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/diffusion_pytorch_model.safetensors.index.json",
    "unet/model.onnx",
    "vae/config.json",
    "vae/diffusion_pytorch_model.fp16.safetensors",
]
LEFT = {
    "sd-v1.safetensors",
    "text_encoder/model.fp16.safetensors",
    "text_encoder/pytorch_model.bin",
    "unet/diffusion_pytorch_model.fp16.safetensors",
    "unet/diffusion_pytorch_model.non_ema.safetensors",
    "unet/model.onnx",
}


def test_only_what_is_read_is_downloaded(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def download(name: str, *, revision: str | None, allow_patterns: list[str]) -> str:
        asked.extend((name, revision, set(allow_patterns)))
        return str(checkpoint)

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", lambda self, name, revision: NAMES)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert open_source("owner/tiny", "v1").name == "owner/tiny"
    assert asked == ["owner/tiny", "v1", set(NAMES) - LEFT]


def test_a_repository_of_one_component() -> None:
    names = ["config.json", "diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin"]
    assert set(wanted(names)) == set(names[:2])


@pytest.mark.parametrize("kind", [RepositoryNotFoundError, GatedRepoError])
def test_the_hub_refuses(monkeypatch: pytest.MonkeyPatch, kind: type[Exception]) -> None:
    def refuse(self: object, name: str, revision: str | None) -> list[str]:
        raise kind("Access to model owner/tiny is\nrestricted.", response=MagicMock())  # type: ignore[call-arg]

    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_files", refuse)
    message = (
        rf"owner/tiny: the hub refuses it \({kind.__name__}: .*; check its name and revision, or accept its licence"
    )
    with pytest.raises(ExportError, match=message) as caught:
        open_source("owner/tiny")
    assert "\n" not in str(caught.value)


def test_without_the_client(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(
        BackendUnavailable, match=r"the hub needs huggingface_hub; pip install 'edgediffusion\[export\]'"
    ):
        open_source("owner/tiny")
