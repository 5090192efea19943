"""Costs of one function that is computed in many ways: step by step, in slices, by recursion, with padding."""

import pytest
import torch
from torch import nn

from spikenlp.analysis import SpikeMonitor, energy_report
from spikenlp.analysis.tracing import trace
from spikenlp.neurons import IF, RoundingIF


class Reads(nn.Module):
    """A layer on what `between` makes of spikes [T, B, L, C]."""

    def __init__(self, between):
        super().__init__()
        self.neuron, self.between = IF(), between
        self.layer, self.last = nn.Linear(5, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.last(self.layer(self.between(self.neuron(x))).relu())


@pytest.mark.parametrize(
    ("between", "driver", "spikes"),
    [
        (lambda s: s[..., [4, 0, 1, 2, 3]], "binary", lambda s: s),
        (lambda s: s.index_select(-1, torch.tensor([0, 0, 1, 2, 3])), "binary",
         lambda s: s[..., [0, 0, 1, 2, 3]]),
        (lambda s: s.sum(2), "integer", lambda s: s),
        (lambda s: torch.sum(input=s, dim=2), "integer", lambda s: s),
        (lambda s: sum([s, s]), "integer", lambda s: 2 * s),
        (lambda s: torch.stack([s[:, :, i] for i in range(6)], 2), "binary", lambda s: s),
        (lambda s: torch.stack([s[:, i] for i in range(3)], 1), "binary", lambda s: s),
    ],
)  # fmt: skip
def test_what_is_made_of_spikes_is_billed_by_them(between, driver, spikes):
    torch.manual_seed(0)
    model, x = Reads(between), 2 * torch.rand(4, 3, 6, 5)
    seen = trace(model, x)
    product = seen.products[0]
    assert (product.driver, product.steps) == (driver, 4)
    assert product.sops.tolist() == (4 * spikes(model.neuron(x)).sum((0, 2, 3))).tolist()


def test_a_layer_called_once_for_each_step_is_one_layer():
    class Whole(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron, self.head, self.loop = IF(), Reads(nn.Identity()), False
            self.head.neuron = nn.Identity()

        def forward(self, x):
            sent = self.neuron(x)
            return torch.stack([self.head(s) for s in sent]) if self.loop else self.head(sent)

    torch.manual_seed(0)
    model, x = Whole(), 2 * torch.rand(4, 3, 6, 5)
    at_once = energy_report(model, x)
    model.loop = True
    assert energy_report(model, x) == at_once
    assert at_once.dense_macs == 6 * (5 * 4 + 4 * 3)


def in_pieces(dim, pieces):
    def run(head, sent):
        return torch.cat([head(piece) for piece in sent.chunk(pieces, dim)], dim)

    return run


def every_other(dim):
    def run(head, sent):
        halves = [head(sent.movedim(dim, 0)[i::2].movedim(0, dim)) for i in (0, 1)]
        return torch.cat(halves, dim)

    return run


@pytest.mark.parametrize("padded", [False, True])
@pytest.mark.parametrize(
    "way",
    [
        in_pieces(0, 2),
        in_pieces(0, 4),
        in_pieces(1, 2),
        in_pieces(2, 3),
        every_other(0),
        every_other(1),
        every_other(2),
        lambda head, sent: torch.stack([head(sent[:, i].clone()) for i in range(4)], 1),
        lambda head, sent: head(torch.stack([s.clone() for s in reversed(sent.unbind())])),
        lambda head, sent: head(torch.cat([s[None].clone() for s in sent])),
    ],
)
def test_however_a_model_goes_through_its_tensors_it_costs_the_same(way, padded):
    """Step by step, sample by sample, in halves: by sample, against all at once."""

    class Looped(nn.Module):
        def __init__(self, way):
            super().__init__()
            self.neuron, self.way = IF(), way
            self.first, self.last = nn.Linear(5, 4), nn.Linear(4, 3)

        def head(self, x):
            return self.last(self.first(x).relu())

        def forward(self, x, attention_mask=None):
            return self.way(self.head, self.neuron(x.transpose(0, 1).contiguous()))

    def costs(way):
        torch.manual_seed(0)
        seen = trace(Looped(way), batch)
        found = {"ReLU": seen.elementwise["ReLU"].tolist()}
        for name in ("first", "last"):
            same = [p for p in seen.products if p.name == name]
            macs, sops = (sum(getattr(p, k) for p in same) for k in ("macs", "sops"))
            found[name] = [macs.tolist(), sops.tolist()]
            at_steps = [step for p in same for step in p.at_steps]
            assert set(at_steps) == {0, 1, 2, 3}
        return found

    torch.manual_seed(1)
    batch = {"x": 2 * torch.rand(4, 4, 6, 5)}
    if padded:
        batch["attention_mask"] = (torch.arange(6) < torch.tensor([[6], [5], [2], [1]])).long()
    assert costs(way) == costs(lambda head, sent: head(sent))


def test_a_recursion_over_time_is_one_layer():
    class Leaky(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron, self.first, self.last = IF(), nn.Linear(5, 4), nn.Linear(4, 3)

        def forward(self, x):
            state, out = None, []
            for sent in self.neuron(x):
                current = self.first(sent)
                state = current if state is None else 0.9 * state + current
                out.append(self.last(state))
            return torch.stack(out)

    report = energy_report(Leaky(), 2 * torch.rand(4, 3, 6, 5))
    assert [(layer.name, layer.steps) for layer in report.layers] == [("first", 4), ("last", 4)]
    assert report.dense_macs == 6 * (5 * 4 + 4 * 3)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_attention_step_by_step_or_head_by_head_costs_the_same(dim):
    class Attends(nn.Module):
        def __init__(self, dim):
            super().__init__()
            self.neuron, self.dim = IF(), dim

        def forward(self, x):  # [T, B, heads, L, d]
            sent = self.neuron(x)
            attend = torch.nn.functional.scaled_dot_product_attention
            if self.dim is None:
                return attend(sent, sent, sent)
            parts = [attend(s, s, s) for s in sent.unbind(self.dim)]
            return torch.stack(parts, self.dim)

    x = 2 * torch.rand(4, 3, 2, 6, 5)
    wanted, found = (trace(Attends(d), x) for d in (None, dim))
    for kind in ("attention scores", "attention context"):
        sums = [
            sum(getattr(p, name) for p in seen.products if p.kind == kind).tolist()
            for seen in (wanted, found)
            for name in ("macs", "sops")
        ]
        assert sums[:2] == sums[2:]
    assert found.elementwise["softmax"].tolist() == wanted.elementwise["softmax"].tolist()


@pytest.mark.parametrize("channels", [5, 6])
def test_padding_of_channels_before_positions_is_left_out(channels):
    """[T, B, C, L] with a mask [B, L]; of as many channels as positions, too."""

    class TextCNN(nn.Module):
        def __init__(self):
            super().__init__()
            self.neuron = RoundingIF(channels, channel_dim=2)
            self.conv = nn.Conv1d(channels, 4, 1)

        def forward(self, x, attention_mask=None):
            self.sent = self.neuron(x.mT[None], num_timesteps=4)
            return self.conv(self.sent.flatten(0, 1)).unflatten(0, (4, -1))

    torch.manual_seed(0)
    model, x = TextCNN(), 2 * torch.randn(2, 6, channels)
    mask = torch.tensor([[1] * 6, [1] * 2 + [0] * 4])
    report = energy_report(model, {"x": x, "attention_mask": mask})
    with SpikeMonitor(model) as monitor:
        model(x, attention_mask=mask)
    real = int((model.sent.ne(0) * mask[:, None]).sum())
    assert monitor.spikes_per_neuron == pytest.approx(real / (8 * channels))
    assert report.spikes_per_neuron == pytest.approx(monitor.spikes_per_neuron)
    assert report.layers[0].sops == 4 * real / 2
    assert report.dense_macs == 8 * channels * 4 / 2
    assert report.membrane_updates == 4 * 8 * channels / 2
