"""Previews of the steps, in a terminal and in files; callbacks, which can stop a call."""

from __future__ import annotations

import base64
import dataclasses
import io
import os
import re
import struct
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageSequence

from edgediffusion.engines.errors import RunCancelled, UsageError
from edgediffusion.runtime import Pipeline, Run, Step, draw
from edgediffusion.runtime.cli import main
from edgediffusion.runtime.manifest import MANIFEST, LatentRGB, Manifest
from edgediffusion.runtime.metadata import read_parameters
from edgediffusion.runtime.preview import project
from edgediffusion.runtime.terminal import Screen, blocks, blocks_256, find_encoder, iterm2, kitty, sixel
from edgediffusion.runtime.watch import Watcher

from .conftest import Opened, names

PROJECTION = LatentRGB(weights=((0.5, 0, 0), (0, 0.5, 0), (0, 0, 0.5), (0, 0, 0)), bias=(0.1, 0, -0.1), r2=0.9)


@pytest.fixture
def previewing(bundle_path: Path, opened: Opened) -> Path:
    manifest = dataclasses.replace(Manifest.read(bundle_path), latent_rgb=PROJECTION)
    (bundle_path / MANIFEST).write_text(manifest.to_json())
    return bundle_path


def test_a_preview_is_the_projection_of_x0(previewing: Path) -> None:
    with Pipeline.load(previewing) as pipeline:
        run = pipeline.steps("a red apple", seed=0, num_images=2, num_inference_steps=5)
        steps = list(run)
        for step in steps:
            first, second = run.preview(step)
            assert first.size == second.size == (16, 16)
        colours = project(steps[-1].x0(), PROJECTION)
        np.testing.assert_allclose(colours[:, 0], 0.5 * steps[-1].x0()[:, 0] + 0.1, rtol=1e-6)
        # At the end there is no noise, so x0 is the latents; and a picture has the colours of its latents on the whole.
        np.testing.assert_allclose(steps[-1].x0(), steps[-1].latents, atol=1e-5)
        mean = np.asarray(first).mean(axis=(0, 1)) / 127.5 - 1
        np.testing.assert_allclose(mean, colours[0].clip(-1, 1).mean(axis=(1, 2)), atol=0.1)  # overshoot is cut off


def test_the_builtin_model_shows_what_it_draws() -> None:
    seen: list[float] = []

    def near(run: Run, step: Step) -> None:
        small = np.asarray(run.preview(step)[0].resize((16, 16)), float) / 255
        seen.append(float(small.mean(axis=2)[4:12, 4:12].mean() - small.mean(axis=2)[0].mean()))

    with Pipeline.load() as pipeline:
        (picture,) = pipeline("a red apple", seed=0, num_inference_steps=4, callback=near)
        projected = pipeline.bundle.manifest.latent_rgb
        assert projected is not None
        assert projected.r2 > 0.6
    assert len(seen) == 4
    assert all(difference < -0.2 for difference in seen)  # an apple is darker than its white ground, from step 1 on
    assert np.asarray(picture.image)[64, 64, 0] > 180


def test_what_is_not_finite_is_grey() -> None:
    latents = np.full((1, 4, 2, 2), np.nan, np.float32)
    np.testing.assert_array_equal(project(latents, PROJECTION), 0)


def test_a_bundle_without_a_projection(bundle_path: Path, opened: Opened, capsys: pytest.CaptureFixture[str]) -> None:
    wanted = f"no previews, since its manifest has no .*: python -m edgediffusion.export.latent_rgb {bundle_path}"
    with Pipeline.load(bundle_path) as pipeline:
        run = pipeline.steps("a red apple", num_inference_steps=1)
        with pytest.raises(UsageError, match=wanted):
            run.preview(next(iter(run)))
    assert main(["generate", "a red apple", "--bundle", str(bundle_path), "--save-steps", "a.png"]) == 2
    assert re.search(wanted, capsys.readouterr().err)


def test_a_tiny_vae_is_its_own_preview(bundle_path: Path, opened: Opened) -> None:
    with Pipeline.load(bundle_path) as pipeline:
        pipeline.has_tiny_vae = True
        run = pipeline.steps("a red apple", seed=0, num_inference_steps=2)
        *_, last = run
        assert run.preview(last)[0].tobytes() == pipeline.decode(last.x0())[0].tobytes()


def test_a_callback_stops_a_call(previewing: Path) -> None:
    seen: list[int] = []

    def callback(run: Run, step: Step) -> None:
        seen.append(step.index)
        if len(seen) == 7:  # in the second batch
            other = threading.Thread(target=run.cancel)
            other.start()
            other.join()

    with Pipeline.load(previewing) as pipeline:
        with pytest.raises(RunCancelled, match="cancelled after 2 of 5 steps"):
            pipeline("a red apple", num_images=4, batch_size=2, num_inference_steps=5, callback=callback)
        assert seen == [0, 1, 2, 3, 4, 0, 1]


def test_a_run_is_cancelled_while_its_pictures_are_drawn(previewing: Path) -> None:
    with Pipeline.load(previewing) as pipeline:
        run = pipeline.steps("a red apple", num_images=2, batch_size=1, num_inference_steps=3)
        pictures = draw(run)
        next(pictures)
        run.cancel()
        with pytest.raises(RunCancelled, match="cancelled after 0 of 3 steps"):
            next(pictures)


def test_each_picture_of_a_batch_has_its_own_steps(previewing: Path) -> None:
    with Pipeline.load(previewing) as pipeline:
        watcher = Watcher(iter, keep=True)
        run = pipeline.steps("a red apple", seed=0, num_images=3, batch_size=2, num_inference_steps=3)
        moving = [watcher.drawn(picture) for picture in draw(run, watcher.steps)]
        for k, animation in enumerate(moving):
            alone = pipeline.steps("a red apple", seed=k, num_inference_steps=3)
            wanted = [alone.preview(step)[0].tobytes() for step in alone]
            assert [frame.tobytes() for frame in animation.frames] == wanted
            assert animation.picture.parameters.seed == k


@pytest.mark.parametrize("suffix", [".png", ".webp"])
def test_the_steps_are_saved(previewing: Path, folder: Path, suffix: str, capsys: pytest.CaptureFixture[str]) -> None:
    told = f"generate apple --bundle {previewing} --seed 3 -o a.png --num-images 2 --batch-size 1 --hires-scale 2"
    assert main([*told.split(), "--num-inference-steps", "5", "--save-steps", f"steps{suffix}"]) == 0
    written = ["a-1.png", f"steps-1{suffix}", "a-2.png", f"steps-2{suffix}"]
    assert capsys.readouterr().out.split() == written
    for still, moving in zip(written[::2], written[1::2], strict=True):
        assert read_parameters(folder / moving) == read_parameters(folder / still)
        with Image.open(folder / moving) as steps, Image.open(folder / still) as picture:
            # Five steps, three of the second pass, and the picture, which is also where a PNG cannot move.
            assert steps.n_frames == 9 + (suffix == ".png")  # type: ignore[attr-defined]
            assert steps.size == picture.size == (32, 32)
            assert steps.info["loop"] == 0  # for ever
            if suffix == ".png":
                assert steps.tobytes() == picture.tobytes()
            durations = []
            for frame in ImageSequence.Iterator(steps):
                frame.load()
                durations.append(frame.info.get("duration"))
            assert durations[-9:] == [100] * 8 + [2000]


@pytest.mark.parametrize(
    ("told", "message"),
    [
        ("--save-steps a.jpg", "argument --save-steps: 'a.jpg', wanted a file that can move, such as a.png"),
        ("--save-steps a.png --best-of 2", "--best-of and --save-steps: wanted one of them"),
        ("--save-steps a.png --sweep steps=1,2", "--sweep and --save-steps: wanted one of them"),
        ("--save-steps no/a.png", "output no/a.png: there is no folder no; make it first"),
    ],
)
def test_steps_that_cannot_be_saved(
    told: str, message: str, previewing: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["generate", "apple", "--bundle", str(previewing), *told.split()]) == 2
    assert message in capsys.readouterr().err
    assert names(folder) == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_the_picture_grows_in_the_terminal(
    previewing: Path, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    for name in ("TMUX", "KITTY_WINDOW_ID", "TERM_PROGRAM", "LC_TERMINAL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLORTERM", "truecolor")
    assert main(f"generate apple --bundle {previewing} --preview --num-inference-steps 4 -o a.png".split()) == 0
    shown = terminal.getvalue()
    assert [f"step {i} of 4" in shown for i in range(1, 6)] == [True] * 4 + [False]
    drawn = re.findall(r"\x1b7(.*?)\x1b8", shown, re.DOTALL)
    assert len(drawn) == 5  # the steps and the picture, all in one place
    assert shown.count("\x1b[22A") == 5
    last = [int(value) for value in re.findall(r"48;2;(\d+);", drawn[-1])]
    picture = np.asarray(Image.open(folder / "a.png").resize((44, 44), Image.Resampling.BOX))
    assert last == picture[1::2, :, 0].reshape(-1).tolist()
    assert capsys.readouterr().out == "a.png\n"


@pytest.mark.filterwarnings("always::edgediffusion.runtime.terminal.NoTerminal")
def test_no_terminal_is_said_once(previewing: Path, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(f"generate apple --bundle {previewing} --preview --num-inference-steps 2 -o a.png".split()) == 0
    wanted = "edgediffusion: warning: --preview: stderr is no terminal with colours, so nothing is shown\n"
    assert capsys.readouterr().err == wanted
    assert names(folder) == ["a.png"]


@pytest.mark.parametrize(
    ("environ", "encoder"),
    [
        ({"TERM": "xterm-256color"}, blocks_256),
        ({"TERM": "xterm-256color", "COLORTERM": "truecolor"}, blocks),
        ({"TERM": "xterm-kitty", "COLORTERM": "truecolor"}, kitty),
        ({"TERM": "xterm-256color", "TERM_PROGRAM": "WezTerm"}, iterm2),
        ({"TERM": "xterm-256color", "LC_TERMINAL": "iTerm2"}, iterm2),
        ({"TERM": "foot"}, sixel),
        ({"TERM": "tmux-256color", "KITTY_WINDOW_ID": "1", "COLORTERM": "truecolor"}, blocks),
        ({"TERM": "xterm-kitty", "TMUX": "/tmp/tmux"}, blocks_256),
    ],
)
def test_only_what_a_terminal_says_is_believed(environ: dict[str, str], encoder: object) -> None:
    assert find_encoder(environ) is encoder


def gradient(width: int = 64, height: int = 32) -> Image.Image:
    y, x = np.mgrid[:height, :width]
    return Image.fromarray(np.stack([4 * x, 8 * y, 0 * x], axis=-1).astype(np.uint8))


def test_kitty_gets_the_picture_in_pieces() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    pieces = re.findall(r"\x1b_G([^;]*);([^\x1b]*)\x1b\\", kitty(noise, 20, 10))
    assert len(pieces) > 2
    assert pieces[0][0] == "a=T,f=100,q=2,C=1,i=1,p=1,c=20,r=10,m=1"
    assert [head for head, _ in pieces[1:]] == ["m=1"] * (len(pieces) - 2) + ["m=0"]
    with Image.open(io.BytesIO(base64.b64decode("".join(data for _, data in pieces)))) as found:
        assert found.tobytes() == noise.tobytes()


def test_iterm2_gets_the_picture() -> None:
    head, _, data = iterm2(gradient(), 20, 5).partition(":")
    assert head == "\x1b]1337;File=inline=1;width=20;height=5"
    with Image.open(io.BytesIO(base64.b64decode(data.removesuffix("\a")))) as found:
        assert found.tobytes() == gradient().tobytes()


def test_sixels_are_the_picture() -> None:
    text = sixel(gradient(), 8, 2)
    match = re.fullmatch(r'\x1bPq"1;1;64;32((?:#\d+;2;\d+;\d+;\d+)+)(.*)\x1b\\', text, re.DOTALL)
    assert match is not None
    palette = {int(k): [int(v) for v in rgb] for k, *rgb in re.findall(r"#(\d+);2;(\d+);(\d+);(\d+)", match[1])}
    found = np.full((36, 64, 3), -1.0)
    for band, line in enumerate(match[2].split("-")):
        for colour, signs in re.findall(r"#(\d+)([^#$]*)", line):
            plain = re.sub(r"!(\d+)(.)", lambda run: int(run[1]) * run[2], signs)
            for x, sign in enumerate(plain):
                for bit in range(6):
                    if ord(sign) - 63 >> bit & 1:
                        found[6 * band + bit, x] = palette[int(colour)]
    assert (found[:32] >= 0).all()
    assert np.abs(found[:32] * 2.55 - np.asarray(gradient())).mean() < 8  # of 64 colours


def test_256_colours_are_the_nearest_of_the_cube() -> None:
    picture = Image.new("RGB", (1, 2))
    picture.putdata([(0, 95, 255), (200, 172, 40)])
    assert blocks_256(picture, 1, 1) == f"\x1b[38;5;{16 + 6 + 5};48;5;{16 + 36 * 4 + 6 * 3}m▀\x1b[0m"


def test_a_screen_makes_room_for_another_size() -> None:
    stream = Terminal()
    screen = Screen(stream, {"TERM": "xterm"})
    screen.close()
    screen.show(gradient(200, 20), "wide")
    screen.show(gradient(20, 20), "square")
    screen.close()
    screen.close()
    wide, square = stream.getvalue().split("wide\x1b[K")
    assert wide.startswith("\r\x1b[J" + "\n" * 4 + "\r\x1b[4A\x1b7")
    assert square.startswith("\r\x1b[4A\x1b[J" + "\n" * 22 + "\r\x1b[22A\x1b7")
    assert square.endswith("\r" + "square\x1b[K\n")


@pytest.mark.parametrize(("term", "rows"), [("xterm", 58), ("foot", 24)])
def test_pixels_are_not_for_all_of_a_large_terminal(term: str, rows: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Terminal()
    monkeypatch.setattr(stream, "fileno", lambda: 0)
    monkeypatch.setattr(os, "get_terminal_size", lambda descriptor: os.terminal_size((200, 60)))
    Screen(stream, {"TERM": term}).show(gradient(20, 20), "step 1")
    assert f"\x1b[{rows}B\rstep 1" in stream.getvalue()


def test_a_real_terminal_says_its_size() -> None:
    fcntl, termios = pytest.importorskip("fcntl"), pytest.importorskip("termios")
    primary, secondary = os.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 12, 40, 0, 0))
    with os.fdopen(secondary, "w") as stream:
        screen = Screen.of(stream, {"TERM": "xterm"})
        assert screen is not None
        screen.show(gradient(20, 20), "step 1")
        shown = b""
        while not shown.endswith(b"step 1\x1b[K"):  # a terminal hands over what was written in pieces
            shown += os.read(primary, 4096)
        room, _, _ = shown.partition(b"\x1b7")
        assert room.count(b"\n") == 10
    os.close(primary)
