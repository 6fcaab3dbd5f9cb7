"""What the fused operators compute, in standard operators: the dialect can so be checked where there is no GPU.

The definitions follow ONNX Runtime's docs/ContribOperators.md.
"""

from __future__ import annotations

import onnx
from onnx import inliner, parser

from ..strip import strip
from .own_kernels import OWN_DOMAIN
from .rewriter import DOMAIN

_NORM = """
    groups_ = Constant <value_int: int = @groups> ()
    start = Constant <value_ints: ints = [0]> ()
    rest = Constant <value_ints: ints = [-1]> ()
    one = Constant <value_ints: ints = [1]> ()
    count = Reshape (groups_, one)
    shape = Concat <axis = 0> (start, count, rest)
    first = Transpose <perm = [0, 3, 1, 2]> (total)
    grouped = Reshape (first, shape)
    zero = Constant <value_float: float = 0.0> ()
    unit = Constant <value_float: float = 1.0> ()
    zeros_ = Expand (zero, count)
    units_ = Expand (unit, count)
    zeros = CastLike (zeros_, total)
    units = CastLike (units_, total)
    normal = InstanceNormalization <epsilon: float = @epsilon> (grouped, units, zeros)
    size = Shape (first)
    pictures = Reshape (normal, size)
    last = Transpose <perm = [0, 2, 3, 1]> (pictures)
    scale = CastLike (gamma, total)
    shift = CastLike (beta, total)
    scaled = Mul (last, scale)
    result = Add (scaled, shift)
    sigmoid = Sigmoid (result)
    silu = Mul (result, sigmoid)
    active = Constant <value_int: int = @activation> ()
    condition = Cast <to = 9> (active)
    y = Where (condition, silu, result)
"""
_FUNCTIONS = (
    f"""GroupNorm <groups, epsilon, activation> (x, gamma, beta) => (y) {{
    total = Identity (x)
    {_NORM} }}""",
    f"""SkipGroupNorm <groups, epsilon, activation> (x, gamma, beta, skip) => (y, total) {{
    total = Add (x, skip)
    {_NORM} }}""",
    """NhwcConv <dilations, group, kernel_shape, pads, strides> (x, w, b) => (y) {
    pictures = Transpose <perm = [0, 3, 1, 2]> (x)
    kernels = Transpose <perm = [0, 3, 1, 2]> (w)
    result = Conv <dilations: ints = @dilations, group: int = @group, kernel_shape: ints = @kernel_shape,
                   pads: ints = @pads, strides: ints = @strides> (pictures, kernels, b)
    y = Transpose <perm = [0, 2, 3, 1]> (result)
    }""",
    """FusedMatMul <transB> (x, w) => (y) {
    columns = Transpose <perm = [1, 0]> (w)
    y = MatMul (x, columns)
    }""",
    """BiasSplitGelu (x, bias) => (y) {
    biased = Add (x, bias)
    left, right = Split <axis = -1, num_outputs = 2> (biased)
    root_ = Constant <value_float: float = 1.4142135623730951> ()
    half_ = Constant <value_float: float = 0.5> ()
    one_ = Constant <value_float: float = 1.0> ()
    root = CastLike (root_, x)
    half = CastLike (half_, x)
    one = CastLike (one_, x)
    scaled = Div (right, root)
    erf = Erf (scaled)
    above = Add (erf, one)
    twice = Mul (right, above)
    gelu = Mul (twice, half)
    y = Mul (left, gelu)
    }""",
    """SkipLayerNormalization <epsilon> (x, skip, gamma, beta) => (y, mean, deviation, total) {
    total = Add (x, skip)
    y = LayerNormalization <axis = -1, epsilon: float = @epsilon> (total, gamma, beta)
    mean = Identity (y)
    deviation = Identity (y)
    }""",
    """BiasSkipLayerNormalization <epsilon> (x, skip, gamma, beta, bias) => (y, mean, deviation, total) {
    biased = Add (x, bias)
    total = Add (biased, skip)
    y = LayerNormalization <axis = -1, epsilon: float = @epsilon> (total, gamma, beta)
    mean = Identity (y)
    deviation = Identity (y)
    }""",
    """MultiHeadAttention <num_heads, scale> (query, key, value) => (y) {
    heads_ = Constant <value_int: int = @num_heads> ()
    start = Constant <value_ints: ints = [0, 0]> ()
    rest = Constant <value_ints: ints = [-1]> ()
    one = Constant <value_ints: ints = [1]> ()
    heads = Reshape (heads_, one)
    split = Concat <axis = 0> (start, heads, rest)
    joined = Concat <axis = 0> (start, rest)
    query_ = Reshape (query, split)
    key_ = Reshape (key, split)
    value_ = Reshape (value, split)
    q = Transpose <perm = [0, 2, 1, 3]> (query_)
    k = Transpose <perm = [0, 2, 3, 1]> (key_)
    v = Transpose <perm = [0, 2, 1, 3]> (value_)
    factor_ = Constant <value_float: float = @scale> ()
    factor = CastLike (factor_, query)
    scaled = Mul (q, factor)
    scores = MatMul (scaled, k)
    weights = Softmax <axis = -1> (scores)
    mixed = MatMul (weights, v)
    tokens = Transpose <perm = [0, 2, 1, 3]> (mixed)
    y = Reshape (tokens, joined)
    }""",
)


_OWN = {
    "BiasGroupNorm": ("x", "gamma", "beta", "bias", "embedding", "skip"),
    "BiasAdd": ("x", "bias", "skip"),
    "BiasUpsample": ("x", "bias", "skip", "like"),
    "BiasLayerNorm": ("x", "gamma", "beta", "bias"),
}
_NEAREST = 'mode = "nearest", coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"'
_OWN_BODIES = {
    "BiasGroupNorm": f"<groups, epsilon, activation> (%s) => (y, total, sums) {{ %s {_NORM} sums = Identity (gamma) }}",
    "BiasAdd": "(%s) => (total) { %s }",
    "BiasUpsample": f"""(%s) => (y) {{ %s
    scales = Constant <value_floats: floats = [1.0, 2.0, 2.0, 1.0]> ()
    y = Resize <{_NEAREST}> (total, , scales) }}""",
    "BiasUpsampleLike": f"""(%s) => (y) {{ %s
    sizes = Shape <start = 1, end = 3> (like)
    y = Resize <{_NEAREST}, axes = [1, 2]> (total, , , sizes) }}""",
    "BiasLayerNorm": """<epsilon> (%s) => (y, total) { %s
    y = LayerNormalization <axis = -1, epsilon: float = @epsilon> (total, gamma, beta) }""",
}


def _own_function(name: str, op_type: str, given: list[str]) -> str:
    """What our operator computes of the inputs that are `given` (`engines/kernels/kernels.cu`)."""
    total, lines = "x", list[str]()
    for term in given:
        if term not in ("x", "gamma", "beta", "like"):
            lines.append(f"with_{term} = Add ({total}, {term})")
            total = f"with_{term}"
    body = _OWN_BODIES["BiasUpsampleLike" if "like" in given else op_type]
    return f"{name} {body}" % (", ".join(given), "\n".join([*lines, f"total = Identity ({total})"]))


def to_portable(model: onnx.ModelProto) -> onnx.ModelProto:
    """The graph of `to_cuda_dialect`, or of `to_own_kernels`, in standard operators.

    It is to be simplified like one of the exporter's.
    """
    result = onnx.ModelProto()
    result.CopyFrom(model)
    functions = list(_FUNCTIONS)
    for node in result.graph.node:
        if node.op_type in _OWN:  # a function has no optional inputs, so each choice of them is one
            given = [term for term, value in zip(_OWN[node.op_type], node.input, strict=False) if value]
            name = "_".join([node.op_type, *given])
            functions.append(_own_function(name, node.op_type, given))
            node.op_type = name
            node.input[:] = [value for value in node.input if value]
        if node.op_type == "BiasGeglu":
            node.op_type = "BiasSplitGelu"
        if node.domain == OWN_DOMAIN:
            node.domain = DOMAIN
        if node.op_type == "SkipLayerNormalization" and len(node.input) == 5:
            node.op_type = "BiasSkipLayerNormalization"  # a function has no optional terms
    (opset,) = (imported.version for imported in model.opset_import if not imported.domain)
    header = f'<domain: "{DOMAIN}", opset_import: ["" : {opset}]>\n'  # a function of another opset is not inlined
    result.functions.extend(parser.parse_function(header + text) for text in dict.fromkeys(functions))
    return strip(inliner.inline_local_functions(result))
