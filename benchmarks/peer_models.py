"""This package's networks as PyTorch's modules and as ONNX files, with the same weights: what `training.py` compares with."""

from __future__ import annotations

from typing import Any

import numpy as np

from fastconv import nn


def as_torch(layer: nn.Layer) -> Any:
    """A layer of this package as PyTorch's, with the same weights."""
    import torch
    from torch import nn as tn

    class Sum(tn.Module):
        def __init__(self, branch: Any, shortcut: Any, activation: Any):
            super().__init__()
            self.branch, self.shortcut, self.activation = branch, shortcut, activation

        def forward(self, x: Any) -> Any:
            y = self.branch(x)
            y += self.shortcut(x)
            return self.activation(y)

    def child(key: str) -> Any:
        return as_torch(layer.children[key]) if key in layer.children else tn.Identity()

    if isinstance(layer, nn.Sequential):
        return tn.Sequential(*(as_torch(part) for part in layer))
    if isinstance(layer, nn.Residual):
        return Sum(child("branch"), child("shortcut"), child("activation"))
    made: Any
    if isinstance(layer, nn.Conv2d):
        made = tn.Conv2d(layer.in_channels, layer.out_channels, layer.kernel_size, layer.stride, layer.padding, layer.dilation,
                         layer.groups, "bias" in layer.params)
    elif isinstance(layer, nn.BatchNorm2d):
        made = tn.BatchNorm2d(layer.num_features, layer.eps, layer.momentum)
    elif isinstance(layer, nn.Linear):
        made = tn.Linear(layer.in_features, layer.out_features, "bias" in layer.params)
    elif isinstance(layer, (nn.MaxPool2d, nn.AvgPool2d)):
        options = {key: layer.options[key] for key in ("stride", "padding")}
        made = getattr(tn, type(layer).__name__)(layer.values[0], **options)
    elif isinstance(layer, (nn.GlobalAvgPool, nn.AdaptiveAvgPool2d)):
        made = tn.AdaptiveAvgPool2d(1)
    elif isinstance(layer, (nn.ReLU, nn.ReLU6)):
        made = getattr(tn, type(layer).__name__)(inplace=True)
    elif isinstance(layer, nn.Dropout):
        made = tn.Dropout(layer.p)
    else:
        made = getattr(tn, type(layer).__name__)()
    made.load_state_dict({key: torch.from_numpy(array) for key, array in layer.state_dict().items()})
    return made


def as_onnx(model: nn.Layer, shape: tuple[int, ...]) -> bytes:
    """A model as ONNX's, with the same weights."""
    from onnx import TensorProto, helper, numpy_helper

    nodes: list[Any] = []
    constants: list[Any] = []

    def constant(array: np.ndarray) -> str:
        constants.append(numpy_helper.from_array(np.asarray(array), f"c{len(constants)}"))
        return constants[-1].name

    def node(kind: str, *inputs: str, **attributes: Any) -> str:
        nodes.append(helper.make_node(kind, inputs, [f"n{len(nodes)}"], **attributes))
        return nodes[-1].output[0]

    def emit(layer: nn.Layer, x: str) -> str:
        state = layer.state_dict() if not layer.children else {}
        if isinstance(layer, nn.Sequential):
            for part in layer:
                x = emit(part, x)
            return x
        if isinstance(layer, nn.Residual):
            children = layer.children
            y = node("Add", emit(children["branch"], x), emit(children["shortcut"], x) if "shortcut" in children else x)
            return emit(children["activation"], y) if "activation" in children else y
        if isinstance(layer, nn.Conv2d):
            return node("Conv", x, *map(constant, state.values()), kernel_shape=layer.kernel_size, strides=layer.stride,
                        pads=[layer.padding] * 4, group=layer.groups)
        if isinstance(layer, nn.BatchNorm2d):
            names = ("weight", "bias", "running_mean", "running_var")
            return node("BatchNormalization", x, *(constant(state[name]) for name in names), epsilon=layer.eps)
        if isinstance(layer, nn.Linear):
            return node("Gemm", x, *map(constant, state.values()), transB=1)
        if isinstance(layer, nn.MaxPool2d):
            return node("MaxPool", x, kernel_shape=[layer.values[0]] * 2, strides=[layer.options["stride"]] * 2,
                        pads=[layer.options["padding"]] * 4)
        if isinstance(layer, nn.ReLU6):
            return node("Clip", x, constant(np.float32(0)), constant(np.float32(6)))
        if isinstance(layer, nn.Dropout):
            return x
        kinds = {nn.ReLU: "Relu", nn.Flatten: "Flatten", nn.GlobalAvgPool: "GlobalAveragePool", nn.AdaptiveAvgPool2d: "GlobalAveragePool"}
        return node(kinds[type(layer)], x)

    output = emit(model, "x")
    graph = helper.make_graph(nodes, "model", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
                              [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)], constants)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)])
    made.ir_version = 8  # what opset 17 came with: older runtimes refuse newer ones
    return made.SerializeToString()
