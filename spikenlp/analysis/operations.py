"""The functions whose operations are counted, in each form that a model may call them by."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from spikenlp.analysis.following import ADD

LAYERS = (F.linear, F.conv1d, F.conv2d, F.conv3d)
MATMULS = (
    *(torch.matmul, torch.Tensor.matmul, torch.mm, torch.Tensor.mm, torch.bmm, torch.Tensor.bmm),
    *(torch.addmm, torch.Tensor.addmm, torch.baddbmm, torch.Tensor.baddbmm),
)


def _methods(name: str) -> tuple[Any, Any]:
    """The method of a tensor and its form in place."""
    return getattr(torch.Tensor, name), getattr(torch.Tensor, f"{name}_")


ELEMENTWISE = {
    F.layer_norm: "layer norm",
    F.batch_norm: "batch norm",
    F.group_norm: "group norm",
    F.rms_norm: "RMS norm",
    F.gelu: "GELU",
    F.silu: "SiLU",
    **dict.fromkeys((F.relu, torch.relu, torch.relu_, *_methods("relu")), "ReLU"),
    **dict.fromkeys((torch.tanh, F.tanh, *_methods("tanh")), "tanh"),
    **dict.fromkeys((torch.sigmoid, F.sigmoid, *_methods("sigmoid")), "sigmoid"),
    **dict.fromkeys((F.leaky_relu, F.elu), "ReLU"),
    **dict.fromkeys((F.softmax, torch.softmax, torch.Tensor.softmax), "softmax"),
    **dict.fromkeys((*ADD, torch.Tensor.add_, torch.Tensor.__iadd__), "residual"),
}
"""Float functions between products, by what they are billed as."""

UNREGISTERED = {
    *(torch.ops.aten.mv, torch.ops.aten.addmv, torch.ops.aten.dot, torch.ops.aten.vdot),
    *(torch.ops.aten.addr, torch.ops.aten.addbmm, torch.ops.aten._int_mm, torch.ops.aten.sspaddmm),
    *(torch.ops.aten._trilinear, torch.ops.aten.mkldnn_rnn_layer, torch.ops.aten.conv_tbc),
}
"""Products that torch's own counter of operations leaves out."""
