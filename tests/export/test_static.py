"""A static export: graphs for one batch and size, without any arithmetic on shapes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from edgediffusion.engines.errors import ExportError, UsageError
from edgediffusion.export import write_bundle
from edgediffusion.export.against import checks_against
from edgediffusion.export.options import Options
from edgediffusion.export.sizes import static_sizes
from edgediffusion.export.sources.base import EditedPart
from edgediffusion.export.write_bundle import export_bundle
from edgediffusion.runtime import Pipeline
from edgediffusion.runtime.bundle import Bundle
from edgediffusion.runtime.golden import verify
from edgediffusion.runtime.manifest import Manifest, Static
from edgediffusion.runtime.settings import Settings

STATIC = Static(batch=2, height=40, width=72)


@pytest.fixture(scope="module")
def static(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `checkpoint` for `STATIC`."""
    folder = tmp_path_factory.mktemp("static") / "bundle"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write_bundle, "in_child", lambda what, function: function())
        export_bundle(checkpoint, folder, Options(static=STATIC))
    return folder


def test_manifest_and_graphs_have_numbers_only(static: Path) -> None:
    manifest = Manifest.read(static)
    assert manifest.static == STATIC
    shapes = {name: record.spec.inputs[0].shape for name, record in manifest.graphs.items()}
    assert shapes == {
        "text_encoder": (2, 77),
        "vae_encoder": (1, 3, 40, 72),
        "vae_decoder": (1, 4, 5, 9),
        "unet": (4, 4, 5, 9),
        "image_encoder": (1, 3, 32, 32),
    }
    for record in manifest.graphs.values():
        model = onnx.load(static / record.model, load_external_data=False)
        values = zip(
            (*model.graph.input, *model.graph.output), (*record.spec.inputs, *record.spec.outputs), strict=True
        )
        for value, tensor in values:
            assert tuple(d.dim_value for d in value.type.tensor_type.shape.dim) == tensor.shape
        assert record.parity.error < 2e-5


def test_no_shape_is_computed(static: Path) -> None:
    """What is told to a Reshape and its like is a constant; nothing else in the graph has integers, but token ids."""
    for name, record in Manifest.read(static).graphs.items():
        model = onnx.load(static / record.model, load_external_data=False)
        inferred = onnx.shape_inference.infer_shapes(model).graph
        types = {value.name: value.type.tensor_type.elem_type for value in inferred.value_info}
        nodes = [node for node in model.graph.node if node.op_type != "ArgMax"]
        integers = {node.op_type for node in nodes if types.get(node.output[0]) == onnx.TensorProto.INT64}
        assert integers <= ({"Unsqueeze"} if name == "text_encoder" else set()), name
        assert not {node.op_type for node in nodes} & {"Shape", "Size", "Expand"}, name


def test_the_picture_is_that_of_the_dynamic_bundle(static: Path, bundle: Path) -> None:
    settings = Settings(num_images=2, seed=1, num_inference_steps=4)
    pictures = []
    for path, given in ((static, settings), (bundle, Settings(**settings, width=72, height=40))):
        with Pipeline.load(path) as pipeline:
            drawn = pipeline("a red apple", "dark", **given)
        pictures.append(np.stack([np.asarray(picture.image, np.int16) for picture in drawn]))
    assert pictures[0].shape == (2, 40, 72, 3)
    assert pictures[0].std() > 20
    assert np.abs(pictures[0] - pictures[1]).max() <= 1  # the same sums in another order


def test_golden_outputs_and_torch_itself(static: Path, checkpoint: Path) -> None:
    with Bundle.open(static) as bundle:
        for checks in (list(verify(bundle)), list(checks_against(bundle, str(checkpoint), Options()))):
            assert sorted(check.component for check in checks) == sorted(bundle.manifest.graphs)
            assert all(0 < check.error < 2e-5 for check in checks)


@pytest.mark.parametrize(
    ("family", "config", "rows"), [("sd", {}, 4), ("sd_pix2pix", {}, 6), ("lcm", {"time_cond_proj_dim": 8}, 2)]
)
def test_rows_of_the_unet(family: str, config: dict[str, int], rows: int) -> None:
    parts = {
        "vae_decoder": EditedPart(Path("vae"), {"_class_name": "AutoencoderKL", "block_out_channels": [8] * 4}, {}, ()),
        "unet": EditedPart(Path("unet"), config, {}, ()),
    }
    assert static_sizes(family, parts, STATIC)["unet"] == {
        "batch": rows,
        "height": 5,
        "width": 9,
        "sequence_length": 77,
    }


def test_a_size_that_latents_cannot_have(checkpoint: Path, tmp_path: Path) -> None:
    options = Options(static=Static(batch=1, height=64, width=60))
    with pytest.raises(UsageError, match="--static 1x64x60: width 60; wanted a multiple of 8, such as 64"):
        export_bundle(checkpoint, tmp_path / "out", options)
    assert not list(tmp_path.iterdir())


def test_a_config_without_sizes() -> None:
    parts = {"vae_decoder": EditedPart(Path("vae"), {"_class_name": "AutoencoderKL"}, {}, ())}
    with pytest.raises(ExportError, match=r"vae/config\.json: 'block_out_channels' is missing; download it again"):
        static_sizes("sd", parts, STATIC)


@pytest.mark.slow
def test_in_float16_of_a_later_opset(checkpoint: Path, tmp_path: Path) -> None:
    """With all that is made from such graphs, as the CUDA dialect."""
    options = Options(static=STATIC, dtype={"": "float16"}, opset=23)
    graphs = export_bundle(checkpoint, tmp_path / "bundle", options).graphs
    assert all(record.dialects["cuda"].parity.error < 1e-2 for record in graphs.values())
