"""Planted faults of half precision are found and mended, and nothing else is kept in float32."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, parser
from safetensors.torch import load_file, save_file

from edgediffusion.engines.errors import ExportError
from edgediffusion.engines.registry import open_engine
from edgediffusion.engines.spec import GraphSpec, TensorSpec
from edgediffusion.export import component, precision
from edgediffusion.export.families import FAMILIES, Sample
from edgediffusion.export.options import Options
from edgediffusion.export.passes.graph import element_types
from edgediffusion.export.precision import TOLERANCES, Case, halve
from edgediffusion.export.sources import open_source
from edgediffusion.runtime.families import FAMILIES as RUNTIME_FAMILIES

SPEC = GraphSpec("net", (TensorSpec("x", "float32", ("n", 4)),), (TensorSpec("y", "float32", ("n", 4)),))
SAMPLES = [
    Sample("ones", {"x": np.ones((1, 4), np.float32)}),
    Sample("normal", {"x": np.random.default_rng(0).standard_normal((3, 4)).astype(np.float32)}),
]


def case(tmp_path: Path, body: str, constants: str = "") -> Case:
    """A graph x (n, 4) -> y (n, 4), and what float32 makes of the samples."""
    header = f'<ir_version: 8, opset_import: ["" : 18]> g (float[n, 4] x) => (float[n, 4] y) <{constants}>'
    model = parser.parse_model(f"{header} {{ {body} }}")
    (tmp_path / "g.onnx").write_bytes(model.SerializeToString())
    with open_engine(tmp_path / "g.onnx", SPEC, device="cpu") as engine:
        wanted = [engine(sample.feeds) for sample in SAMPLES]
    return Case(model=model, spec=SPEC, folder=tmp_path, samples=SAMPLES, wanted=wanted)


LAYERS = "[a] a = Mul(x, k) [b] b = Relu(a) [c] c = Add(b, x)"
LAST = "[h] h = Sigmoid(g) [i] i = Mul(h, k) [j] y = Add(i, h)"


def cancellation(tmp_path: Path) -> Case:
    """4096 is added and taken away: in half precision that leaves whole numbers."""
    body = f"{LAYERS} [up] u = Add(c, big) [down] g = Sub(u, big) {LAST}"
    return case(tmp_path, body, "float k = {0.3}, float big = {4096}")


def test_what_half_precision_bears_is_left_alone(tmp_path: Path) -> None:
    plain = case(tmp_path, f"{LAYERS} [d] g = Neg(c) {LAST}", "float k = {0.3}")
    for dtype, tolerance in TOLERANCES.items():
        halved = halve(plain, dtype)
        assert halved.islands == ()
        assert 0 < halved.parity.error < tolerance
        assert halved.parity.tolerance == tolerance


def test_an_operator_that_loses_all_digits_is_found_by_its_error(tmp_path: Path) -> None:
    bad = cancellation(tmp_path)
    assert bad.check("float16", ()).error > 0.05
    halved = halve(bad, "float16")
    assert set(halved.islands) == {"up", "down"}
    assert halved.parity.error < TOLERANCES["float16"]
    types = element_types(halved.model)
    assert [types[name] for name in ("b", "u", "h")] == [TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.FLOAT16]


def test_islands_of_every_graph_are_noted(tmp_path: Path) -> None:
    """Those of a variant, too, which is written by the same function."""
    options = Options(dtype={"": "float16"})
    variant, _ = component._write_graph(cancellation(tmp_path), {}, "model.variant.onnx", options)
    assert (variant.model, set(variant.islands)) == (f"{tmp_path.name}/model.variant.onnx", {"up", "down"})
    assert (tmp_path / "model.variant.onnx").exists()


def test_what_leaves_the_range_is_found_by_the_values(tmp_path: Path) -> None:
    large = case(
        tmp_path,
        f"{LAYERS} [up] u = Mul(c, big) [turn] t = Transpose<perm = [0, 1]>(u) [down] g = Div(t, big) {LAST}",
        "float k = {0.3}, float big = {50000}",
    )
    assert large.check("float16", ()).error > 0.1
    assert halve(large, "float16").islands == ("up", "down")
    assert halve(large, "bfloat16").islands == ()


def test_operators_that_need_not_stay_are_let_go(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The first guess of the search is made a wrong one."""
    bad = cancellation(tmp_path)
    guesses = iter(("a", "up", "down"))
    monkeypatch.setattr(precision, "_worst", lambda *_: next(guesses))
    assert halve(bad, "float16").islands == ("up", "down")


def test_what_cannot_be_mended_names_the_worst_operators(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bad = cancellation(tmp_path)
    monkeypatch.setattr(precision, "MOST", 1)
    message = (
        r"net: off by 0\.\d+ of torch's largest output in float16 \(\w+\), tolerance 0.01, "
        r"also with these in float32: (up|down); export this component with --dtype COMPONENT=fp32"
    )
    with pytest.raises(ExportError, match=message):
        halve(bad, "float16")


def test_weights_that_cannot_be_rounded(tmp_path: Path) -> None:
    good = case(tmp_path, "[a] y = Add(x, x)")
    for outputs in good.wanted:
        outputs["y"] += 0.5
    with pytest.raises(ExportError, match=r"net: off by 0.\d+ .* by the rounding of its weights alone; export this"):
        halve(good, "float16")


PLANTED = "decoder.up_blocks.3.resnets.0.conv2"


@pytest.fixture(scope="module")
def overflowing(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`checkpoint` with a VAE whose last block carries values beyond float16, as that of SDXL does, and one weight."""
    folder = tmp_path_factory.mktemp("overflowing") / "checkpoint"
    shutil.copytree(checkpoint, folder)
    path = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights = {key: value.float() for key, value in load_file(path).items()}
    for name in ("weight", "bias"):
        weights[f"{PLANTED}.{name}"] *= 1.5e5
    weights[f"{PLANTED}.weight"][0, 0, 0, 0] = 7e4
    save_file(weights, path, metadata={"format": "pt"})
    return folder


def export_decoder(source: Path, out: Path, dtype: str) -> component.Exported:
    checkpoint, rng = open_source(source), np.random.default_rng(0)
    (record,) = (c for c in RUNTIME_FAMILIES[checkpoint.family].components if c.folder == "vae_decoder")
    network = FAMILIES[checkpoint.family]["vae_decoder"]
    seen = [{"latent_parameters": rng.standard_normal((n, 8, h, w), np.float32)} for n, h, w in ((2, 5, 8), (1, 4, 4))]
    part: Any = checkpoint.component(network.folders)
    return component.export_component(part, record, network, {"vae_encoder": seen}, out, Options(dtype={"": dtype}))


def test_a_vae_that_overflows_is_found_and_mended(overflowing: Path, tmp_path: Path) -> None:
    exported = export_decoder(overflowing, tmp_path, "float16")
    model = onnx.load(tmp_path / exported.record.model, load_external_data=False)
    operators = {node.name: node.op_type for node in model.graph.node}
    assert {operators[name] for name in exported.record.islands} == {"Conv", "Add", "InstanceNormalization"}
    assert len(exported.record.islands) < 0.02 * len(operators)
    assert exported.record.parity.error < TOLERANCES["float16"]
    stored = load_file(tmp_path / exported.record.weights)
    assert [key for key, value in stored.items() if value.dtype != torch.float16] == [f"{PLANTED}.weight"]


def test_a_graph_that_this_machine_cannot_run_says_so(overflowing: Path, tmp_path: Path) -> None:
    exported = export_decoder(overflowing, tmp_path, "bfloat16")
    assert exported.record.islands == ()
    assert exported.record.parity.tolerance == TOLERANCES["bfloat16"]
    assert exported.remark is not None
    assert exported.remark.startswith("vae_decoder: checked in float32 with every value rounded to bfloat16, which")
