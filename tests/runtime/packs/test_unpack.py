from __future__ import annotations

import os
import shutil
from collections import namedtuple
from pathlib import Path

import platformdirs
import pytest

from edgediffusion.engines.errors import BundleError, UsageError
from edgediffusion.engines.files import PARTIAL
from edgediffusion.engines.store import Store
from edgediffusion.engines.tensorrt_store import BUNDLE_STORE
from edgediffusion.runtime import Bundle
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.manifest import MANIFEST, Manifest
from edgediffusion.runtime.packs.read import open_pack
from edgediffusion.runtime.packs.unpack import unpack, unpacked
from edgediffusion.runtime.packs.write import pack_bundle

from .conftest import contents

UNET = "unet/diffusion_pytorch_model.safetensors"
Usage = namedtuple("Usage", "free")


def test_a_bundle_arrives_as_it_left(pack_path: Path, bundle_path: Path, tmp_path: Path) -> None:
    written = unpack(open_pack(pack_path), tmp_path / "new" / "there")
    assert written[-1] == MANIFEST
    assert contents(tmp_path / "new" / "there") == contents(bundle_path)


def test_it_goes_on_where_it_stopped(pack_path: Path, bundle_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "there"
    unpack(open_pack(pack_path), folder)
    (folder / MANIFEST).unlink()
    (folder / UNET).unlink()
    (folder / f"{UNET}.1{PARTIAL}").write_bytes(b"wei")
    assert unpack(open_pack(pack_path), folder) == [UNET, MANIFEST]
    assert contents(folder) == contents(bundle_path)


def test_a_damaged_bundle_is_mended(pack_path: Path, bundle_path: Path, tmp_path: Path) -> None:
    folder = tmp_path / "there"
    unpack(open_pack(pack_path), folder)
    (folder / UNET).write_bytes(b"weights of tenu")
    assert unpack(open_pack(pack_path), folder) == [UNET]
    assert contents(folder) == contents(bundle_path)


def test_a_file_of_somebody_elses(pack_path: Path, tmp_path: Path) -> None:
    (tmp_path / "there" / "unet").mkdir(parents=True)
    (tmp_path / "there" / UNET).write_bytes(b"mine")
    with pytest.raises(
        UsageError, match=rf"{UNET}: is there already, and not as in .*model\.edz; choose another folder"
    ):
        unpack(open_pack(pack_path), tmp_path / "there")
    assert (tmp_path / "there" / UNET).read_bytes() == b"mine"


def test_a_folder_with_something_else(pack_path: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "letter.txt").write_text("mine")
    with pytest.raises(
        UsageError, match=r"letter\.txt: is there already, and not in .*model\.edz; choose another folde"
    ):
        unpack(open_pack(pack_path), tmp_path / "there")


def test_a_link_in_the_folder(pack_path: Path, tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "there" / "unet").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(UsageError, match=r"there/unet: is a link; choose another folder"):
        unpack(open_pack(pack_path), tmp_path / "there")
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_too_little_disk(pack_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: Usage(5))
    with pytest.raises(UsageError, match=r"there: 0 MiB free, .*model\.edz takes 0 more; choose another place"):
        unpack(open_pack(pack_path), tmp_path / "there")


def test_a_delta_alone(pack_path: Path, bundle_path: Path, tmp_path: Path) -> None:
    pack_bundle(bundle_path, tmp_path / "delta.edz", since=open_pack(pack_path))
    with pytest.raises(
        BundleError, match=r"a delta, which leaves 15 of 15 files to the pack .*; name that with --base"
    ):
        unpack(open_pack(tmp_path / "delta.edz"), tmp_path / "there")


def test_a_delta_on_another_base(pack_path: Path, bundle_path: Path, tmp_path: Path) -> None:
    pack_bundle(bundle_path, tmp_path / "delta.edz", since=open_pack(pack_path))
    (bundle_path / UNET).write_bytes(b"weights of tenu")
    delta = open_pack(tmp_path / "delta.edz")
    with pytest.raises(
        BundleError, match=rf"{UNET}: altered, or of another model; name the pack that this one was mad"
    ):
        unpack(delta, tmp_path / "there", bundle_path)
    (bundle_path / UNET).unlink()
    with pytest.raises(BundleError, match=rf"bundle: lacks {UNET}; name the pack that this one was made against"):
        unpack(delta, tmp_path / "there", bundle_path)
    with pytest.raises(BundleError, match="no bundle here"):
        Manifest.read(tmp_path / "there")


def test_an_altered_file_is_not_unpacked(pack_path: Path, tmp_path: Path) -> None:
    pack_path.write_bytes(pack_path.read_bytes().replace(b"weights of unet", b"weights of tenu"))
    with pytest.raises(BundleError, match=rf"{UNET}: altered, or of another model; copy the pack again"):
        unpack(open_pack(pack_path), tmp_path / "there")
    assert not (tmp_path / "there" / UNET).exists()
    assert not list((tmp_path / "there").rglob(f"*{PARTIAL}"))


def test_backends_that_want_files_have_them_from_the_cache(
    pack_path: Path, bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(platformdirs, "user_cache_path", lambda name: tmp_path / "cache" / name)
    with Bundle.open(pack_path, backend="tensorrt") as bundle:
        folder = bundle.folder
        assert folder.parent == tmp_path / "cache" / "edgediffusion" / "packs"
    assert contents(folder) == contents(bundle_path)
    times = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    (folder / UNET).write_bytes(b"wei")
    assert unpacked(pack_path) == folder
    assert contents(folder) == contents(bundle_path)
    assert [path.name for path in times if path.is_file() and path.stat().st_mtime_ns != times[path]] == [
        Path(UNET).name
    ]


def test_engines_go_with_the_bundle_that_they_were_built_for(
    bundle_path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from ...engines.conftest import RECIPE

    manifest = Manifest.read(bundle_path)
    unet = manifest.graphs["unet"]
    source = RECIPE.source.__class__(
        component="unet",
        variant="",
        graph=manifest.files[unet.model].sha256 or "",
        weights=manifest.files[unet.weights].sha256 or "",
    )
    monkeypatch.setattr(Store, "of_user", classmethod(lambda cls: cls(tmp_path / "cache")))
    command = ["pack", os.fspath(bundle_path), "-o", "model.edz", "--engines"]
    assert main(command) == 2
    assert "no engines of this bundle; make some with: edgediffusion build" in capsys.readouterr().err
    from dataclasses import replace

    for capability in ("8.7", "9.0", "8.0+"):
        target = replace(RECIPE.target, compute_capability=capability)
        recipe = replace(RECIPE, source=source, target=target)
        Store.of_user().get_or_build(recipe, capability.encode, by="")
    Store.of_user().get_or_build(RECIPE, b"of another bundle".upper, by="")
    for arch, message in (("sm_72", "no engines of this bundle for sm_72"), ("87", "target '87', wanted a GPU's arch")):
        assert main([*command, "--target", arch]) == 2
        assert message in capsys.readouterr().err
    assert main([*command, "--target", "sm_87"]) == 0
    unpack(open_pack(folder / "model.edz"), folder / "there")
    entries = Store(folder / "there" / BUNDLE_STORE).entries()
    assert sorted(entry.read() for entry in entries) == [b"8.0+", b"8.7"]
