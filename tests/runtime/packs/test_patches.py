"""Deltas within files: what is the same is taken from the base, weights with LoRAs added are computed."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgediffusion.engines.errors import BundleError
from edgediffusion.engines.spec import Array
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.low_rank import FACTORS, FLOATS, FactorFile, factor_names, fuse
from edgediffusion.runtime.manifest import MANIFEST, FileRecord, Manifest
from edgediffusion.runtime.packs.patches import Patch, Piece
from edgediffusion.runtime.packs.read import open_pack
from edgediffusion.runtime.packs.record import new_name
from edgediffusion.runtime.packs.unpack import unpack
from edgediffusion.runtime.packs.write import pack_bundle
from edgediffusion.runtime.tensors import encode, read_header

from .conftest import CONTENT, Forge, record_of

UNET, LORA = "unet/diffusion_pytorch_model.safetensors", f"unet/{FACTORS}"
RANDOM = np.random.default_rng(0)
WEIGHT = (300, 200)
Tensors = dict[str, tuple[str, Array]]


def write(path: Path, tensors: Tensors) -> None:
    """A safetensors file of float32 values, stored in the dtype beside them."""
    header, content = {}, b""
    for name, (dtype, values) in tensors.items():
        raw = encode(values.astype(np.float32), dtype)
        header[name] = {
            "dtype": dtype,
            "shape": values.shape,
            "data_offsets": (len(content), len(content) + len(raw)),
        }
        content += raw
    text = json.dumps(header).encode()
    path.write_bytes(len(text).to_bytes(8, "little") + text + content)


def list_files(bundle: Path, *names: str) -> None:
    """Have the manifest name them, as they are."""
    manifest = json.loads((bundle / MANIFEST).read_text())
    for name in names:
        manifest["files"][name] = asdict(record(bundle / name))
    (bundle / MANIFEST).write_text(json.dumps(manifest))


def record(path: Path) -> FileRecord:
    return FileRecord(bytes=path.stat().st_size, sha256=hashlib.sha256(path.read_bytes()).hexdigest())


def weights(dtype: str) -> Tensors:
    return {
        "bias": ("F32", RANDOM.standard_normal(7)),
        "to_q.weight": (dtype, RANDOM.standard_normal(WEIGHT)),
        "rest": (dtype, RANDOM.standard_normal((50, 1000))),
    }


def lora(rank: int, index: int = 0) -> Tensors:
    up, down, scale = factor_names("to_q.weight", index)
    return {
        up: ("F16", RANDOM.standard_normal((WEIGHT[0], rank))),
        down: ("BF16", RANDOM.standard_normal((rank, WEIGHT[1]))),
        scale: ("F32", np.array(0.7)),
    }


def add_lora(unet: Path, dtype: str, factors: Tensors) -> None:
    """To the weight, as an export does."""
    write(unet.parent / FACTORS, factors)
    content, at = bytearray(unet.read_bytes()), read_header(unet)[1]["to_q.weight"]
    with unet.open("rb") as file:
        file.seek(at.offset)
        content[at.offset : at.offset + at.length] = b"".join(
            fuse(file, dtype, FactorFile(unet.parent / FACTORS).of("to_q.weight"))
        )
    unet.write_bytes(content)


@pytest.fixture
def based(bundle_path: Path, tmp_path: Path) -> Path:
    """base.edz, of the bundle with weights in float16."""
    write(bundle_path / UNET, weights("F16"))
    list_files(bundle_path, UNET)
    pack_bundle(bundle_path, tmp_path / "base.edz")
    return tmp_path / "base.edz"


@pytest.fixture
def delta(based: Path, bundle_path: Path, tmp_path: Path) -> Path:
    """delta.edz, of the bundle with a LoRA, by base.edz."""
    add_lora(bundle_path / UNET, "F16", lora(4))
    list_files(bundle_path, UNET, LORA)
    pack_bundle(bundle_path, tmp_path / "delta.edz", since=open_pack(based))
    return tmp_path / "delta.edz"


def assert_arrives(delta: Path, base: Path, bundle: Path) -> None:
    open_pack(delta).check()
    folder = delta.with_suffix(".there")
    unpack(open_pack(delta), folder, base)
    for name in Manifest.read(bundle).files:
        assert (folder / name).read_bytes() == (bundle / name).read_bytes(), name


def test_weights_that_changed(
    based: Path, bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One other, one with rows behind it, one new, one gone; and a file that is no safetensors file."""
    tensors = weights("F16")
    write(bundle_path / UNET, tensors)
    (bundle_path / "unet" / "model.onnx").write_bytes(text := RANDOM.bytes(300_000))
    list_files(bundle_path, UNET, "unet/model.onnx")
    base = tmp_path / "second.edz"
    pack_bundle(bundle_path, base)
    dtype, rest = tensors.pop("rest")
    longer = {"rest": (dtype, np.concatenate([rest, RANDOM.standard_normal((2, 1000))]))}
    del tensors["bias"]
    tensors["to_q.weight"] = ("F16", RANDOM.standard_normal(WEIGHT))
    write(bundle_path / UNET, {"added": ("F32", np.ones(9)), **longer, **tensors})
    (bundle_path / "unet" / "model.onnx").write_bytes(text[:100_000] + b"inserted" + text[100_000:])
    list_files(bundle_path, UNET, "unet/model.onnx")
    command = ["pack", str(bundle_path), "-o", str(tmp_path / "delta.edz"), "--since", str(base)]
    assert main(command) == 0
    assert "delta.edz: 1 of 15 files, and 2 in part, " in capsys.readouterr().out
    pack = open_pack(tmp_path / "delta.edz")
    header = read_header(bundle_path / UNET)[1]["added"].offset
    new = {name: len(view) for name, view in pack.root.members.items() if name != MANIFEST}
    assert new == {
        new_name(UNET): header + 9 * 4 + 2 * 1000 * 2 + 2 * WEIGHT[0] * WEIGHT[1],
        new_name("unet/model.onnx"): len("inserted"),
    }
    assert_arrives(tmp_path / "delta.edz", base, bundle_path)


@pytest.mark.parametrize("dtype", FLOATS)
def test_loras(dtype: str, bundle_path: Path, tmp_path: Path) -> None:
    """Two in one weight: what the delta has is their factors."""
    write(bundle_path / UNET, weights(dtype))
    list_files(bundle_path, UNET)
    pack_bundle(bundle_path, tmp_path / "base.edz")
    add_lora(bundle_path / UNET, dtype, lora(4) | lora(1, 1))
    list_files(bundle_path, UNET, LORA)
    pack_bundle(bundle_path, tmp_path / "delta.edz", since=open_pack(tmp_path / "base.edz"))
    members = open_pack(tmp_path / "delta.edz").root.members
    assert members.keys() == {MANIFEST, LORA, new_name(UNET)}
    assert len(members[new_name(UNET)]) == 0
    assert_arrives(tmp_path / "delta.edz", tmp_path / "base.edz", bundle_path)


def test_a_lora_is_what_it_says(tmp_path: Path) -> None:
    """In float64, but for the rounding of eight sums and of the result to float16."""
    write(tmp_path / "w", {"to_q.weight": ("F16", base := RANDOM.standard_normal(WEIGHT).astype(np.float16))})
    add_lora(tmp_path / "w", "F16", factors := lora(8))
    (up, down, _), at = (values for _, values in factors.values()), read_header(tmp_path / "w")[1]["to_q.weight"]
    got = np.frombuffer((tmp_path / "w").read_bytes()[at.offset :], np.float16).reshape(WEIGHT)
    stored = np.frombuffer(encode(down.astype(np.float32), "BF16"), np.uint16).astype(np.uint32) << 16
    exact = base + 0.7 * up.astype(np.float16).astype(float) @ stored.view(np.float32).astype(float).reshape(8, -1)
    np.testing.assert_allclose(got, exact, rtol=2**-11, atol=1e-5)


def test_factors_that_do_not_make_the_weight(based: Path, bundle_path: Path, tmp_path: Path) -> None:
    """Then it is held, so nothing rests on them."""
    add_lora(bundle_path / UNET, "F16", lora(4))
    write(bundle_path / LORA, lora(4))
    list_files(bundle_path, UNET, LORA)
    pack_bundle(bundle_path, tmp_path / "delta.edz", since=open_pack(based))
    assert len(open_pack(tmp_path / "delta.edz").root.members[new_name(UNET)]) == 2 * WEIGHT[0] * WEIGHT[1]
    assert_arrives(tmp_path / "delta.edz", based, bundle_path)


def test_factors_that_are_patched_themselves(delta: Path, bundle_path: Path, tmp_path: Path) -> None:
    """They are there before the weights that they are added to."""
    tensors = {"first": ("F32", RANDOM.standard_normal((100, 200))), **lora(8)}
    write(bundle_path / UNET, weights("F16"))
    write(bundle_path / LORA, tensors)
    list_files(bundle_path, UNET, LORA)
    pack_bundle(bundle_path, tmp_path / "second.edz")
    add_lora(bundle_path / UNET, "F16", {"first": tensors["first"], **lora(2)})
    list_files(bundle_path, UNET, LORA)
    pack_bundle(bundle_path, tmp_path / "third.edz", since=open_pack(tmp_path / "second.edz"))
    assert open_pack(tmp_path / "third.edz").record.patches.keys() == {UNET, LORA}
    assert_arrives(tmp_path / "third.edz", tmp_path / "second.edz", bundle_path)


def test_another_base(delta: Path, bundle_path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Another of the same size, one that is damaged, one without the file."""
    write(bundle_path / UNET, weights("F16"))
    list_files(bundle_path, UNET)
    command = ["unpack", str(delta), "-o", str(tmp_path / "there"), "--base", str(bundle_path)]
    for _ in range(2):
        assert main(command) == 2
        assert f"bundle/{UNET}: altered, or of another model; name the pack that this one" in capsys.readouterr().err
        assert not (tmp_path / "there" / MANIFEST).exists()
        assert not (tmp_path / "there" / UNET).exists()
        (bundle_path / UNET).unlink(missing_ok=True)


def test_a_damaged_base_is_no_base(based: Path, bundle_path: Path, tmp_path: Path) -> None:
    content = based.read_bytes()
    based.write_bytes(content.replace((bundle_path / UNET).read_bytes()[-50:], bytes(50)))
    write(bundle_path / UNET, weights("F16"))
    list_files(bundle_path, UNET)
    with pytest.raises(BundleError, match=rf"base\.edz/{UNET}: altered, SHA-256 .*; copy the pack again"):
        pack_bundle(bundle_path, tmp_path / "delta.edz", since=open_pack(based))
    assert not (tmp_path / "delta.edz").exists()


def test_new_bytes_that_were_altered(bundle_path: Path, tmp_path: Path) -> None:
    base, path, tensors = tmp_path / "base.edz", tmp_path / "delta.edz", weights("F16")
    write(bundle_path / UNET, tensors)
    list_files(bundle_path, UNET)
    pack_bundle(bundle_path, base)
    write(bundle_path / UNET, tensors | {"rest": ("F16", np.full((50, 1000), 0.5))})
    list_files(bundle_path, UNET)
    pack_bundle(bundle_path, path, since=open_pack(base))
    path.write_bytes(path.read_bytes().replace(b"\x00\x38" * 50, b"\x00\x39" * 50))
    with pytest.raises(BundleError, match=r"delta\.edz/\.new/unet/.*: altered, SHA-256 .* copy the pack again"):
        open_pack(path).check()
    with pytest.raises(BundleError, match=rf"delta\.edz/{UNET}: altered, or of another model; copy the pack again"):
        unpack(open_pack(path), tmp_path / "there", base)
    assert not (tmp_path / "there" / UNET).exists()


def test_it_goes_on_where_it_stopped(delta: Path, based: Path, bundle_path: Path, tmp_path: Path) -> None:
    unpack(open_pack(delta), tmp_path / "there", based)
    (tmp_path / "there" / MANIFEST).unlink()
    (tmp_path / "there" / UNET).unlink()
    assert unpack(open_pack(delta), tmp_path / "there", based) == [UNET, MANIFEST]
    assert (tmp_path / "there" / UNET).read_bytes() == (bundle_path / UNET).read_bytes()


NONE: dict[str, Any] = {"bytes": 0, "sha256": hashlib.sha256(b"").hexdigest()}
THREE = {"bytes": 3, "sha256": hashlib.sha256(b"{}\n").hexdigest()}


@pytest.mark.parametrize(
    ("pieces", "new"),
    [
        ([], NONE),
        ([{"bytes": 4, "base": 0}], NONE),
        ([{"bytes": 3, "base": 1}], NONE),
        ([{"bytes": 3, "base": -1}], NONE),
        ([{"bytes": 5, "base": 0}, {"bytes": -2, "base": 0}], NONE),
        ([{"bytes": 3}], NONE),
        ([{"bytes": 3, "base": 0, "weight": "w", "dtype": "I8"}], NONE),
        ([{"bytes": 3, "weight": "w", "dtype": "F32"}], THREE),
    ],
)
def test_patches_that_make_no_such_file(forge: Forge, pieces: list[dict[str, Any]], new: dict[str, Any]) -> None:
    patches = {"unet/config.json": {"base": THREE, "new": new, "pieces": pieces}}
    with pytest.raises(BundleError, match=r"the patch of unet/config\.json makes no such file"):
        open_pack(forge(record=record_of(CONTENT, schema=2, since="0", patches=patches)))


def test_a_patch_of_no_delta(forge: Forge) -> None:
    patches = {"unet/config.json": {"base": THREE, "new": NONE, "pieces": [{"bytes": 3, "base": 0}]}}
    open_pack(forge(record=record_of(CONTENT, schema=2, since="0", patches=patches)))
    with pytest.raises(BundleError, match=r"the patch of unet/config\.json makes no such file"):
        open_pack(forge(record=record_of(CONTENT, schema=2, patches=patches)))


@pytest.mark.parametrize(
    ("factors", "message"),
    [
        (None, "No such file"),
        ({}, r"w\.0\.down is missing"),
        ({"up": (3, 2), "down": (3, 4)}, r"factors of \(3, 2\) and \(3, 4\) for a weight of \(3, 4\)"),
        ({"up": (0, 2), "down": (2, 4)}, "reshape"),
        ({"up": (3, 2), "down": (2, 4), "scale": (2,)}, "size 1"),
        ({"up": (30, 2), "down": (2, 4)}, r"the weight ends after 48 of 480 bytes"),
    ],
)
def test_factors_that_make_no_sense(
    forge: Forge, tmp_path: Path, factors: dict[str, tuple[int, ...]] | None, message: str
) -> None:
    """In a pack that is made up: one line, nothing written."""
    base = tmp_path / "base"
    (base / "unet").mkdir(parents=True)
    (base / "unet" / "w").write_bytes(bytes(48))
    contents = {MANIFEST: b"{}"}
    if factors is not None:
        shapes = factors and {"scale": ()} | factors
        write(tmp_path / "f", {f"w.0.{name}": ("F32", np.ones(shape)) for name, shape in shapes.items()})
        contents[LORA] = (tmp_path / "f").read_bytes()
    patch = Patch(
        base=record(base / "unet" / "w"),
        new=FileRecord(**NONE),
        pieces=[Piece(bytes=48, base=0, weight="w", dtype="F32")],
    )
    told = record_of({**contents, "unet/w": bytes(48)}, schema=2, since="0", patches={"unet/w": asdict(patch)})
    path = forge([*contents.items(), (new_name("unet/w"), b"")], record=told)
    with pytest.raises(
        BundleError, match=rf"forged\.edz: unet/w cannot be made \(.*{message}.*\); copy the pack again"
    ):
        unpack(open_pack(path), tmp_path / "there", base)
    assert not (tmp_path / "there" / "unet" / "w").exists()
