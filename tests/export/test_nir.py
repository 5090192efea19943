"""NIR files, read back and run by loops in float64 that know nothing of spikenlp."""

from pathlib import Path

import numpy as np
import pytest
import torch

from spikenlp import (
    SpikingBertConfig,
    SpikingBertForSequenceClassification,
    SpikingResNetConfig,
    SpikingResNetForImageClassification,
    SpikingVGGConfig,
    SpikingVGGForImageClassification,
)
from spikenlp.analysis.watching import watch_neurons
from spikenlp.export import export
from spikenlp.export.nir_graph import write_nir
from spikenlp.neurons import IF
from tests.conftest import TINY_DENSE

nir = pytest.importorskip("nir", reason="extra `export` is not installed")
SHAPE = {"hidden_sizes": [4, 6], "depths": [1, 1], "image_size": 8, "num_channels": 2}
NEURONS = [
    {"neuron": "if"},
    {"neuron": "lif"},
    {"neuron": "lif", "beta": 0.9, "decay_input": True},
    {"neuron": "lif", "beta": 0.3, "batch_norm": False},
]


def make(threshold=0.4, **fields):
    """A VGG whose norms, thresholds and amplitudes are not those of the start."""
    torch.manual_seed(1)
    config = SpikingVGGConfig(**{**SHAPE, "num_timesteps": 4, **fields})
    model = SpikingVGGForImageClassification(config).eval()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, torch.nn.BatchNorm2d):
                module.running_mean.normal_(std=0.3)
                module.running_var.uniform_(0.2, 1.0)
                module.weight.uniform_(0.5, 2.0)
                module.bias.normal_(std=0.3)
            elif isinstance(module, IF):
                module.amplitude.fill_(1.7)
                module.v_threshold.fill_(threshold)
    return model


# --- the interpreter of the test -------------------------------------------------------------------


def convolve(x, node):
    (top, left), (down, right) = node.padding, node.stride
    x = np.pad(x, ((0, 0), (top, top), (left, left)))
    out, _, height, width = node.weight.shape
    rows, columns = (x.shape[1] - height) // down + 1, (x.shape[2] - width) // right + 1
    y = np.zeros((out, rows, columns))
    for o in range(out):
        for i in range(rows):
            for j in range(columns):
                seen = x[:, i * down : i * down + height, j * right : j * right + width]
                y[o, i, j] = (seen * node.weight[o].astype(float)).sum() + node.bias[o]
    return y


def average(x, node):
    (height, width), (down, right) = node.kernel_size, node.stride
    rows, columns = (x.shape[1] - height) // down + 1, (x.shape[2] - width) // right + 1
    y = np.zeros((len(x), rows, columns))
    for i in range(rows):
        for j in range(columns):
            y[:, i, j] = x[:, i * down : i * down + height, j * right : j * right + width].mean(
                (1, 2)
            )
    return y


def interpret(graph, frames):
    """Outputs [T, ...] and spikes of each neuron's node [T, ...], of one sample's frames [T, ...]."""
    after = dict(graph.edges)
    potentials, spikes, outputs = {}, {}, []
    for frame in frames:
        x, name = frame.astype(float), "input"
        while (name := after[name]) != "output":
            node = graph.nodes[name]
            if isinstance(node, nir.Conv2d):
                x = convolve(x, node)
            elif isinstance(node, nir.AvgPool2d):
                x = average(x, node)
            elif isinstance(node, nir.Flatten):
                x = x.reshape(-1)
            elif isinstance(node, nir.Affine):
                x = node.weight.astype(float) @ x + node.bias
            elif isinstance(node, nir.IF | nir.LIF):
                v = potentials.get(name, 0.0)
                if isinstance(node, nir.LIF):
                    v = v + ((node.v_leak - v) + node.r * x) / node.tau
                else:
                    v = v + node.r * x
                fired = v > node.v_threshold
                potentials[name] = np.where(fired, node.v_reset, v)
                spikes.setdefault(name, []).append(fired)
                x = fired.astype(float)
            else:
                raise AssertionError(f"{name} is a {type(node).__name__}")
        outputs.append(x)
    return np.stack(outputs), {name: np.stack(at) for name, at in spikes.items()}


@pytest.mark.parametrize("fields", NEURONS, ids=str)
def test_the_file_sends_the_models_spikes(fields, tmp_path):
    model = make(**fields)
    agreement = export(model, tmp_path / "vgg.nir", "nir")
    assert agreement.ties == []
    graph = nir.read(tmp_path / "vgg.nir")
    generator = torch.Generator().manual_seed(5)
    frames = torch.randn(1, 4, 2, 8, 8, generator=generator)
    sent = {}
    with torch.no_grad(), watch_neurons(model, lambda s: sent.update({s.name: s.spikes()[:, 0]})):
        logits = model(frames).timestep_logits[0]
    outputs, spikes = interpret(graph, frames[0].numpy())
    assert spikes.keys() == sent.keys()
    for name, at in spikes.items():
        assert 0.02 < at.mean() < 0.9
        np.testing.assert_array_equal(at, sent[name].numpy() == 1, err_msg=name)
    np.testing.assert_allclose(outputs, logits.numpy(), atol=1e-5)


def test_a_neuron_fires_at_its_threshold_as_ours_does(tmp_path):
    """NIR's fires above it."""
    model = make(1.0, neuron="if", batch_norm=False, hidden_sizes=[1], depths=[1], image_size=2)
    conv = model.vgg.stages[0].layers[0].conv
    with torch.no_grad():
        conv.weight.zero_()
        conv.weight[0, 0, 1, 1] = 1.0
        conv.bias.zero_()
    pixels = torch.zeros(2, 2, 2, 2)
    pixels[0, 0] = torch.tensor([[0.25, 0.5], [1.0, 0.99]])  # sums reach 1 exactly
    export(model, tmp_path / "vgg.nir", "nir", batch={"pixel_values": pixels})
    _, spikes = interpret(nir.read(tmp_path / "vgg.nir"), pixels[:1].expand(4, -1, -1, -1).numpy())
    (fired,) = spikes.values()
    assert fired[:, 0].astype(int).reshape(4, 4).tolist() == [
        [0, 0, 1, 0],
        [0, 1, 1, 1],
        [0, 0, 1, 0],
        [1, 1, 1, 1],
    ]


def test_the_graph_is_of_nir_nodes_with_the_folded_weights(tmp_path):
    model = make(neuron="lif", beta=0.75)
    export(model, tmp_path / "vgg.nir", "nir")
    graph = nir.read(tmp_path / "vgg.nir")
    kinds = [type(node).__name__ for node in graph.nodes.values()]
    assert sorted(kinds) == sorted(
        ["Input", *["Conv2d", "LIF", "AvgPool2d"] * 2, "Flatten", "Affine", "Output"]
    )
    neuron = graph.nodes["vgg.stages.1.layers.0.neuron"]
    assert neuron.tau.shape == (6, 4, 4)
    assert set(neuron.tau.ravel()) == {4.0}
    head = graph.nodes["classifier"].weight
    np.testing.assert_allclose(head, 1.7 * model.classifier.weight.detach().numpy(), rtol=1e-6)


def refused(model, tmp_path):
    with pytest.raises(ValueError, match="NIR cannot express") as caught:
        export(model, tmp_path / "model.nir", "nir")
    assert not list(tmp_path.iterdir())
    return str(caught.value)


def test_what_nir_cannot_express_is_named_with_its_reason(tmp_path):
    said = refused(SpikingBertForSequenceClassification(SpikingBertConfig(**TINY_DENSE)), tmp_path)
    for part in (
        "bert.embeddings.word_embeddings (Embedding)",
        "bert.embeddings.LayerNorm (LayerNorm)",
        "bert.encoder.layer.0.attention.self (SpikingBertSelfAttention): NIR has no softmax",
        "bert.encoder.layer.0.attention.self.neuron (RoundingIF): it fires at half",
        "nonlinearity='running'",
    ):
        assert part in said
    said = refused(make(neuron="rounding", batch_norm=False), tmp_path)
    assert "vgg.stages.0.layers.0.neuron (RoundingIF)" in said
    assert "(ReLU): the model is dense" in refused(make(neuron="relu"), tmp_path)
    model = make(neuron="lif")
    model.vgg.stages[1].layers[0].neuron.reset = "soft"
    said = refused(model, tmp_path)
    assert "vgg.stages.1.layers.0.neuron (LIF)" in said
    assert "reset='soft'" in said
    model.vgg.stages[1].layers[0].neuron.reset = "hard"
    model.vgg.stages[0].layers[0].neuron.ternary = True
    assert "ternary=True" in refused(model, tmp_path)
    sizes = {"embedding_size": 4, "hidden_sizes": [4], "depths": [1], "image_size": 8}
    resnet = SpikingResNetForImageClassification(SpikingResNetConfig(**sizes))
    assert "only a chain of layers is written" in refused(resnet, tmp_path)


def test_half_precision_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"NIR is written of a model in float32, this one is in torch\.bfloat16"
    ):
        export(make().bfloat16(), tmp_path / "model.nir", "nir")


def test_weights_in_int8_are_refused():
    model = make()
    model.is_quantized = True
    with pytest.raises(ValueError, match="int8: fold and export the float model"):
        write_nir(model, Path("unused.nir"), None)
