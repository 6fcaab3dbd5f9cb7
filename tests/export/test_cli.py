"""The command line around the export."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from edgediffusion.engines.errors import BackendUnavailable, UsageError
from edgediffusion.export import write_bundle
from edgediffusion.export.cli import export
from edgediffusion.runtime.pipeline import BUILTIN


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    made: list[tuple[Any, ...]] = []

    def export_bundle(source: Path, out: Path, *, license: str | None, report: Any) -> None:
        made.append((source, out, license))
        report("unet: exporting")

    monkeypatch.setattr(write_bundle, "export_bundle", export_bundle)
    return made


def test_source_and_out(calls: list[tuple[Any, ...]], capsys: pytest.CaptureFixture[str]) -> None:
    assert export(["from", "to", "--license", "MIT"]) == 0
    assert calls == [(Path("from"), Path("to"), "MIT")]
    assert tuple(capsys.readouterr()) == ("to\n", "loading torch\nunet: exporting\n")


def test_one_folder_is_where_the_built_in_model_goes(calls: list[tuple[Any, ...]]) -> None:
    export(["to"])
    assert calls == [(BUILTIN, Path("to"), None)]


def test_without_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("edgediffusion.export.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(BackendUnavailable, match=r"export needs torch; pip install 'edgediffusion\[export\]'"):
        export(["to"])


def test_no_folder_at_all() -> None:
    with pytest.raises(UsageError, match=r"required: OUT; see: edgediffusion export --help"):
        export([])
