"""The forward pass as an ONNX graph: inputs by name to `timestep_logits` [batch, T, ...].

What is checked is the graph that is kept: it is made with the currents and spikes of all neurons as
further outputs, run so by onnxruntime, and then loses these outputs and what only they need. The kept
graph is run as well.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from spikenlp.export.check import Agreement, compare, compare_logits
from spikenlp.export.extra import import_extra
from spikenlp.export.program import Steps, check_float32, inputs_of, to_trace
from spikenlp.models.modes import has_several_labels

OUTPUT = "timestep_logits"


def write_onnx(model: PreTrainedModel, path: Path, batch: Mapping[str, Tensor] | None) -> Agreement:
    """See `spikenlp.export.export`."""
    import_extra("onnx", "onnxscript", "onnxruntime")
    check_float32(model, "ONNX")
    inputs = inputs_of(model, batch)
    steps = Steps(model, list(inputs), neurons=True).eval()
    with torch.no_grad(), torch.compiler.set_stance("force_eager"):
        expected = [x.cpu() for x in steps(*inputs.values())]
    graph = make_graph(steps, inputs, path)
    found = run(path, inputs)
    several = has_several_labels(model.config)
    mask = inputs.get("attention_mask")
    agreement = compare(steps.order, expected, found, mask, several_labels=several)
    drop_outputs(graph, path)
    (kept,) = run(path, inputs)
    return compare_logits(expected[0], kept, agreement, several_labels=several)


def make_graph(steps: Steps, inputs: Mapping[str, Tensor], path: Path) -> Any:
    """The ONNX graph of `steps`, written to `path`; returns onnx_ir's model of it."""
    arguments, free = to_trace(steps.model, inputs)
    program: Any = torch.onnx.export(
        steps,
        arguments,
        dynamo=True,
        dynamic_shapes={"inputs": free},
        input_names=list(inputs),
        output_names=[OUTPUT],
        optimize=False,
        verbose=False,
    )
    (optimizer,) = import_extra("onnxscript.optimizer")
    optimizer.optimize_ir(program.model, should_fold=_may_fold)
    program.save(path)
    return program.model


def _may_fold(node: Any) -> bool | None:
    """Not where a weight is made of its integers: they are what is to be stored. Else as usual."""
    constants = [value.const_value for value in node.inputs if value is not None]
    of_integers = any(c is not None and c.dtype.name == "INT8" for c in constants)
    return False if of_integers else None


def drop_outputs(graph: Any, path: Path) -> None:
    """Writes `graph` to `path` with its first output alone."""
    (onnx_ir,) = import_extra("onnx_ir")
    (passes,) = import_extra("onnx_ir.passes.common")
    del graph.graph.outputs[1:]
    passes.RemoveUnusedNodesPass()(graph)
    passes.ClearMetadataAndDocStringPass()(graph)  # of the exporter: stack traces
    onnx_ir.save(graph, path)


def open_session(path: Path) -> Any:
    """An onnxruntime session on the CPU, with as many threads as torch has."""
    (onnxruntime,) = import_extra("onnxruntime")
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def run(path: Path, inputs: Mapping[str, Tensor]) -> list[Tensor]:
    """What onnxruntime makes of `inputs`, all outputs."""
    values = {name: value.cpu().numpy() for name, value in inputs.items()}
    return [torch.from_numpy(value) for value in open_session(path).run(None, values)]
