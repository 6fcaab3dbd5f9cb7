"""What deltas weigh, as JSON: a bundle with another scheduler config, a textual inversion, a LoRA, told by the bundle.

Arguments: SOURCE FOLDER [CASE ...], a case being scheduler, embedding, or lora-RANK. The bundle of the checkpoint
SOURCE goes to FOLDER/base, unless it is there, the packs beside it. LoRAs are of the UNet's attention (to_q, to_k,
to_v, to_out), random and in float16; so is the textual inversion, of one token. Each delta is unpacked, and compared
with its bundle byte for byte.
"""

import json
import shutil
import sys
import time
from dataclasses import asdict
from pathlib import Path

import torch
from safetensors.torch import save_file

from edgediffusion.export.options import Options
from edgediffusion.export.sources import Source, open_source
from edgediffusion.export.write_bundle import export_bundle
from edgediffusion.runtime.doctor import examine
from edgediffusion.runtime.manifest import MANIFEST, FileRecord
from edgediffusion.runtime.packs.read import open_pack
from edgediffusion.runtime.packs.unpack import unpack
from edgediffusion.runtime.packs.write import pack_bundle

SCHEDULER = "scheduler/scheduler_config.json"
ATTENTION = (".to_q.weight", ".to_k.weight", ".to_v.weight", ".to_out.0.weight")
TOKENS = "token_embedding.weight"


CASES = ("scheduler", "embedding", "lora-4", "lora-16", "lora-64")


def write_lora(source: Source, rank: int, path: Path) -> Options:
    """A new file, and the options of an export with it."""
    tensors = {}
    for key, weight in source.parts["unet"].weights.items():
        if key.endswith(ATTENTION):
            name, (outputs, inputs) = key.removesuffix(".weight"), weight.shape
            tensors[f"unet.{name}.lora_A.weight"] = torch.randn(rank, inputs).half() / inputs**0.5
            tensors[f"unet.{name}.lora_B.weight"] = torch.randn(outputs, rank).half() / rank**0.5
    save_file(tensors, path)
    return Options(loras=((path, 0.8),))


def write_embedding(source: Source, path: Path) -> Options:
    """As `write_lora`."""
    weights = source.parts["text_encoder"].weights
    (width,) = {weight.shape[1] for key, weight in weights.items() if key.endswith(TOKENS)}
    save_file({"<new>": torch.randn(1, width).half()}, path)
    return Options(embeddings=(path,))


def with_other_scheduler(base: Path, folder: Path) -> None:
    """The bundle `base` with another scheduler config."""
    shutil.copytree(base, folder)
    config = json.loads((folder / SCHEDULER).read_text())
    (folder / SCHEDULER).write_text(json.dumps(config | {"timestep_spacing": "linspace"}))
    manifest, record = json.loads((folder / MANIFEST).read_text()), FileRecord.of(folder / SCHEDULER)
    manifest["files"][SCHEDULER] = {"bytes": record.bytes, "sha256": record.sha256}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2))


def measure(base: Path, bundle: Path) -> dict[str, object]:
    """The delta of `bundle` since `base`, a pack, written beside it."""
    path = bundle.with_suffix(".edz")
    path.unlink(missing_ok=True)
    started = time.monotonic()
    record = pack_bundle(bundle, path, since=open_pack(base))
    packed = time.monotonic()
    there = bundle.with_suffix(".unpacked")
    unpack(open_pack(path), there, base)
    unpacked = time.monotonic()
    for name in record.files:
        assert (there / name).read_bytes() == (bundle / name).read_bytes(), name
    shutil.rmtree(there)
    since = open_pack(base).record.files
    whole = sum(file.bytes for name, file in record.files.items() if since.get(name) != file)
    members = {name: len(view) for name, view in open_pack(path).root.members.items()}
    return {
        "bytes": path.stat().st_size,
        "bytes_of_changed_files": whole,
        "seconds": {"pack": packed - started, "unpack": unpacked - packed},
        "largest": dict(sorted(members.items(), key=lambda item: -item[1])[:6]),
    }


def write_bundle(case: str, source: Path, base: Path, folder: Path) -> None:
    """The bundle of `source`, or `base` where that takes no export, as `case` has it."""
    if case == "scheduler":
        with_other_scheduler(base, folder)
        return
    _, _, rank = case.partition("-")
    path, opened = folder.with_suffix(".safetensors"), open_source(source)
    export_bundle(source, folder, write_lora(opened, int(rank), path) if rank else write_embedding(opened, path))


if __name__ == "__main__":
    checkpoint, out = Path(sys.argv[1]), Path(sys.argv[2])
    out.mkdir(exist_ok=True)
    if not (out / "base").exists():
        export_bundle(checkpoint, out / "base")
    if not (out / "base.edz").exists():
        pack_bundle(out / "base", out / "base.edz")
    figures: dict[str, object] = {"base": (out / "base.edz").stat().st_size}
    for name in sys.argv[3:] or CASES:
        write_bundle(name, checkpoint, out / "base", out / name)
        figures[name] = measure(out / "base.edz", out / name)
        shutil.rmtree(out / name)
    figures["environment"] = asdict(examine())
    sys.stdout.write(json.dumps(figures, indent=2) + "\n")
