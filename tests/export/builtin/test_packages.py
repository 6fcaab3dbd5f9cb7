"""Packages: archives made here, no network."""

from __future__ import annotations

import io
import json
import re
import sys
import tarfile
from pathlib import Path
from typing import Literal

import pytest
from PIL import Image

from edgediffusion.engines.errors import UsageError
from edgediffusion.export.builtin import data, packages


def tar(files: dict[str, bytes], mode: Literal["w:gz", "w:xz"]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode) as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def npm(path: Path, files: dict[str, bytes]) -> Path:
    about = json.dumps({"version": "1.0.0", "license": "MIT"}).encode()
    path.write_bytes(tar({"package/package.json": about, **files}, "w:gz"))
    return path


def deb(path: Path, files: dict[str, bytes], member: str = "data.tar.xz") -> Path:
    blob = b"!<arch>\n"
    for name, content in (("debian-binary", b"2.0\n"), ("control.tar", b"odd"), (member, tar(files, "w:xz"))):
        header = f"{name:<16}{0:<12}{0:<6}{0:<6}{100644:<8}{len(content):<10}`\n"
        blob += header.encode() + content + b"\n" * (len(content) % 2)
    path.write_bytes(blob)
    return path


def picture(form: str) -> bytes:
    buffer = io.BytesIO()
    Image.new("RGBA", (20, 10), (200, 0, 0, 255)).save(buffer, form)
    return buffer.getvalue()


def test_build_packs_both_styles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = [
        {"label": "automobile", "hexcode": "1F697", "group": 5, "subgroup": 50},
        {"label": "taxi", "hexcode": "1F695", "group": 5, "subgroup": 50},
    ]
    groups = {"groups": {"5": "travel-places"}, "subgroups": {"50": "transport-ground"}}
    words = {"package/en/data.json": json.dumps(rows).encode(), "package/meta/groups.json": json.dumps(groups).encode()}
    npm(tmp_path / "emojibase-data-17.0.0.tgz", words)
    npm(tmp_path / "lobehub-fluent-emoji-3d-1.1.0.tgz", {"package/assets/1f697.webp": picture("WEBP")})
    font = {"./usr/share/fonts/NotoColorEmoji.ttf": b"font", "./usr/share/doc/font/copyright": b""}
    deb(tmp_path / "fonts-noto-color-emoji_2.0_all.deb", font)
    monkeypatch.setattr(data, "noto_pictures", lambda font: {"1f697": picture("PNG"), "1f695": picture("PNG")})
    assert data.main([str(tmp_path), str(tmp_path / "out.zip")]) == 0
    assert "pictures {'3d': 1, 'noto': 2}" in capsys.readouterr().err
    loaded = data.load(tmp_path / "out.zip")
    first = [captions[0] for captions in loaded.captions]
    assert {"a car, 3d", "a car, noto", "a taxi, noto", "a blue car, noto"} <= set(first)
    assert not {"a taxi, 3d", "a blue taxi, noto"} & set(first)


def test_source_entries_state_what_the_packages_state(tmp_path: Path) -> None:
    stanzas = b"Files: *\nCopyright: A\n B\nLicense: Apache-2.0\n\nFiles: fonts/*\nCopyright: C\nLicense: SIL-1.1\n"
    copyright = b"Format: x\n\n" + stanzas
    entry = packages.source_entry(deb(tmp_path / "font_1.2_all.deb", {"./usr/share/doc/font/copyright": copyright}))
    assert (entry["version"], entry["licence"]) == ("1.2", "*: Apache-2.0; fonts/*: SIL-1.1")
    entry = packages.source_entry(npm(tmp_path / "p-1.0.0.tgz", {}))
    assert (entry["version"], entry["licence"]) == ("1.0.0", "MIT")


def test_read_deb_errors(tmp_path: Path) -> None:
    (tmp_path / "x.deb").write_bytes(b"nothing")
    with pytest.raises(UsageError, match="is no Debian package"):
        packages.read_deb(tmp_path / "x.deb", re.compile("."))
    with pytest.raises(UsageError, match=r"has no member data\.tar"):
        packages.read_deb(deb(tmp_path / "y.deb", {}, member="other"), re.compile("."))


def test_missing_packages_and_tools_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("subprocess.run", lambda *_, **__: None)
        with pytest.raises(UsageError, match=r"left no lobehub-fluent-emoji-3d-1\.1\.0\.tgz"):
            packages.fetch(tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    assert data.main([str(tmp_path), str(tmp_path / "out.zip")]) == 2
    assert capsys.readouterr().err.startswith("error: lobehub-fluent-emoji-3d-1.1.0.tgz is not in ")
    monkeypatch.setitem(sys.modules, "fontTools.ttLib", None)
    with pytest.raises(UsageError, match="packing needs fontTools: pip install fonttools"):
        packages.noto_pictures(b"")
