from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from edgediffusion.engines.errors import UsageError
from edgediffusion.runtime.output import Output, default_path


class Picture:
    def __init__(self, content: str) -> None:
        self.content = content

    def save(self, path: Path) -> None:
        assert path.suffix == ".png"
        path.write_text(self.content)


class Broken:
    def save(self, path: Path) -> None:
        path.write_text("half a pict")
        raise OSError(28, "No space left on device")


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


@pytest.mark.parametrize(
    ("prompt", "name"),
    [
        ("a red apple", "a-red-apple.png"),
        ("A  red_apple, 3D!", "a-red-apple-3d.png"),
        ("ein Äpfelchen", "ein-äpfelchen.png"),
        ("../../etc/passwd", "etc-passwd.png"),
        ("", "picture.png"),
        ("🍎", "picture.png"),
        ("a " * 100, "a-" * 24 + "a.png"),
    ],
)
def test_the_name_comes_from_the_prompt(prompt: str, name: str) -> None:
    assert default_path(prompt) == Path(name)


def test_a_name_that_is_free(tmp_path: Path) -> None:
    assert Output(tmp_path / "a.png", several=False, force=False).write(Picture("a")) == tmp_path / "a.png"
    assert contents(tmp_path) == {"a.png": "a"}


def test_a_name_that_is_taken_gets_the_next_free_number(tmp_path: Path) -> None:
    for content in "abc":
        Output(tmp_path / "x.png", several=False, force=False).write(Picture(content))
    (tmp_path / "x-1.png").unlink()
    assert Output(tmp_path / "x.png", several=False, force=False).write(Picture("d")) == tmp_path / "x-1.png"
    assert contents(tmp_path) == {"x.png": "a", "x-1.png": "d", "x-2.png": "c"}


def test_several_are_numbered_from_one(tmp_path: Path) -> None:
    (tmp_path / "x-2.png").write_text("mine")
    output = Output(tmp_path / "x.png", several=True, force=False)
    assert [output.write(Picture(c)).name for c in "ab"] == ["x-1.png", "x-3.png"]
    assert contents(tmp_path) == {"x-1.png": "a", "x-2.png": "mine", "x-3.png": "b"}


def test_force_overwrites(tmp_path: Path) -> None:
    for name in ("x.png", "x-1.png"):
        (tmp_path / name).write_text("old")
    assert Output(tmp_path / "x.png", several=False, force=True).write(Picture("a")) == tmp_path / "x.png"
    output = Output(tmp_path / "x.png", several=True, force=True)
    assert [output.write(Picture(c)).name for c in "bc"] == ["x-1.png", "x-2.png"]
    assert contents(tmp_path) == {"x.png": "a", "x-1.png": "b", "x-2.png": "c"}


def test_a_link_that_leads_nowhere_is_taken(tmp_path: Path) -> None:
    (tmp_path / "x.png").symlink_to(tmp_path / "elsewhere")
    assert Output(tmp_path / "x.png", several=False, force=False).write(Picture("a")) == tmp_path / "x-1.png"
    assert not (tmp_path / "elsewhere").exists()


def test_the_file_has_the_permissions_of_any_other(tmp_path: Path) -> None:
    (tmp_path / "other").touch()
    path = Output(tmp_path / "x.png", several=False, force=False).write(Picture("a"))
    assert path.stat().st_mode == (tmp_path / "other").stat().st_mode


def test_a_name_that_is_taken_while_the_picture_is_drawn(tmp_path: Path) -> None:
    output = Output(tmp_path / "x.png", several=False, force=False)
    (tmp_path / "x.png").write_text("mine")
    assert output.write(Picture("a")) == tmp_path / "x-1.png"
    assert contents(tmp_path) == {"x.png": "mine", "x-1.png": "a"}


def test_two_at_a_time_never_overwrite_one_another(tmp_path: Path) -> None:
    written = [f"{name}{number}" for name in "abcd" for number in range(20)]
    with ThreadPoolExecutor(4) as pool:
        outputs = [Output(tmp_path / "x.png", several=False, force=False) for _ in written]
        paths = list(pool.map(lambda output, content: output.write(Picture(content)), outputs, written))
    assert {path: path.read_text() for path in paths} == dict(zip(paths, written, strict=True))
    assert sorted(contents(tmp_path).values()) == sorted(written)


@pytest.mark.parametrize("force", [False, True])
def test_a_picture_that_fails_leaves_nothing(force: bool, tmp_path: Path) -> None:
    (tmp_path / "x.png").write_text("old")
    output = Output(tmp_path / "x.png", several=False, force=force)
    with pytest.raises(UsageError, match=r"output .*x\.png cannot be written: No space left on device"):
        output.write(Broken())
    assert contents(tmp_path) == {"x.png": "old"}


def test_a_rename_that_fails_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def replace(self: Path, target: Path) -> Path:
        raise OSError(5, "Input/output error")

    output = Output(tmp_path / "x.png", several=False, force=False)
    monkeypatch.setattr(Path, "replace", replace)
    with pytest.raises(UsageError, match=r"output .*x\.png cannot be written: Input/output error"):
        output.write(Picture("a"))
    assert contents(tmp_path) == {}


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("folder", r"output .*folder is a folder; name a file, such as .*folder/apple\.png"),
        ("folder.png", r"output .*folder\.png is a folder; name a file"),
        ("a.gif", r"a\.gif: pictures are written as \.png, .*; name it .*a\.png"),
        ("none/a.png", r"output .*a\.png: there is no folder .*none; make it first"),
        ("file/a.png", r"output .*a\.png: there is no folder .*file; make it first"),
        ("x" * 300 + ".png", r"output .*x\.png cannot be written: File name too long"),
    ],
)
def test_a_path_that_cannot_be_written(name: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=message):
        Output(tmp_path / name, several=False, force=False)
    assert {path.name for path in tmp_path.iterdir()} == {"folder", "folder.png", "file"}


def test_a_folder_without_permission(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Refused by hand, since the administrator, who runs the tests in a container, may write everywhere."""

    def touch(self: Path, exist_ok: bool = True) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "touch", touch)
    with pytest.raises(UsageError, match=r"output .*a\.png cannot be written: Permission denied"):
        Output(tmp_path / "a.png", several=False, force=False)
