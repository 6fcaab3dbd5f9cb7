"""The one call of torch's exporter."""

from __future__ import annotations

import contextlib
import copy
import inspect
import logging
import math
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import torch
from onnx import helper
from onnxscript import opset18 as op
from torch import nn

from edgediffusion.engines.spec import GraphSpec

from .families.base import Sample
from .passes import simplify


def to_onnx(module: nn.Module, spec: GraphSpec, example: Sample, opset: int = 18) -> onnx.ModelProto:
    """The graph of `module`, traced with `example`, and made portable by `passes.simplify`.

    Free dimensions of `spec` stay free. Parameters are initializers under their PyTorch names, without data: external,
    at a place that means nothing yet.
    """
    arguments = {tensor.name: torch.from_numpy(example.feeds[tensor.name]) for tensor in spec.inputs}
    # One batch for all inputs; which sizes are equal torch finds out. From 64 on diffusers copies before it upsamples.
    known = {"batch": torch.export.Dim("batch", max=63)}
    free = {
        tensor.name: {
            i: known.get(d, torch.export.Dim.DYNAMIC) for i, d in enumerate(tensor.shape) if isinstance(d, str)
        }
        for tensor in spec.inputs
    }
    with quiet(), torch.no_grad(), _named_inputs(module, list(arguments)):
        program = torch.export.export(module, (), arguments, dynamic_shapes=free)
        try:
            model = _translate(_whole(program), spec, opset)
        except torch.onnx.OnnxExporterError:
            model = _translate(program, spec, opset)
    for name in module.state_dict():
        weight = model.graph.initializers[name]
        assert weight.dtype is not None
        assert weight.shape is not None
        weight.const_value = ir.ExternalTensor("weights", 0, 0, weight.dtype, shape=weight.shape, name=name)
    return declare(simplify(ir.to_proto(model)), spec)


def _translate(program: torch.export.ExportedProgram, spec: GraphSpec, opset: int) -> ir.Model:
    translated = torch.onnx.export(
        program,
        dynamo=True,
        optimize=False,
        opset_version=opset,
        verbose=False,
        input_names=[tensor.name for tensor in spec.inputs],
        output_names=[tensor.name for tensor in spec.outputs],
        custom_translation_table=TRANSLATIONS,
    )
    assert translated is not None
    return translated.model


def _whole(program: torch.export.ExportedProgram) -> torch.export.ExportedProgram:
    """A copy that is not decomposed: to do that torch traces it again, a third of an export's time.

    It translates where each operator has a translation as it stands; those that work in place have none.
    """
    whole = copy.copy(program)
    whole.run_decompositions = lambda *_: whole
    return whole


@contextlib.contextmanager
def _named_inputs(module: nn.Module, names: list[str]) -> Iterator[None]:
    """Give `module.forward` a signature of just these: torch cannot tell the sizes of what goes into its **keywords."""
    inner = module.forward

    def forward(*values: Any, **named: Any) -> Any:
        return inner(**dict(zip(names, values, strict=False)), **named)

    parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in names]
    forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    module.forward = forward
    try:
        yield
    finally:
        del module.forward


def declare(model: onnx.ModelProto, spec: GraphSpec) -> onnx.ModelProto:
    """Give the graph the inputs and outputs of `spec`; the exporter's own dimensions are symbols such as `s53`."""
    for values, tensors in ((model.graph.input, spec.inputs), (model.graph.output, spec.outputs)):
        assert [value.name for value in values] == [tensor.name for tensor in tensors]
        del values[:]
        for tensor in tensors:
            element = helper.np_dtype_to_tensor_dtype(np.dtype(tensor.dtype))
            values.append(helper.make_tensor_value_info(tensor.name, element, tensor.shape))
    model.graph.name = spec.name
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence the warnings and loggers of torch, diffusers and transformers: their remarks are not for the user."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)


def _attention(
    query: Any,
    key: Any,
    value: Any,
    attn_mask: Any = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Any:
    """softmax(query key^T scale + mask) value, arXiv:1706.03762 eq. 1: what backends know to fuse.

    torch's own translation flattens to transpose, and scales both sides.
    """
    assert not is_causal
    assert not enable_gqa
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    scores = op.MatMul(op.Mul(query, op.Constant(value_float=scale)), op.Transpose(key, perm=[0, 1, 3, 2]))
    if attn_mask is not None:
        scores = op.Add(scores, _additive(attn_mask))
    return op.MatMul(op.Softmax(scores, axis=-1), value)


def _additive(mask: Any) -> Any:
    """0 where a boolean mask lets through, else minus infinity."""
    if mask.dtype != ir.DataType.BOOL:
        return mask
    through: Any = op.Constant(value_float=0.0)
    return op.Where(mask, through, op.Constant(value_float=-float("inf")))


def _group_norm(
    input: Any,
    num_groups: int,
    weight: Any = None,
    bias: Any = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Any:
    """Group normalisation (arXiv:1803.08494) as instance normalisation of the groups: what backends know to fuse.

    torch's own translation merges the sizes of a picture, and needs its shape to part them again.
    """
    others = list(range(1, len(input.shape) - 1))
    kept = [0] * (len(others) - 1)
    to_groups: Any = op.Constant(value_ints=[0, num_groups, -1, *kept])
    to_channels: Any = op.Constant(value_ints=[0, input.shape[1], -1, *kept])
    one, zero = op.Constant(value_floats=[1.0] * num_groups), op.Constant(value_floats=[0.0] * num_groups)
    normal = op.InstanceNormalization(op.Reshape(input, to_groups), one, zero, epsilon=eps)
    normal = op.Reshape(normal, to_channels)
    axes: Any = op.Constant(value_ints=others)
    normal = normal if weight is None else op.Mul(normal, op.Unsqueeze(weight, axes))
    return normal if bias is None else op.Add(normal, op.Unsqueeze(bias, axes))


def _gelu(self: Any, approximate: str = "none") -> Any:
    """x (1 + erf(x / sqrt 2)) / 2, arXiv:1606.08415, or its approximation by tanh, multiplied in this order.

    torch's own translation halves the sum first, which ONNX Runtime does not know to fuse.
    """
    if approximate == "tanh":
        cubed: Any = op.Mul(op.Mul(self, op.Mul(self, self)), op.Constant(value_float=0.044715))
        bent: Any = op.Tanh(op.Mul(op.Add(self, cubed), op.Constant(value_float=math.sqrt(2 / math.pi))))
    else:
        bent = op.Erf(op.Div(self, op.Constant(value_float=math.sqrt(2))))
    return op.Mul(op.Mul(self, op.Add(bent, op.Constant(value_float=1.0))), op.Constant(value_float=0.5))


def _split(tensor: Any, split_size: int, dim: int = 0) -> Any:
    """torch's own translation makes a sequence, which few backends have."""
    parts, rest = divmod(tensor.shape[dim], split_size)
    assert rest == 0
    return op.Split(tensor, axis=dim, num_outputs=parts)


def _cast(input: Any, dtype: Any, *_: Any, **__: Any) -> Any:
    return op.Cast(input, to=dtype)


def _move(input: Any, device: Any, dtype: Any, *_: Any, **__: Any) -> Any:
    return _cast(input, dtype)


def _dropout(input: Any, p: float, train: bool) -> Any:
    assert not train
    return op.Identity(input)


TRANSLATIONS: dict[Callable[..., Any], Callable[..., Any]] = {
    torch.ops.aten.scaled_dot_product_attention.default: _attention,
    torch.ops.aten.group_norm.default: _group_norm,
    torch.ops.aten.gelu.default: _gelu,
    torch.ops.aten.split.Tensor: _split,
    torch.ops.aten.to.dtype: _cast,
    torch.ops.aten.to.device: _move,
    torch.ops.aten.dropout.default: _dropout,
}
