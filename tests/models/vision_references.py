"""Plain references of the vision models: loops over time, and the key names of their authors' code.

Written from the papers' equations and the key names of published checkpoints; they share nothing with
spikenlp. Tensors are [T, B, ...] throughout.
"""

from __future__ import annotations

import copy
import re

import torch
from torch import nn


class Heaviside(torch.autograd.Function):
    """1 where d >= 0, or d > 0 where `strict`; the derivative is a surrogate of d."""

    @staticmethod
    def forward(ctx, d, surrogate, strict):
        ctx.save_for_backward(d)
        ctx.surrogate = surrogate
        return ((d > 0) if strict else (d >= 0)).to(d.dtype)

    @staticmethod
    def backward(ctx, grad):
        return grad * ctx.surrogate(ctx.saved_tensors[0]), None, None


def triangle(d):
    return torch.relu(1 - d.abs())


def sigmoid_4(d):
    return 4 * torch.sigmoid(4 * d) * torch.sigmoid(-4 * d)


def arctan_2(d):
    return 1 / (1 + (torch.pi * d) ** 2)


class TetLif(nn.Module):
    """u = 0.5 u + x; fires where u > 1; u = (1 - s) u, differentiated as it stands."""

    def forward(self, x):
        u, sent = 0, []
        for current in x:
            u = 0.5 * u + current
            s = Heaviside.apply(u - 1.0, triangle, True)
            u = (1 - s) * u
            sent.append(s)
        return torch.stack(sent)


class ClockDrivenLif(nn.Module):
    """u = u + (x - u) / 2; fires at the threshold; u = 0 where it fired, which has no gradient."""

    def __init__(self, threshold=1.0):
        super().__init__()
        self.threshold = threshold

    def forward(self, x):
        u, sent = torch.zeros_like(x[0]), []
        for current in x:
            u = u + (current - u) / 2
            s = Heaviside.apply(u - self.threshold, sigmoid_4, False)
            u = torch.where(s.detach() > 0, torch.zeros_like(u), u)
            sent.append(s)
        return torch.stack(sent)


class IntegrateAndFire(nn.Module):
    def forward(self, x):
        u, sent = torch.zeros_like(x[0]), []
        for current in x:
            u = u + current
            s = Heaviside.apply(u - 1.0, arctan_2, False)
            u = u * (1 - s.detach())
            sent.append(s)
        return torch.stack(sent)


class Folded(nn.Module):
    """Modules on [T, B, ...] with time in the batch; keys `module.*`, or `module.0.*`, `module.1.*`."""

    def __init__(self, *modules):
        super().__init__()
        self.module = modules[0] if len(modules) == 1 else nn.Sequential(*modules)

    def forward(self, x):
        steps, batch = x.shape[:2]
        y = self.module(x.reshape(steps * batch, *x.shape[2:]))
        return y.reshape(steps, batch, *y.shape[1:])


class Wrapped(nn.Module):
    """Two copies of a layer, as in TMC's code: `op` learns, the output is that of `op_`."""

    def __init__(self, op):
        super().__init__()
        self.op = op
        self.op_ = copy.deepcopy(op)

    def forward(self, x):
        for mine, its in zip(self.op_.parameters(), self.op.parameters(), strict=True):
            mine.data = its.data
        return self.op_(x)


def wrapper(wrapped):
    return Wrapped if wrapped else (lambda layer: layer)


# --- TET and TMC -----------------------------------------------------------------------------------


class TetLayer(nn.Module):
    def __init__(self, before, after, wrap):
        super().__init__()
        self.fwd = Folded(wrap(nn.Conv2d(before, after, 3, padding=1)), wrap(nn.BatchNorm2d(after)))
        self.act = TetLif()

    def forward(self, x):
        return self.act(self.fwd(x))


class VggSnn(nn.Module):
    def __init__(self, widths, classes=10, size=48, channels=2, wrapped=False):
        super().__init__()
        wrap = wrapper(wrapped)
        layers, before = [], channels
        for i, width in enumerate(widths):
            layers.append(TetLayer(before, width, wrap))
            if i % 2:
                layers.append(Folded(nn.AvgPool2d(2)))
            before = width
        self.features = nn.Sequential(*layers)
        pixels = (size // 2 ** (len(widths) // 2)) ** 2
        self.classifier = Folded(wrap(nn.Linear(before * pixels, classes)))

    def forward(self, x):
        return self.classifier(self.features(x).flatten(2))


class TetNorm(nn.Module):
    """Batch norm registered twice."""

    def __init__(self, channels, wrap):
        super().__init__()
        self.bn = wrap(nn.BatchNorm2d(channels))
        self.seqbn = Folded(self.bn)

    def forward(self, x):
        return self.seqbn(x)


class TetPair(nn.Module):
    """A layer and its norm, both registered here besides where they came from."""

    def __init__(self, layer, bn=None):
        super().__init__()
        self.layer = Folded(layer)
        self.bn = bn

    def forward(self, x):
        y = self.layer(x)
        return y if self.bn is None else self.bn(y)


class TetBlock(nn.Module):
    def __init__(self, before, after, stride, wrap):
        super().__init__()
        self.conv1 = wrap(nn.Conv2d(before, after, 3, stride, 1, bias=False))
        self.bn1 = TetNorm(after, wrap)
        self.conv2 = wrap(nn.Conv2d(after, after, 3, 1, 1, bias=False))
        self.bn2 = TetNorm(after, wrap)
        self.downsample = None
        if stride != 1 or before != after:
            conv = wrap(nn.Conv2d(before, after, 1, stride, bias=False))
            self.downsample = TetPair(conv, TetNorm(after, wrap))
        self.conv1_s = TetPair(self.conv1, self.bn1)
        self.conv2_s = TetPair(self.conv2, self.bn2)
        self.spike = TetLif()

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        return self.spike(self.conv2_s(self.spike(self.conv1_s(x))) + identity)


class TetResNet19(nn.Module):
    def __init__(self, stem, widths, depths, hidden, classes=10, wrapped=False):
        super().__init__()
        wrap = wrapper(wrapped)
        self.conv1 = wrap(nn.Conv2d(3, stem, 3, 1, 1, bias=False))
        self.bn1 = TetNorm(stem, wrap)
        self.conv1_s = TetPair(self.conv1, self.bn1)
        before = stem
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = []
            for j in range(depth):
                blocks.append(TetBlock(before, width, 2 if i and not j else 1, wrap))
                before = width
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.depth = len(widths)
        self.fc1 = wrap(nn.Linear(before, hidden))
        self.fc1_s = TetPair(self.fc1)
        self.fc2 = wrap(nn.Linear(hidden, classes))
        self.fc2_s = TetPair(self.fc2)
        self.spike = TetLif()

    def forward(self, x):
        x = self.spike(self.conv1_s(x))
        for i in range(self.depth):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc2_s(self.spike(self.fc1_s(x.mean((3, 4)))))


# --- SEW-ResNet ------------------------------------------------------------------------------------


class SewBlock(nn.Module):
    def __init__(self, before, after, stride, bottleneck, sew):
        super().__init__()
        inner = after // 4 if bottleneck else after
        shapes = [(before, inner, 1, 1), (inner, inner, 3, stride), (inner, after, 1, 1)]
        if not bottleneck:
            shapes = [(before, after, 3, stride), (after, after, 3, 1)]
        self.count, self.sew = len(shapes), sew
        for n, (a, b, kernel, step) in enumerate(shapes, 1):
            conv = nn.Conv2d(a, b, kernel, step, kernel // 2, bias=False)
            setattr(self, f"conv{n}", Folded(conv, nn.BatchNorm2d(b)))
        self.downsample = None
        if stride != 1 or before != after:
            conv = nn.Conv2d(before, after, 1, stride, bias=False)
            shortcut = Folded(conv, nn.BatchNorm2d(after))
            self.downsample = nn.Sequential(shortcut, IntegrateAndFire()) if sew else shortcut
        self.neuron = IntegrateAndFire()

    def forward(self, x):
        identity = x if self.downsample is None else self.downsample(x)
        for n in range(1, self.count + 1):
            x = getattr(self, f"conv{n}")(x)
            if n < self.count:
                x = self.neuron(x)
        return self.neuron(x) + identity if self.sew else self.neuron(x + identity)


class SewResNet(nn.Module):
    """Keys as in the authors' code; the logits of each step."""

    def __init__(self, widths, depths, bottleneck=False, classes=10, sew=True):
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 7, 2, 3, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        before = 8
        for i, (width, depth) in enumerate(zip(widths, depths, strict=True)):
            blocks = []
            for j in range(depth):
                stride = 2 if i and not j else 1
                blocks.append(SewBlock(before, width, stride, bottleneck, sew))
                before = width
            setattr(self, f"layer{i + 1}", nn.Sequential(*blocks))
        self.depth = len(widths)
        self.fc = nn.Linear(before, classes)
        self.neuron = IntegrateAndFire()

    def forward(self, x):
        x = torch.stack([self.conv1(frame) for frame in x])
        x = self.neuron(Folded(self.bn1)(x))
        x = torch.stack([nn.functional.max_pool2d(spikes, 3, 2, 1) for spikes in x])
        for i in range(self.depth):
            x = getattr(self, f"layer{i + 1}")(x)
        return self.fc(x.mean((3, 4)))

    def spikingjelly_state_dict(self):
        """The same weights under SpikingJelly's names."""
        renamed = {}
        for key, value in self.state_dict().items():
            for n in (1, 2, 3):
                key = key.replace(f".conv{n}.module.0.", f".conv{n}.")
                key = key.replace(f".conv{n}.module.1.", f".bn{n}.")
            key = re.sub(r"\.downsample\.(0\.)?module\.", ".downsample.", key)
            renamed[key] = value
        return renamed


# --- QKFormer --------------------------------------------------------------------------------------


class Unit(nn.Module):
    """Convolutions and norms as attributes `<name>_conv`, `<name>_bn` of one module, as in its code."""

    def add(self, name, before, after, kernel=1, stride=1, bias=False, one_d=False):
        conv, norm = (nn.Conv1d, nn.BatchNorm1d) if one_d else (nn.Conv2d, nn.BatchNorm2d)
        padding = kernel // 2
        setattr(self, f"{name}_conv", conv(before, after, kernel, stride, padding, bias=bias))
        setattr(self, f"{name}_bn", norm(after))

    def run(self, name, x, pool=False, fire=True):
        x = Folded(getattr(self, f"{name}_conv"))(x)
        x = Folded(getattr(self, f"{name}_bn"))(x)
        if pool:
            x = Folded(nn.MaxPool2d(3, 2, 1))(x)
        return ClockDrivenLif()(x) if fire else x


class TokenQk(Unit):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        for name in ("q", "k"):
            self.add(name, dim, dim, one_d=True)
        self.add("proj", dim, dim, bias=True, one_d=True)

    def forward(self, x):
        height = x.shape[-2:]
        x = x.flatten(3)
        q, k = self.run("q", x), self.run("k", x)
        width = q.shape[2] // self.heads
        gated = []
        for h in range(self.heads):
            channels = slice(h * width, (h + 1) * width)
            gate = ClockDrivenLif(0.5)(q[:, :, channels].sum(2, keepdim=True))
            gated.append(gate * k[:, :, channels])
        return self.run("proj", torch.cat(gated, 2)).unflatten(3, height)


class SelfAttention(Unit):
    def __init__(self, dim, heads):
        super().__init__()
        self.heads = heads
        for name in ("q", "k", "v"):
            self.add(name, dim, dim, one_d=True)
        self.add("proj", dim, dim, bias=True, one_d=True)

    def forward(self, x):
        height = x.shape[-2:]
        x = x.flatten(3)
        q, k, v = (self.run(name, x) for name in ("q", "k", "v"))
        width = q.shape[2] // self.heads
        out = []
        for h in range(self.heads):
            channels = slice(h * width, (h + 1) * width)
            qh, kh, vh = (y[:, :, channels] for y in (q, k, v))
            scores = torch.einsum("tbcn,tbcm->tbnm", qh, kh)  # quadratic: q k^T first
            out.append(torch.einsum("tbnm,tbcm->tbcn", scores, vh))
        current = 0.125 * torch.cat(out, 2)
        return self.run("proj", ClockDrivenLif(0.5)(current)).unflatten(3, height)


class QkMlp(Unit):
    def __init__(self, dim, ratio, name):
        super().__init__()
        self.name = name
        self.add(f"{name}1", dim, int(dim * ratio), bias=True)
        self.add(f"{name}2", int(dim * ratio), dim, bias=True)

    def forward(self, x):
        return self.run(f"{self.name}2", self.run(f"{self.name}1", x))


class QkBlock(nn.Module):
    def __init__(self, dim, heads, ratio, attention_name, mlp_name):
        super().__init__()
        token = attention_name == "tssa"
        self.attention_name = attention_name
        setattr(self, attention_name, (TokenQk if token else SelfAttention)(dim, heads))
        self.mlp = QkMlp(dim, ratio, mlp_name)

    def forward(self, x):
        x = x + getattr(self, self.attention_name)(x)
        return x + self.mlp(x)


class PatchEmbed(Unit):
    """`steps`: (name, width, pooled); the shortcut starts after `start` of them."""

    def __init__(self, before, steps, start, stride):
        super().__init__()
        self.steps, self.start = steps, start
        widths = [before]
        for name, width, _ in steps:
            self.add(name, widths[-1], width, kernel=3)
            widths.append(width)
        self.add("proj_res", widths[start], widths[-1], stride=stride)

    def forward(self, x):
        passed = [x]
        for name, _, pooled in self.steps:
            passed.append(self.run(name, passed[-1], pooled))
        return passed[-1] + self.run("proj_res", passed[self.start])


class QkFormer(nn.Module):
    """`variant`: "imagenet", "cifar" or "dvs"; `dim`: width of the last stage."""

    def __init__(self, variant, dim, heads, depths, ratio=4, channels=3, classes=10):
        super().__init__()
        stages = 2 if variant == "dvs" else 3
        dims = [dim // 2 ** (stages - 1 - i) for i in range(stages)]
        d = dims[0]
        first = {
            "imagenet": ([("proj", d // 2, 1), ("proj1", d, 1), ("proj2", d, 0)], 1, 2),
            "cifar": ([("proj", d // 2, 0), ("proj1", d, 0)], 1, 1),
            "dvs": (
                [("proj", d // 8, 0), ("proj1", d // 4, 1), ("proj2", d // 2, 1), ("proj3", d, 1)],
                2,
                4,
            ),
        }[variant]
        self.patch_embed1 = PatchEmbed(channels, *first)
        mlp = "fc" if variant == "imagenet" else "mlp"
        for i, (width, depth) in enumerate(zip(dims, depths, strict=True)):
            if i:
                name = "proj" if variant == "dvs" else "proj3"
                pools = (1, 0) if variant == "imagenet" else (0, 1)
                steps = [(name, width, pools[0]), ("proj4", width, pools[1])]
                setattr(self, f"patch_embed{i + 1}", PatchEmbed(dims[i - 1], steps, 0, 2))
            attention = "tssa"
            if i == stages - 1:
                attention = "attn" if variant == "imagenet" else "ssa"
            blocks = nn.ModuleList(
                QkBlock(width, heads, ratio, attention, mlp) for _ in range(depth)
            )
            setattr(self, f"stage{i + 1}", blocks)
        self.stages = stages
        self.head = nn.Linear(dim, classes)

    def forward(self, x):
        for i in range(1, self.stages + 1):
            x = getattr(self, f"patch_embed{i}")(x)
            for block in getattr(self, f"stage{i}"):
                x = block(x)
        return self.head(x.mean((3, 4)))


def randomise(module, seed=0):
    """Weights and statistics with which about a fifth of the neurons fire, in place."""
    generator = torch.Generator().manual_seed(seed)

    def draw(tensor, mean, std):
        tensor.copy_(mean + std * torch.randn(tensor.shape, generator=generator))

    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.Conv2d | nn.Conv1d | nn.Linear):
                gain = 4 if isinstance(part, nn.Linear) else 1  # it reads rates, which are small
                draw(part.weight, 0.0, gain * (2 / part.weight[0].numel()) ** 0.5)
                if part.bias is not None:
                    draw(part.bias, 0.0, 0.1)
            elif isinstance(part, nn.BatchNorm2d | nn.BatchNorm1d):
                draw(part.weight, 1.0, 0.2)
                draw(part.bias, 0.4, 0.3)
                draw(part.running_mean, 0.0, 0.1)
                part.running_var.fill_(0.5)
    return module
