from __future__ import annotations

import importlib.metadata
import io
import json
import re
import shutil
import subprocess
import sys
from importlib.metadata import EntryPoint
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
from PIL import Image

from edgediffusion import __version__
from edgediffusion.engines import probe as probe_module
from edgediffusion.engines.probe import Probe
from edgediffusion.engines.spec import Array
from edgediffusion.runtime import Pipeline
from edgediffusion.runtime.cli import COMMANDS, main
from edgediffusion.runtime.manifest import MANIFEST
from edgediffusion.runtime.metadata import read_parameters
from edgediffusion.runtime.pipeline import BUILTIN

from .conftest import FUNCTIONS, Opened, names

Capture = pytest.CaptureFixture[str]
pytestmark = pytest.mark.usefixtures("folder")
COMMAND = "import sys; from edgediffusion.runtime.cli import main; sys.exit(main())"


def pixels(path: Path) -> list[int]:
    with Image.open(path) as image:
        return list(np.asarray(image).flat)


# generate


def test_generate(bundle: str, folder: Path, capsys: Capture) -> None:
    assert main(["generate", "a red apple", "--bundle", bundle, "--seed", "0"]) == 0
    assert capsys.readouterr() == ("a-red-apple.png\n", "")
    assert names(folder) == ["a-red-apple.png"]
    (drawn,) = Pipeline.load(bundle)("a red apple", seed=0)
    assert read_parameters(folder / "a-red-apple.png") == drawn.parameters
    assert pixels(folder / "a-red-apple.png") == list(np.asarray(drawn.image).flat)


def test_every_option_reaches_the_pipeline(bundle: str, folder: Path, capsys: Capture) -> None:
    options = (
        "--negative-prompt blurry --num-inference-steps 3 --scheduler ddim --guidance-scale 2.5 --seed 7 --size 24x16 "
        "--num-images 2 --noise torch-cpu --backend ort --device cpu -o out.png"
    )
    assert main(["generate", "a car", "--bundle", bundle, *options.split()]) == 0
    assert capsys.readouterr() == ("out-1.png\nout-2.png\n", "")
    drawn = Pipeline.load(bundle)(
        "a car",
        "blurry",
        num_inference_steps=3,
        scheduler="ddim",
        guidance_scale=2.5,
        seed=7,
        noise="torch-cpu",
        width=24,
        height=16,
        num_images=2,
    )
    for picture, name in zip(drawn, names(folder), strict=True):
        assert read_parameters(folder / name) == picture.parameters
        assert pixels(folder / name) == list(np.asarray(picture.image).flat)


def test_an_empty_prompt_works(bundle: str, folder: Path) -> None:
    assert main(["generate", "", "--bundle", bundle]) == 0
    assert names(folder) == ["picture.png"]


def test_a_prompt_that_looks_like_an_option(bundle: str, folder: Path) -> None:
    assert main(["generate", "--bundle", bundle, "--", "--seed"]) == 0
    assert read_parameters(folder / "seed.png").prompt == "--seed"


@pytest.mark.parametrize("sigmas", ["karras", "14.0,1.5"])
def test_sigmas(bundle: str, folder: Path, sigmas: str) -> None:
    options = ["--num-inference-steps", "2", "--scheduler", "euler", "--sigmas", sigmas]
    assert main(["generate", "x", "--bundle", bundle, "-o", "a.png", *options]) == 0
    assert read_parameters(folder / "a.png").sigmas == sigmas


def test_schedulers(capsys: Capture) -> None:
    assert main(["schedulers"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines[0][:2] == ["name", "diffusers"]
    assert ["heun", "HeunDiscreteScheduler", "2", "no", "model", "karras", "exponential"] in [
        line[:7] for line in lines
    ]
    assert main(["schedulers", "--json"]) == 0
    records = {record["name"]: record for record in json.loads(capsys.readouterr().out)}
    assert records["euler_a"]["draws_noise"]
    assert records["ddim"] == {
        "name": "ddim",
        "diffusers": "DDIMScheduler",
        "sigmas": ["model"],
        "calls_per_step": 1,
        "draws_noise": False,
        "paper": "arXiv:2010.02502",
    }


def test_nothing_is_overwritten_unless_forced(bundle: str, folder: Path, capsys: Capture) -> None:
    for seed, extra in [("0", []), ("1", []), ("2", ["--force"])]:
        assert main(["generate", "x", "--bundle", bundle, "--seed", seed, "-o", "a.png", *extra]) == 0
    assert capsys.readouterr().out == "a.png\na-1.png\na.png\n"
    assert {name: read_parameters(folder / name).seed for name in names(folder)} == {"a.png": 2, "a-1.png": 1}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--noise torch", "unknown noise 'torch'; known: numpy, torch-cpu, torch-cuda"),
        ("--sigmas carras", "unknown sigmas 'carras'; known: ays"),
        ("--sigmas 2,1,x", "argument --sigmas: '2,1,x', wanted a name or numbers between commas, such as 14.6,2.5,0.4"),
        ("--sigmas 2,1", "sigmas of 2 values; wanted num_inference_steps, 20"),
        ("--scheduler ddim --sigmas beta", "sigmas 'beta' cannot be used by this sampler; it takes: model"),
        ("--scheduler eulerian", r"unknown scheduler 'eulerian'; known: .*ddim.*dpmpp_2m.*euler"),
        ("--size 100x128", r"width 100; wanted a positive multiple of 8"),
        ("--size 128x0", r"height 0; wanted a positive multiple of 8"),
        (
            "--size big",
            r"argument --size: 'big', wanted WIDTHxHEIGHT, such as 512x512; see: edgediffusion generate --help",
        ),
        ("--size 99999992x99999992", "width 99999992; wanted 65536 at most"),
        ("--size -8x8", r"argument --size: expected one argument; see: edgediffusion generate --help"),
        ("--num-inference-steps 0", r"num_inference_steps 0"),
        ("--num-inference-steps -3", r"num_inference_steps -3"),
        ("--num-inference-steps few", r"argument --num-inference-steps: invalid int value: 'few'"),
        ("--num-images 0", r"num_images 0; wanted 1 to 1000000"),
        ("--num-images -1", r"num_images -1; wanted 1 to 1000000"),
        ("--seed -1", r"seed -1; wanted 0 or more"),
        ("--seed x", r"argument --seed: invalid int value: 'x'"),
        ("--guidance-scale nan", r"guidance_scale nan; wanted a finite number"),
        ("--image-guidance-scale 2", "image_guidance_scale has no effect on what this model draws from a prompt"),
        ("--prompt-2 y", "prompt_2: this model has one text encoder"),
        ("--negative-prompt-2 y", "negative_prompt_2: this model has one text encoder"),
        ("--mask none.png", r"none\.png: cannot be read as a picture"),
        ("--num-inference 3", r"unrecognized arguments: --num-inference 3"),
        ("--steps 3", r"unrecognized arguments: --steps 3; see: edgediffusion generate --help"),
        ("--negative-prompt \udcff", r"argument --negative-prompt: '\\udcff' is not UTF-8"),
        ("-o none/a.png", r"output none/a\.png: there is no folder none; make it first"),
        ("-o .", r"output \. is a folder; name a file"),
        ("-o a.gif", r"a\.gif: pictures are written as \.png, .*; name it a\.png"),
    ],
)
def test_what_generate_cannot_use(options: str, message: str, bundle: str, folder: Path, capsys: Capture) -> None:
    assert_refused(["generate", "x", "--bundle", bundle, *options.split()], message, folder, capsys)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--backend", "onnx"], r"unknown backend 'onnx'; known: ort"),
        (["--device", "gpu"], r"unknown device 'gpu'; known: auto, cpu, cuda"),
    ],
)
def test_unknown_backends(options: list[str], message: str, bundle_path: Path, folder: Path, capsys: Capture) -> None:
    assert_refused(["generate", "x", "--bundle", str(bundle_path), *options], message, folder, capsys)


def test_a_missing_backend(bundle_path: Path, folder: Path, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxruntime", None)
    monkeypatch.delitem(sys.modules, "edgediffusion.engines.ort", raising=False)
    message = r"backend 'ort' cannot be imported .*; pip install 'edgediffusion\[cpu\]'"
    assert_refused(["generate", "x", "--bundle", str(bundle_path)], message, folder, capsys)


def damage(bundle: Path, kind: str) -> None:
    weights = bundle / "unet" / "diffusion_pytorch_model.safetensors"
    match kind:
        case "missing":
            shutil.rmtree(bundle)
        case "no file":
            weights.unlink()
        case "truncated":
            weights.write_bytes(weights.read_bytes()[:-1])
        case "altered":
            weights.write_bytes(weights.read_bytes()[:-1] + b"?")
        case "newer":
            manifest = json.loads((bundle / MANIFEST).read_text())
            (bundle / MANIFEST).write_text(json.dumps(manifest | {"schema": 99}))


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("missing", r"bundle: no bundle here, .*; write one with: edgediffusion export"),
        ("no file", r"unet/diffusion_pytorch_model\.safetensors: missing"),
        ("truncated", r"unet/diffusion_pytorch_model\.safetensors: truncated"),
        ("altered", r"unet/diffusion_pytorch_model\.safetensors: altered"),
        ("newer", r"schema 99, this version reads up to 4; pip install --upgrade edgediffusion"),
    ],
)
def test_a_bundle_that_cannot_be_used(kind: str, message: str, bundle: str, folder: Path, capsys: Capture) -> None:
    damage(Path(bundle), kind)
    assert_refused(["generate", "x", "--bundle", bundle], message, folder, capsys)


def assert_refused(arguments: list[str], message: str, folder: Path, capsys: Capture) -> None:
    """One line on stderr, status 2, nothing written."""
    assert main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    (line,) = err.splitlines()
    assert line.startswith("edgediffusion: error: ")
    assert_matches(message, line)
    assert names(folder) == []


def assert_matches(pattern: str, text: str) -> None:
    with pytest.raises(ValueError, match=pattern):
        raise ValueError(text)


def test_the_output_is_checked_before_the_work(opened: Opened, bundle_path: Path) -> None:
    assert main(["generate", "x", "--bundle", str(bundle_path), "-o", "none/a.png"]) == 2
    assert opened.names == []


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def test_a_progress_bar_on_a_terminal(bundle: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = Terminal()
    monkeypatch.setattr(sys, "stderr", terminal)
    monkeypatch.setenv("TERM", "xterm")
    assert main(["generate", "x", "--bundle", bundle, "-o", "a.png"]) == 0
    assert capsys.readouterr().out == "a.png\n"
    assert "denoising" in terminal.getvalue()
    assert "100%" in terminal.getvalue()


def test_what_the_time_went_to(bundle: str, capsys: Capture) -> None:
    options = ["--num-inference-steps", "4", "--seed", "0", "-o", "a.png", "--profile"]
    assert main(["generate", "x", "--bundle", bundle, *options]) == 0
    out, err = capsys.readouterr()
    assert out == "a.png\n"
    header, *rows = [line.split(maxsplit=2) for line in err.splitlines()]
    assert header == ["begin", "seconds"]
    begins = [float(begin) for begin, _, _ in rows]
    assert begins == sorted(begins)
    parts = [part for _, _, part in rows]
    assert parts[0] == "start of Python, imports, small files"
    assert {"open unet", "digest unet", "open text_encoder"} < set(parts)
    assert parts[-6:] == ["text encoder", "step 1", "step 2", "steps 3 to 4", "VAE decoder", "write the file"]


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (
            RuntimeError("can't start new thread"),
            "can't start new thread: too little memory, or too many processes, for",
        ),
        (
            ImportError("x.so: failed to map"),
            "a library cannot be loaded (x.so: failed to map); see: edgediffusion doc",
        ),
        (OSError(5, "Input/output error", "a/b"), "a/b: Input/output error"),
        (OSError("odd"), "odd"),
    ],
)
def test_what_the_system_refuses_is_one_line(
    error: Exception, line: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(COMMANDS, "doctor", Mock(side_effect=error))
    assert main(["doctor"]) == 2
    assert capsys.readouterr().err.startswith(f"edgediffusion: error: {line}")


def test_a_bug_is_none_of_that(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(COMMANDS, "doctor", Mock(side_effect=RuntimeError("a bug")))
    with pytest.raises(RuntimeError, match="a bug"):
        main(["doctor"])


def test_a_picture_without_room(bundle: str, capsys: Capture, monkeypatch: pytest.MonkeyPatch) -> None:
    def unet(feeds: object) -> dict[str, Array]:
        return {"out_sample": np.empty(1 << 60, np.uint8)}

    monkeypatch.setitem(FUNCTIONS, "unet", unet)
    assert main(["generate", "x", "--bundle", bundle]) == 2
    message = r"error: out of memory \(Unable to allocate .*\); take a smaller --size or --batch-size\n$"
    assert re.search(message, capsys.readouterr().err)


def test_low_memory_prints_the_peak(bundle: str, capsys: Capture) -> None:
    assert main(["generate", "x", "--bundle", bundle, "-o", "a.png", "--low-memory"]) == 0
    out, err = capsys.readouterr()
    assert out == "a.png\n"
    assert re.fullmatch(r"peak memory: \d+ MB\n", err)


# inspect


@pytest.fixture
def picture(bundle: str, folder: Path, capsys: Capture) -> str:
    main(["generate", "a [red] apple", "--bundle", bundle, "--seed", "0", "-o", "apple.png"])
    capsys.readouterr()
    return "apple.png"


def test_inspect_a_picture(picture: str, capsys: Capture) -> None:
    assert main(["inspect", picture]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    rows = dict(line.split(maxsplit=1) for line in out.splitlines() if len(line.split()) > 1)
    assert rows["prompt"].rstrip() == "a [red] apple"
    assert rows["seed"].rstrip() == "0"
    assert rows["scheduler"].rstrip() == "euler"


def test_inspect_a_picture_as_json(picture: str, capsys: Capture) -> None:
    assert main(["inspect", picture, "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert (record["prompt"], record["seed"], record["num_inference_steps"]) == ("a [red] apple", 0, 20)


def test_a_prompt_that_stdout_cannot_encode(bundle: str, monkeypatch: pytest.MonkeyPatch) -> None:
    main(["generate", "🍎", "--bundle", bundle, "-o", "apple.png"])
    stdout = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stdout)
    assert main(["inspect", "apple.png"]) == 0
    stdout.seek(0)
    assert r"\U0001f34e" in stdout.read()


def test_inspect_a_bundle(bundle: str, capsys: Capture) -> None:
    assert main(["inspect", bundle]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert all(name in out for name in ("family", "a test", "text_encoder", "encoder_hidden_states", "out_sample"))
    assert main(["inspect", bundle, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == json.loads((Path(bundle) / MANIFEST).read_text())


def test_what_inspect_cannot_use(folder: Path, tmp_path: Path, capsys: Capture) -> None:
    (tmp_path / "text.png").write_text("no picture")
    Image.new("RGB", (8, 8)).save(tmp_path / "plain.png")
    for name, message in {
        "none.png": r"none\.png: cannot be read as a picture \(.*No such file",
        "text.png": r"text\.png: not a PNG, JPEG or WebP file",
        "plain.png": r"plain\.png: no parameters in this picture",
        "here": r"here: no bundle here",
    }.items():
        assert_refused(["inspect", str(tmp_path / name)], message, folder, capsys)


# doctor


def test_doctor(capsys: Capture) -> None:
    assert main(["doctor"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert f"edgediffusion {__version__}" in out
    assert "onnxruntime" in out
    assert main(["doctor", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["machine"]["versions"]["edgediffusion"] == __version__
    assert {"backend": "ort", "device": "cpu", "works": True}.items() <= record["backends"][0].items()


@pytest.mark.parametrize(("works", "status"), [(True, 0), (False, 1)])
def test_the_status_of_doctor(works: bool, status: int, monkeypatch: pytest.MonkeyPatch, capsys: Capture) -> None:
    broken = Probe(backend="ort", device="cuda", versions={}, works=False, reason="no driver", remedy="install it")
    cpu = Probe(backend="ort", device="cpu", versions={}, works=works)
    monkeypatch.setattr(probe_module, "probe_all", lambda: (broken, cpu))
    assert main(["doctor"]) == status
    assert "ort on cuda: no driver\n    install it\n" in capsys.readouterr().out


# the command itself


def test_version(capsys: Capture) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr() == (f"edgediffusion {__version__}\n", "")


def test_help_lists_every_command(capsys: Capture) -> None:
    assert main(["--help"]) == 0
    out = capsys.readouterr().out
    assert all(f"  {name} " in out for name in [*COMMANDS, "export"])
    assert main([]) == 2
    assert capsys.readouterr() == ("", out)
    for name in COMMANDS:
        assert main([name, "--help"]) == 0
        assert capsys.readouterr().out.startswith(f"usage: edgediffusion {name}")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["draw"], r"unknown command 'draw'; known: bench, build, doctor, engines, export, generate, inspect, .*"),
        (["--quiet"], r"unrecognized arguments: --quiet; see: edgediffusion --help"),
        (["generate"], r"the following arguments are required: prompt; see: edgediffusion generate --help"),
        (["inspect"], r"the following arguments are required: FILE_OR_BUNDLE; see: edgediffusion inspect --help"),
        (["doctor", "now"], r"unrecognized arguments: now; see: edgediffusion doctor --help"),
        (["inspect", "two\nlines\x1b.png"], r"two lines\?\.png: cannot be read"),
    ],
)
def test_a_command_line_that_cannot_be_used(arguments: list[str], message: str, folder: Path, capsys: Capture) -> None:
    assert_refused(arguments, message, folder, capsys)


def test_commands_of_upper_layers(monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: Capture) -> None:
    entries = {"check": "edgediffusion.runtime.cli:doctor", "bench": "edgediffusion.nowhere:bench"}
    points = [EntryPoint(name, value, "edgediffusion.commands") for name, value in entries.items()]
    monkeypatch.setattr(importlib.metadata, "entry_points", lambda group: points)
    assert main(["check"]) == 0
    assert "onnxruntime" in capsys.readouterr().out
    message = r"bench needs edgediffusion\.nowhere, which is not installed; pip install 'edgediffusion\[bench\]'"
    assert_refused(["bench"], message, folder, capsys)


def run(*arguments: str, before: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-I", "-c", before + COMMAND, *arguments], capture_output=True, text=True)


def test_export_without_torch_names_its_extra(folder: Path) -> None:
    result = run("export", str(folder), "out", before="import sys; sys.modules['torch'] = None\n")
    assert result.returncode == 2
    assert result.stderr.splitlines()[-1].startswith("edgediffusion: error: ")
    assert "pip install 'edgediffusion[export]'" in result.stderr.splitlines()[-1]
    assert "Traceback" not in result.stderr
    assert names(folder) == []


def test_an_interrupt(monkeypatch: pytest.MonkeyPatch, folder: Path, capsys: Capture) -> None:
    def load(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Pipeline, "load", load)
    assert main(["generate", "x"]) == 130
    assert capsys.readouterr() == ("", "edgediffusion: interrupted\n")
    assert names(folder) == []


@pytest.mark.skipif(sys.platform == "win32", reason="there SIGTERM ends a process at once")
@pytest.mark.parametrize(("first", "status"), [("SIGINT", 130), ("SIGTERM", 143)])
@pytest.mark.parametrize("second", ["SIGINT", "SIGTERM"])
def test_a_second_interrupt_does_not_stop_the_cleaning_up(first: str, second: str, status: int) -> None:
    program = f"""
import os, signal, sys
from edgediffusion.runtime import cli

def doctor(arguments):
    try:
        os.kill(os.getpid(), signal.{first})
    finally:
        os.kill(os.getpid(), signal.{second})
        print("cleaned up")

signal.signal(signal.SIGINT, signal.default_int_handler)
cli.COMMANDS["doctor"] = doctor
sys.argv = ["edgediffusion", "doctor"]
cli.script()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (status, "cleaned up\n", "edgediffusion: interrupted\n")


@pytest.mark.parametrize(("daemon", "printed"), [(False, "Python has ended\n"), (True, "")])
def test_an_interrupt_leaves_a_thread_that_cannot_be_stopped(daemon: bool, printed: str) -> None:
    program = f"""
import atexit, sys, threading, time
from edgediffusion.runtime import cli

def doctor(arguments):
    threading.Thread(target=time.sleep, args=({60 if daemon else 0.1},), daemon={daemon}).start()
    raise KeyboardInterrupt

atexit.register(print, "Python has ended")
cli.COMMANDS["doctor"] = doctor
sys.argv = ["edgediffusion", "doctor"]
cli.script()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (130, printed, "edgediffusion: interrupted\n")


@pytest.mark.parametrize("arguments", [["doctor"], ["doctor", "--json"], ["--help"]])
@pytest.mark.parametrize("mode", ["-I", "-Iu"])
def test_a_closed_pipe(arguments: list[str], mode: str) -> None:
    """Whether Python buffers stdout or not."""
    process = subprocess.Popen(
        [sys.executable, mode, "-c", COMMAND, *arguments], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    assert process.stdout is not None
    process.stdout.close()
    _, err = process.communicate()
    assert err == b""


# with the model that comes with the package


def test_the_builtin_model_draws(folder: Path) -> None:
    heavy = ("torch", "diffusers", "transformers", "onnx")
    before = f"import sys; sys.modules.update(dict.fromkeys({heavy}))\n"
    result = run("generate", "a red apple", "--seed", "0", "--num-inference-steps", "2", before=before)
    assert (result.returncode, result.stdout, result.stderr) == (0, "a-red-apple.png\n", "")
    with Image.open("a-red-apple.png") as image:
        assert image.size == (128, 128)
    assert read_parameters(folder / "a-red-apple.png").seed == 0


def test_inspect_the_builtin_model(capsys: Capture) -> None:
    assert main(["inspect", str(BUILTIN)]) == 0
    assert "image_encoder" in capsys.readouterr().out
