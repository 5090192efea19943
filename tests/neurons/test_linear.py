"""A linear layer that keeps a neuron's state in place of its spikes."""

from functools import partial

import pytest
import torch
from torch import nn

from spikenlp.losses.spikes import spikes_per_neuron
from spikenlp.neurons import LIF, RoundingIF, SpikingLinear
from spikenlp.neurons.linear import first_token

NEURONS = {
    "rounding": lambda: RoundingIF(6),
    "binary": lambda: RoundingIF(6, ternary=False),
    "lif": lambda: LIF(channels=6, learn_amplitude=True),
}


@pytest.fixture(params=NEURONS)
def neuron(request):
    neuron = NEURONS[request.param]()
    with torch.no_grad():
        neuron.amplitude.copy_(torch.linspace(0.5, 1.5, 6))
        if getattr(neuron, "offset", None) is not None:
            neuron.offset.fill_(0.25)
    return neuron


def current(*shape, dtype=torch.float32):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def kept(function, *keep_out):
    """`function`'s result and the bytes that autograd keeps for it, parameters apart."""
    storages = {}

    def pack(x):
        storages[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        out = function()
    for parameter in keep_out:
        storages.pop(parameter.untyped_storage().data_ptr(), None)
    return out, sum(storages.values())


@pytest.mark.parametrize("running", [False, True])
@pytest.mark.parametrize("autocast", [False, True])
def test_it_is_a_linear_layer(neuron, running, autocast):
    linear, plain = SpikingLinear(6, 5), nn.Linear(6, 5)
    plain.load_state_dict(linear.state_dict())
    found = []
    for layer in (linear, plain):
        x = current(4, 7, 3, 6).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=autocast):
            out = layer(neuron(x, running=running))
        learned = [p for p in neuron.parameters() if p.requires_grad]
        wanted = [x, *layer.parameters(), *learned]
        found.append([out, *torch.autograd.grad(out.float().square().sum(), wanted)])
    for ours, theirs in zip(*found, strict=True):
        assert ours.dtype == theirs.dtype
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)


def test_the_pair_keeps_two_bytes_a_neuron_and_step(neuron):
    linears = [SpikingLinear(6, 5) for _ in range(3)]
    parameters = [p for m in (neuron, *linears) for p in m.parameters()]

    def forward():
        spikes = neuron(x)
        return sum(linear(spikes) for linear in linears)

    x = current(4, 500, 6).requires_grad_()
    _, size = kept(forward, *parameters)
    assert size <= 2.1 * x.numel()
    _, plain_size = kept(lambda: nn.Linear(6, 5)(neuron(x)), *parameters)
    assert plain_size >= 6 * x.numel()


@pytest.mark.parametrize(
    "options", [{}, {"running": True}, {"num_timesteps": 3, "collapsed": True}]
)
def test_the_first_token_of_spikes(neuron, options):
    """[T, B, L, C] and, collapsed, [1, B, L, C]: the value, the gradients, and what is kept."""
    if "collapsed" in options and isinstance(neuron, LIF):
        pytest.skip("only rounding neurons collapse")
    linear, plain = SpikingLinear(6, 5), nn.Linear(6, 5)
    plain.load_state_dict(linear.state_dict())
    x = current(1 if "collapsed" in options else 4, 7, 300, 6)
    parameters = [p for m in (neuron, linear, plain) for p in m.parameters()]
    results, sizes = [], []

    def forward(layer, choose, leaf):
        return layer(choose(neuron(leaf, **options)))

    for layer, choose in ((linear, first_token), (plain, lambda sent: sent[:, :, :1])):
        leaf = x.clone().requires_grad_()
        out, size = kept(partial(forward, layer, choose, leaf), *parameters)
        learned = [p for p in neuron.parameters() if p.requires_grad]
        wanted = [leaf, *layer.parameters(), *learned]
        results.append([out, *torch.autograd.grad(out.square().sum(), wanted)])
        sizes.append(size)
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    assert sizes[0] <= 2.1 * x.numel() < 6 * x.numel() <= sizes[1]


def test_other_tensors_than_a_neurons_output_are_multiplied_as_they_are(neuron):
    linear = SpikingLinear(6, 5)
    x = current(4, 7, 6).requires_grad_()
    changed = neuron(x) * 2
    torch.testing.assert_close(linear(changed), changed @ linear.weight.T + linear.bias)
    (grad,) = torch.autograd.grad(linear(changed).sum(), linear.weight)
    torch.testing.assert_close(grad, changed.detach().sum((0, 1)).expand(5, -1))


@pytest.mark.parametrize(
    "change",
    [lambda sent: sent.mul_(2), lambda sent: nn.functional.dropout(sent, 0.5, inplace=True)],
    ids=["scaled", "dropout"],
)
def test_what_was_changed_in_place_is_multiplied_as_it_is(neuron, change):
    linear = SpikingLinear(6, 5)
    sent = change(neuron(current(4, 7, 6).requires_grad_()))
    (grad,) = torch.autograd.grad(linear(sent).sum(), linear.weight)
    torch.testing.assert_close(grad, sent.detach().sum((0, 1)).expand(5, -1))
    with pytest.raises(ValueError, match="untouched"):
        spikes_per_neuron(sent)


def test_second_derivatives_are_refused(neuron):
    """They would be those of spikes as constants; torch leaves them out in silence where the incoming gradient
    is constant, as that of a sum."""
    linear = SpikingLinear(6, 5)
    x = current(4, 7, 6).requires_grad_()
    for out, wanted in ((neuron(x), x), (linear(neuron(x)), linear.weight)):
        for loss in (out.square().sum(), out.sum()):
            with pytest.raises(RuntimeError, match="second derivatives"):
                torch.autograd.grad(loss, wanted, create_graph=True)


def test_autocast_may_begin_between_the_neuron_and_the_layer(neuron):
    layers = SpikingLinear(6, 5), nn.Linear(6, 5)
    layers[1].load_state_dict(layers[0].state_dict())
    grads = []
    for layer in layers:
        sent = neuron(current(4, 7, 6).requires_grad_())
        with torch.autocast("cpu", dtype=torch.bfloat16):
            out = layer(sent)
        out.float().square().sum().backward()
        grads.append(layer.weight.grad)
    torch.testing.assert_close(*grads, rtol=2e-2, atol=1e-1)


def test_a_hook_on_the_neuron_may_replace_its_output():
    neuron, linear = RoundingIF(6), SpikingLinear(6, 5)
    neuron.register_forward_hook(lambda module, inputs, out: torch.ones_like(out))
    (grad,) = torch.autograd.grad(linear(neuron(current(4, 7, 6))).sum(), linear.weight)
    assert torch.equal(grad, torch.full((5, 6), 28.0))


@pytest.mark.slow
def test_compiled_what_was_changed_in_place_is_what_the_layer_learns_from():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron, self.linear = RoundingIF(6), SpikingLinear(6, 5)

        def forward(self, x):
            sent = self.neuron(x)
            sent[:, :, 0] = 0
            return self.linear(sent)

    model, x = Masked(), current(4, 3, 6)
    for run in (model, torch.compile(model, backend="aot_eager")):
        model.zero_grad()
        run(x).sum().backward()
        assert not model.linear.weight.grad[:, 0].any()


@pytest.mark.slow
def test_compiled_without_a_graph_break(neuron):
    linear = SpikingLinear(6, 5)
    x = current(3, 8, 6)

    def model(x):
        return linear(neuron(x.tanh() * 2)).square()

    results = []
    for run in (model, torch.compile(model, fullgraph=True)):
        leaf = x.clone().requires_grad_()
        learned = [p for p in (*neuron.parameters(), *linear.parameters()) if p.requires_grad]
        out = run(leaf)
        results.append([out, *torch.autograd.grad(out.sum(), [leaf, *learned])])
    for eager, compiled in zip(*results, strict=True):
        torch.testing.assert_close(compiled, eager, rtol=1e-4, atol=1e-4)
