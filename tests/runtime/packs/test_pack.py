from __future__ import annotations

import json
import struct
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest

from edgediffusion.engines import packed as packed_module
from edgediffusion.engines.errors import BundleError, UsageError
from edgediffusion.runtime import Bundle, Pipeline
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.manifest import MANIFEST, FileRecord
from edgediffusion.runtime.packs import write as write_module
from edgediffusion.runtime.packs.read import is_pack, open_pack
from edgediffusion.runtime.packs.record import MAX_BYTES, RECORD
from edgediffusion.runtime.packs.write import ALIGNMENT, pack_bundle
from edgediffusion.runtime.pipeline import BUILTIN

from ..conftest import Opened
from .conftest import CONTENT, Forge, record_of

Capture = pytest.CaptureFixture[str]
UNET = "unet/diffusion_pytorch_model.safetensors"


def test_any_tool_reads_a_pack(pack_path: Path, bundle_path: Path) -> None:
    with zipfile.ZipFile(pack_path) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names[0] == RECORD
        assert {name: archive.read(name) for name in names[1:]} == {
            path.relative_to(bundle_path).as_posix(): path.read_bytes()
            for path in bundle_path.rglob("*")
            if path.is_file()
        }


def test_files_begin_where_a_vector_register_does(pack_path: Path) -> None:
    opened = open_pack(pack_path)
    opened.check()
    assert len(opened.root.offsets) == len(opened.record.files) + 1
    assert {offset % ALIGNMENT for offset in opened.root.offsets.values()} == {0}


def test_a_large_file_has_the_longer_header_and_is_aligned(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(write_module, "_LARGE", 1)
    pack_bundle(bundle_path, tmp_path / "large.edz")
    opened = open_pack(tmp_path / "large.edz")
    opened.check()
    assert {offset % ALIGNMENT for offset in opened.root.offsets.values()} == {0}


def test_the_same_bundle_gives_the_same_bytes(pack_path: Path, bundle_path: Path, tmp_path: Path) -> None:
    pack_bundle(bundle_path, tmp_path / "again.edz")
    assert (tmp_path / "again.edz").read_bytes() == pack_path.read_bytes()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["again.edz", "bundle", "model.edz"]


def test_a_pack_draws_what_its_bundle_draws(pack_path: Path, bundle: str, folder: Path, opened: Opened) -> None:
    (drawn,) = Pipeline.load(bundle)("a red apple", seed=3)
    (packed,) = Pipeline.load(pack_path)("a red apple", seed=3)
    assert packed.parameters == drawn.parameters
    assert packed.image == drawn.image


def test_the_built_in_model_runs_packed(tmp_path: Path) -> None:
    """ONNX Runtime takes its weights from the pack: the same numbers, to the last bit."""
    pack_bundle(BUILTIN, tmp_path / "model.edz")
    feeds = {"input_ids": np.arange(77)[None]}
    with Bundle.open(tmp_path / "model.edz") as packed, Bundle.open(BUILTIN) as bundle:
        ours, theirs = (opened.engine("text_encoder")(feeds) for opened in (packed, bundle))
    assert ours.keys() == theirs.keys()
    assert all(np.array_equal(ours[name], theirs[name]) for name in ours)


def test_the_commands(pack_path: Path, bundle_path: Path, folder: Path, opened: Opened, capsys: Capture) -> None:
    assert main(["pack", str(bundle_path), "-o", "a.edz"]) == 0
    assert main(["generate", "a car", "--bundle", "a.edz", "--seed", "1"]) == 0
    assert main(["unpack", "a.edz", "-o", "there"]) == 0
    assert main(["unpack", "a.edz", "-o", "there"]) == 0
    size = Path("a.edz").stat().st_size
    assert capsys.readouterr().out == (
        f"a.edz: 15 of 15 files, {size} bytes\na-car.png\nthere: 15 of 15 files written, the others were there\n"
        "there: 0 of 15 files written, the others were there\n"
    )
    assert main(["inspect", "a.edz", "--json"]) == 0
    assert capsys.readouterr().out == (bundle_path / MANIFEST).read_text()


def test_target_without_engines(bundle_path: Path, folder: Path, capsys: Capture) -> None:
    assert main(["pack", str(bundle_path), "-o", "a.edz", "--target", "sm_87"]) == 2
    assert "--target chooses among engines; add --engines, or leave it out" in capsys.readouterr().err


def test_nothing_is_overwritten(pack_path: Path, bundle_path: Path) -> None:
    with pytest.raises(UsageError, match=r"model\.edz: is there already; choose another name, or take it away"):
        pack_bundle(bundle_path, pack_path)


def test_a_place_that_cannot_be_written(bundle_path: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"nowhere.model\.edz: there is no folder .*nowhere; make it first"):
        pack_bundle(bundle_path, tmp_path / "nowhere" / "model.edz")


@pytest.mark.parametrize(
    ("content", "message"), [(None, "missing"), (b"other weights", "altered, 13 bytes of SHA-256 .*, expected 15 of ")]
)
def test_a_damaged_bundle_is_not_packed(bundle_path: Path, tmp_path: Path, content: bytes | None, message: str) -> None:
    (bundle_path / UNET).unlink()
    if content is not None:
        (bundle_path / UNET).write_bytes(content)
    with pytest.raises(BundleError, match=f"{bundle_path / UNET}: {message}.*; copy or export the bundle again"):
        pack_bundle(bundle_path, tmp_path / "model.edz")
    assert [path.name for path in tmp_path.iterdir() if path.is_file()] == [".model.edz.lock"]


def test_an_altered_file(pack_path: Path) -> None:
    content = pack_path.read_bytes()
    pack_path.write_bytes(content.replace(b"weights of unet", b"weights of tenu"))
    with pytest.raises(BundleError, match=rf"model\.edz/{UNET}: altered, SHA-256 .*, expected .*; copy the pack again"):
        open_pack(pack_path).check()


def test_an_altered_file_draws_nothing(pack_path: Path, folder: Path, opened: Opened, capsys: Capture) -> None:
    pack_path.write_bytes(pack_path.read_bytes().replace(b"weights of unet", b"weights of tenu"))
    assert main(["generate", "a car", "--bundle", str(pack_path)]) == 2
    assert f"{pack_path}/{UNET}: altered" in capsys.readouterr().err
    assert main(["verify", str(pack_path)]) == 2
    assert list(folder.iterdir()) == []


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(BundleError, match=r"none\.edz: there is no such file"):
        open_pack(tmp_path / "none.edz")


@pytest.mark.parametrize("cut", [0, 1, 100, -100, -1])
def test_a_pack_that_was_cut_short(pack_path: Path, cut: int) -> None:
    pack_path.write_bytes(pack_path.read_bytes()[:cut])
    with pytest.raises(BundleError, match=r"not a whole pack \(.*\); copy it again, or go on with the copy: rsync"):
        open_pack(pack_path)


def test_another_zip_file(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        archive.writestr("a", b"")
    assert is_pack(tmp_path / "a.zip")
    with pytest.raises(BundleError, match=rf"no pack, {RECORD} is missing; write one with: edgediffusion pack BUNDLE"):
        open_pack(tmp_path / "a.zip")


def test_forge_makes_packs(forge: Forge) -> None:
    open_pack(forge()).check()


def test_a_later_schema(forge: Forge) -> None:
    with pytest.raises(BundleError, match=r"schema 3, this version reads up to 2; pip install --upgrade edgediffusion"):
        open_pack(forge(record=record_of(CONTENT, schema=3)))


@pytest.mark.parametrize(
    "record",
    [
        b"[]",
        b"{",
        b"[" * 100_000,
        b"\xff",
        record_of(CONTENT, files=[]),
        record_of(CONTENT, files={"a": 1}),
        record_of(CONTENT, files={"a": {"bytes": -1, "sha256": ""}}),
        record_of(CONTENT, files={"a": {"bytes": True, "sha256": ""}}),
        record_of(CONTENT, files={"a": {"bytes": 1, "sha256": None}}),
        record_of(CONTENT, more=1),
    ],
)
def test_a_record_that_is_none(forge: Forge, record: bytes) -> None:
    with pytest.raises(BundleError, match=rf"forged\.edz: {RECORD} cannot be read \(.*\); copy the pack again"):
        open_pack(forge(record=record))


@pytest.mark.parametrize(
    "name",
    [
        "../a",
        "/a",
        "a/../../b",
        "C:/a",
        "c:a",
        "a\\b",
        "a:b",
        "a//b",
        "./a",
        ".",
        "a/",
        "a\nb",
        "a\0b",
        "",
        "a*",
        "a/..",
    ],
)
def test_a_name_that_leads_elsewhere(forge: Forge, name: str) -> None:
    with pytest.raises(BundleError, match=r"which is no plain path inside of a bundle; do not use it"):
        open_pack(forge([], record=record_of({name: b""})))


def test_names_that_are_one_file_on_some_systems(forge: Forge) -> None:
    with pytest.raises(BundleError, match=r"holds 'unet/a' and 'UNet/a', which are one file on some systems"):
        open_pack(forge([], record=record_of({"unet/a": b"", "UNet/a": b""})))


def test_compressed_files(forge: Forge) -> None:
    with pytest.raises(
        BundleError, match=rf"'{RECORD}' is compressed or encrypted, which no pack's are; do not use it"
    ):
        open_pack(forge(kind=zipfile.ZIP_DEFLATED))


def test_encrypted_files(forge: Forge) -> None:
    path = forge()
    content = bytearray(path.read_bytes())
    content[content.rindex(b"PK\1\2") + 8] |= 1
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"'unet/config\.json' is compressed or encrypted, which no pack's are"):
        open_pack(path)


def test_a_link(forge: Forge) -> None:
    link = zipfile.ZipInfo("unet/config.json")
    link.external_attr = 0o120777 << 16
    with pytest.raises(BundleError, match=r"'unet/config\.json' is a link or no file; do not use it"):
        open_pack(forge([(link, b"/etc/passwd")]))


def test_a_file_twice(forge: Forge) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = forge([*CONTENT.items(), *CONTENT.items()])
    with pytest.raises(BundleError, match=r"'edgediffusion\.json' is there twice; do not use it"):
        open_pack(path)


def test_files_that_lie_over_one_another(forge: Forge) -> None:
    """As in a bomb: entries of the directory that all point to the same large file."""
    large = b"x" * 10_000
    path = forge([("a", large), ("b", b"")])
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\1\2")
    content[entry + 20 : entry + 28] = struct.pack("<II", len(large), len(large))
    path.write_bytes(content)
    with pytest.raises(BundleError, match=r"holds files that lie over one another; do not use it"):
        open_pack(path)


def test_a_record_of_absurd_size(forge: Forge) -> None:
    with pytest.raises(BundleError, match=rf"{RECORD} of {MAX_BYTES + 1} bytes, {MAX_BYTES} at most; do not use it"):
        open_pack(forge(record=b" " * (MAX_BYTES + 1)))


def test_a_file_that_is_not_where_the_directory_says(forge: Forge) -> None:
    path = forge()
    content = path.read_bytes()
    at = content.index(b"PK\3\4", 4)
    path.write_bytes(content[:at] + b"PK\3\5" + content[at + 4 :])
    with pytest.raises(BundleError, match=r"'edgediffusion\.json' is not where the pack says; copy it again, or go on"):
        open_pack(path)


@pytest.mark.parametrize(
    ("members", "message"),
    [
        ([*CONTENT.items(), ("evil.py", b"")], r"holds 'evil\.py', which its record does not name; do not use it"),
        ([("unet/config.json", b"{}")], r"unet/config\.json has 2 bytes, expected 3; copy the pack again"),
        ([("unet/config.json", b"{}\n")], r"edgediffusion\.json is missing; copy the pack again"),
    ],
)
def test_files_that_are_not_those_of_the_record(forge: Forge, members: list[tuple[str, bytes]], message: str) -> None:
    with pytest.raises(BundleError, match=message):
        open_pack(forge(members))


def test_a_pack_of_no_bundle(forge: Forge) -> None:
    with pytest.raises(BundleError, match=r"its record names no edgediffusion\.json; do not use it"):
        open_pack(forge([("a", b"")], record=record_of({"a": b""})))


def test_a_delta_holds_what_has_changed(pack_path: Path, bundle_path: Path, tmp_path: Path, opened: Opened) -> None:
    config = bundle_path / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"steps_offset": 1}))
    manifest = json.loads((bundle_path / MANIFEST).read_text())
    changed = FileRecord.of(config)
    manifest["files"]["scheduler/scheduler_config.json"] = {"bytes": changed.bytes, "sha256": changed.sha256}
    (bundle_path / MANIFEST).write_text(json.dumps(manifest))
    pack_bundle(bundle_path, tmp_path / "delta.edz", since=open_pack(pack_path))
    delta = open_pack(tmp_path / "delta.edz")
    delta.check()
    assert sorted(delta.root.members) == [MANIFEST, "scheduler/scheduler_config.json"]
    assert delta.record.since == open_pack(pack_path).digest
    with pytest.raises(BundleError, match=r"delta\.edz: a delta, without 13 of its files; unpack it with --base PACK"):
        Bundle.open(tmp_path / "delta.edz")
    for base, target in ((pack_path, tmp_path / "from pack"), (tmp_path / "from pack", tmp_path / "from folder")):
        assert main(["unpack", str(tmp_path / "delta.edz"), "-o", str(target), "--base", str(base)]) == 0
        with Bundle.open(target) as bundle:
            assert bundle.config("scheduler/scheduler_config.json")["steps_offset"] == 1


def test_verify_a_delta(pack_path: Path, bundle_path: Path, folder: Path, capsys: Capture) -> None:
    assert main(["pack", str(bundle_path), "-o", "delta.edz", "--since", str(pack_path)]) == 0
    assert main(["verify", "delta.edz"]) == 0
    assert capsys.readouterr().out.endswith("delta.edz: a delta, sound; its graphs run once it is unpacked\n")


def test_a_pack_is_no_folder(pack_path: Path) -> None:
    with (
        Bundle.open(pack_path) as bundle,
        pytest.raises(UsageError, match=r"a pack; wanted a folder: edgediffusion unp"),
    ):
        _ = bundle.folder


def test_a_bundle_that_nobody_digested_is_digested(bundle_path: Path, tmp_path: Path) -> None:
    manifest = json.loads((bundle_path / MANIFEST).read_text())
    manifest["files"][UNET]["sha256"] = None
    (bundle_path / MANIFEST).write_text(json.dumps(manifest))
    record = pack_bundle(bundle_path, tmp_path / "model.edz")
    assert record.files[UNET] == FileRecord.of(bundle_path / UNET)


def test_packed_files_read_as_files_do(pack_path: Path, bundle_path: Path) -> None:
    packed, file = open_pack(pack_path).root / UNET, bundle_path / UNET
    assert packed_module.size_of(packed) == packed_module.size_of(file)
    assert packed.read_bytes() == file.read_bytes()
    assert str(packed) == f"{pack_path}/{UNET}"
    assert str(packed.parent) == f"{pack_path}/unet"
    with packed.open() as ours, file.open("rb") as theirs:
        for offset, whence in ((3, 0), (2, 1), (-4, 2), (0, 0), (99, 0)):
            assert ours.seek(offset, whence) == theirs.seek(offset, whence)
            assert ours.read(5) == theirs.read(5)
        with pytest.raises(ValueError, match="seek to -1, before the start"):
            ours.seek(-1)
    with pytest.raises(FileNotFoundError, match=rf"no unet/none in .*{pack_path.name}"):
        (packed.parent / "none").read_bytes()
