"""The command line around the export."""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Any

import pytest

from edgediffusion.engines.errors import BackendUnavailable, UsageError
from edgediffusion.export import write_bundle
from edgediffusion.export.cli import export
from edgediffusion.export.options import Options
from edgediffusion.runtime.manifest import Static
from edgediffusion.runtime.pipeline import BUILTIN


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    made: list[tuple[Any, ...]] = []

    def export_bundle(source: str, out: Path, options: Options, report: Any) -> None:
        made.append((source, out, options))
        report("unet: exporting")

    monkeypatch.setattr(write_bundle, "export_bundle", export_bundle)
    return made


def test_source_and_out(calls: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    assert export(["from", "to", "--license", "MIT"]) == 0
    assert calls == [("from", Path("to"), Options(license="MIT"))]
    assert tuple(capsys.readouterr()) == ("to\n", "loading torch\nunet: exporting\n")


def test_a_terminal_shows_the_time(calls: list[tuple[Any, ...]], monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stderr", terminal := Terminal())
    export(["from", "to"])
    text = re.sub(r"\x1b\[[^a-zA-Z]*[a-zA-Z]", "", terminal.getvalue())
    assert re.search(r"\[\d\d:\d\d:\d\d\] loading torch *\n.*unet: exporting", text, re.DOTALL)


def test_one_folder_is_where_the_built_in_model_goes(calls: list[tuple[Any, ...]]) -> None:
    export(["to"])
    assert calls == [(str(BUILTIN), Path("to"), Options())]


def test_flags(calls: list[tuple[Any, ...]]) -> None:
    flags = "--dtype fp16 --dtype vae_decoder=fp32 --opset 20 --static 2x512x768 --vae v --unet u "
    flags += (
        "--controlnet a --controlnet b --lora x.safetensors:0.8 --lora C:\\y.safetensors --embedding e --revision r"
    )
    export(["from", "to", *flags.split(), "--resume"])
    assert calls[0][2] == Options(
        dtype={"": "float16", "vae_decoder": "float32"},
        opset=20,
        static=Static(batch=2, height=512, width=768),
        vae="v",
        unet="u",
        controlnets=("a", "b"),
        loras=((Path("x.safetensors"), 0.8), (Path("C:\\y.safetensors"), 1.0)),
        embeddings=(Path("e"),),
        revision="r",
        resume=True,
    )
    export(["to", "--weights", "int8"])  # nothing of the last call is left in the defaults
    assert calls[1][2] == Options(weights="int8")


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--dtype=unet=fp8", "argument --dtype: 'fp8', known: fp32, fp16, bf16; see: edgediffusion export --help"),
        ("--static=512x512", "argument --static: '512x512', wanted BATCHxHEIGHTxWIDTH, such as 1x512x512; see"),
        ("--static=0x512x512", "argument --static: '0x512x512', wanted BATCHxHEIGHTxWIDTH"),
        ("--weights=int3", "argument --weights: invalid choice: 'int3'"),
    ],
)
def test_a_flag_that_is_wrong(calls: list[tuple[Any, ...]], flag: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        export(["to", flag])


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("edgediffusion.export.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendUnavailable, match=r"export needs torch; pip install 'edgediffusion\[export\]'"):
        export(["to"])


def test_no_folder_at_all() -> None:
    with pytest.raises(UsageError, match=r"required: OUT; see: edgediffusion export --help"):
        export([])
