"""What an inference costs: operations by what drives them, and energy by the 45 nm convention.

    SOP = spikes sent x outputs of the layer                 accumulations that spikes cause
    E   = SOP x E_AC + float MAC x E_MAC                     of the spiking model
    E_spiking / E_dense = T (rho f r + 1 - f)                the same for the products alone, with
                                                             r = E_AC / E_MAC, f the share of MACs
                                                             that spikes drive, rho their mean rate

Energies of operations are Horowitz's (ISSCC 2014). They are those of arithmetic in 45 nm, not of a
chip: control, leakage and what a sparse access costs are not in them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from spikenlp.analysis.tracing import Product, Trace, trace
from spikenlp.analysis.watching import Sent, frames_of, named_inputs


@dataclass(frozen=True)
class EnergyConstants:
    """Picojoules at 45 nm (Horowitz, ISSCC 2014, figure 1.1.9)."""

    float_mac: float = 4.6
    """float32 multiply 3.7 and add 0.9."""
    float_ac: float = 0.9
    int8_multiply: float = 0.2
    int32_add: float = 0.1
    memory_byte: float = 2.5
    """32 kB SRAM: 20 pJ for 8 bytes."""

    @property
    def int8_mac(self) -> float:
        return self.int8_multiply + self.int32_add

    def quantised_mac(self, bits: int) -> float:
        """8-bit weight times activation of `bits`: a multiplier's energy grows with both widths."""
        return self.int8_multiply * bits / 8 + self.int32_add


@dataclass(frozen=True)
class LayerCost:
    """One product, per sample and inference (T steps)."""

    name: str
    kind: str
    driver: str
    """binary, ternary, integer (bursts, sums or averages of spikes) or float."""
    dense_macs: float
    """Of one pass, as a dense model makes it."""
    steps: int
    rate: float | None
    """Spikes per input and step that it reads; None where floats drive it."""
    sops: float
    float_macs: float
    energy: float
    """Picojoules, float32."""


@dataclass(frozen=True)
class EnergyReport:
    """Operations and energy per sample. Energies in picojoules; `energies` and `memory` by variant."""

    num_timesteps: int
    samples: int
    layers: list[LayerCost]
    elementwise: dict[str, float]
    """Float operations between products over all steps; each is billed as one float MAC."""
    membrane_updates: float
    """Neurons x steps; each is billed as one float addition."""
    spikes_per_neuron: float
    """Of an inference, mean over all neurons, where a channel is one at each of its real positions; what
    `SpikeMonitor.spikes_per_neuron` counts. rho weighs neurons by what they reach, so that T rho differs."""
    energies: dict[str, float]
    memory: dict[str, float]
    """No reuse: each operation fetches its weight, a neuron reads and writes 4 bytes each step."""
    constants: EnergyConstants = field(default_factory=EnergyConstants)
    dense_passes: int = 1
    """Of a rival: one, or one for each frame of a recording, of which it sees one after the other, too."""

    @property
    def dense_macs(self) -> float:
        """Of one pass."""
        return sum(layer.dense_macs for layer in self.layers)

    @property
    def driven_macs(self) -> float:
        """Of a dense pass, those that spikes drive."""
        return sum(layer.dense_macs for layer in self.layers if layer.rate is not None)

    @property
    def driven_share(self) -> float:
        """f, the share of a dense pass's MACs that spikes drive."""
        return self.driven_macs / self.dense_macs

    @property
    def rate(self) -> float:
        """rho, the mean rate of the inputs of what spikes drive, weighted by MACs."""
        sops = sum(layer.sops for layer in self.layers)
        return sops / (self.num_timesteps * self.driven_macs) if sops else 0.0

    def ratios(self) -> dict[str, float]:
        """Energy against each fair rival, and against the int8 model; above 1 the model loses."""
        pairs = [
            ("spiking, float32", "dense, float32"),
            ("spiking, int8", "dense, int8"),
            ("spiking, int8", "quantised, same levels"),
            ("spiking, float32", "dense, int8"),
        ]
        return {f"{a} / {b}": self.energies[a] / self.energies[b] for a, b in pairs}

    def products_ratio(self) -> float:
        """E_spiking / E_dense of the products alone in float32, counted operation by operation."""
        spent = sum(layer.energy for layer in self.layers)
        return spent / (self.constants.float_mac * self.dense_macs * self.dense_passes)

    def products_ratio_by_formula(self) -> float:
        """T (rho f r + 1 - f): the same, as if every product ran at every step; of frames without the T, which
        the rival's passes are as well."""
        c, f = self.constants, self.driven_share
        steps = self.num_timesteps / self.dense_passes
        return steps * (self.rate * f * c.float_ac / c.float_mac + 1 - f)

    def to_dict(self) -> dict[str, Any]:
        derived = ("driven_share", "rate")
        return {
            **asdict(self),
            **{name: getattr(self, name) for name in derived},
            "ratios": self.ratios(),
            "products_ratio": self.products_ratio(),
        }

    def verdict(self) -> str:
        """One line: what the model gains or loses against each rival."""
        return "; ".join(
            f"{pair.replace(' / ', ' against ')}: "
            + (f"{1 / ratio:.2f} times less" if ratio < 1 else f"{ratio:.2f} times MORE")
            for pair, ratio in self.ratios().items()
        )

    def table(self) -> str:
        width = max(len(layer.name) for layer in self.layers)
        lines = [
            f"{'product':{width}}  {'driven by':9} {'MACs, dense':>12} {'rate':>6} {'SOPs':>12} "
            f"{'float MACs':>12} {'nJ':>9}"
        ]
        for layer in self.layers:
            rate = "" if layer.rate is None else f"{layer.rate:.3f}"
            lines.append(
                f"{layer.name:{width}}  {layer.driver:9} {layer.dense_macs:12,.0f} {rate:>6} "
                f"{layer.sops:12,.0f} {layer.float_macs:12,.0f} {layer.energy / 1e3:9.1f}"
            )
        others = ", ".join(f"{k} {v:,.0f}" for k, v in self.elementwise.items())
        lines += [
            "",
            f"per sample, T = {self.num_timesteps}: f = {self.driven_share:.3f} of the MACs are "
            f"driven by spikes, at a rate of {self.rate:.3f}; {self.spikes_per_neuron:.2f} spikes per "
            "neuron",
            f"float operations between products: {others}; {self.membrane_updates:,.0f} membrane "
            "updates",
            "",
            f"{'energy (uJ)':28} {'arithmetic':>12} {'memory':>12}",
            *(
                f"{name:28} {energy / 1e6:12.3f} {self.memory[name] / 1e6:12.3f}"
                for name, energy in self.energies.items()
            ),
            "",
            f"arithmetic: {self.verdict()}",
        ]
        return "\n".join(lines)


def membrane_updates(seen: Trace) -> Tensor:
    """Neurons x steps of each sample, int64 [B], real positions only."""
    total = torch.zeros(seen.samples, dtype=torch.int64)
    for sent in seen.neurons:
        updates = len(sent.levels) * sent.channels() * sent.sites().cpu()
        of_samples = len(updates) == seen.samples
        total += updates if of_samples else updates.sum() // seen.samples
    return total


def spiking_energy(seen: Trace, constants: EnergyConstants | None = None) -> Tensor:
    """What each sample of a trace costs in float32, picojoules, float64 [B].

    The mean over samples is `energies["spiking, float32"]` of an `EnergyReport`.
    """
    c = constants or EnergyConstants()
    total = c.float_ac * membrane_updates(seen).double()
    for product in seen.products:
        if product.source is None:
            total += c.float_mac * product.macs.double()
        else:
            total += c.float_ac * product.sops.double()
    for count in seen.elementwise.values():
        total += c.float_mac * count.double()
    return total


def energy_report(
    model: nn.Module,
    batch: Mapping[str, Any] | Tensor,
    *,
    constants: EnergyConstants | None = None,
) -> EnergyReport:
    """Counts the operations of `model` on `batch`, per sample, at true lengths.

    Args:
        batch: the model's inputs [B, ...] in a dict, or its one input, [B, ...] of a transformers model
            and [T, B, ...] of another module; positions where attention_mask [B, L] is 0 are not
            counted, whether `model` or a transformers model inside it gets the mask.
        constants: picojoules of operations.

    Raises:
        ValueError: a model without neurons, a collapsed one, one without a matrix product, or with one by
            a function that is not counted (named: einsum, ...); an attention mask that is not [B, L].
    """
    constants = constants or EnergyConstants()
    batch = named_inputs(model, batch)
    seen = trace(model, batch)
    if not any(product.macs.any() for product in seen.products):
        raise ValueError(f"{type(model).__name__} makes no matrix product in this batch")
    elementwise = {k: float(count.sum()) / seen.samples for k, count in seen.elementwise.items()}
    counted = EnergyReport(
        num_timesteps=max(len(sent.levels) for sent in seen.neurons),
        samples=seen.samples,
        layers=[_layer_cost(product, seen.samples, constants) for product in seen.products],
        elementwise=elementwise,
        membrane_updates=float(membrane_updates(seen).sum()) / seen.samples,
        spikes_per_neuron=_spikes_per_neuron(seen.neurons),
        energies={},
        memory={},
        constants=constants,
        dense_passes=1 if (frames := frames_of(batch)) is None else frames.shape[1],
    )
    return replace(counted, energies=_energies(counted, seen), memory=_memory(counted))


def _layer_cost(product: Product, samples: int, c: EnergyConstants) -> LayerCost:
    macs, sops = float(product.macs.sum()) / samples, float(product.sops.sum()) / samples
    driven = product.source is not None
    return LayerCost(
        name=product.name,
        kind=product.kind,
        driver=product.driver,
        dense_macs=macs / product.steps,
        steps=product.steps,
        rate=sops / macs if driven else None,
        sops=sops,
        float_macs=0.0 if driven else macs,
        energy=sops * c.float_ac if driven else macs * c.float_mac,
    )


def _operations(layers: Sequence[LayerCost]) -> tuple[float, float]:
    """Additions of weights where spikes arrive, and multiplications by floats."""
    return sum(layer.sops for layer in layers), sum(layer.float_macs for layer in layers)


def _energies(counted: EnergyReport, seen: Trace) -> dict[str, float]:
    c, passes = counted.constants, counted.dense_passes
    dense, driven = passes * counted.dense_macs, passes * counted.driven_macs
    sops, floats = _operations(counted.layers)
    own = sum(counted.elementwise.values()) * c.float_mac + counted.membrane_updates * c.float_ac
    between_dense = (
        passes
        * c.float_mac
        * sum(float(count.sum()) / seen.samples for count in seen.elementwise_of_one_pass.values())
    )
    ternary = any(sent.neuron.ternary for sent in seen.neurons)
    bits = math.ceil(math.log2((2 if ternary else 1) * counted.num_timesteps / passes + 1))
    return {
        "spiking, float32": float(spiking_energy(seen, c).mean()),
        "dense, float32": dense * c.float_mac + between_dense,
        "spiking, int8": sops * c.int32_add + floats * c.int8_mac + own,
        "dense, int8": dense * c.int8_mac + between_dense,
        "quantised, same levels": driven * c.quantised_mac(bits)
        + (dense - driven) * c.int8_mac
        + between_dense,
    }


def _memory(counted: EnergyReport) -> dict[str, float]:
    a_byte, dense = counted.constants.memory_byte, counted.dense_passes * counted.dense_macs
    spiking, membranes = sum(_operations(counted.layers)), 8 * counted.membrane_updates
    return {
        "spiking, float32": (4 * spiking + membranes) * a_byte,
        "dense, float32": 4 * dense * a_byte,
        "spiking, int8": (spiking + membranes) * a_byte,
        "dense, int8": dense * a_byte,
        "quantised, same levels": dense * a_byte,
    }


def _spikes_per_neuron(sent: Sequence[Sent]) -> float:
    spikes = sum(int(s.spikes().nan_to_num().abs().sum(dtype=torch.float64)) for s in sent)
    return spikes / max(sum(int(s.sites().sum()) * s.channels() for s in sent), 1)


def energy_by_step(
    model: PreTrainedModel,
    batch: Mapping[str, Any] | Tensor,
    *,
    constants: EnergyConstants | None = None,
) -> list[EnergyReport]:
    """`energy_report` of the model stopped after 1, ..., T steps: it has then done what one of so many
    steps does. T is the number of the batch's frames, or else the model's `config.num_timesteps`, which is
    T again afterwards."""
    batch = named_inputs(model, batch)
    frames = frames_of(batch)
    if isinstance(batch, Mapping) and frames is not None:
        return [
            energy_report(model, {**batch, "pixel_values": frames[:, :steps]}, constants=constants)
            for steps in range(1, frames.shape[1] + 1)
        ]
    longest = model.config.num_timesteps
    try:
        reports = []
        for steps in range(1, longest + 1):
            model.config.num_timesteps = steps
            reports.append(energy_report(model, batch, constants=constants))
        return reports
    finally:
        model.config.num_timesteps = longest


def pooled(reports: Sequence[EnergyReport]) -> EnergyReport:
    """One report of the samples of all `reports`, which are of one model and T."""
    samples = sum(r.samples for r in reports)

    def mean(counts: Sequence[Mapping[str, float]]) -> dict[str, float]:
        pairs = list(zip(reports, counts, strict=True))
        return {k: sum(r.samples * c[k] for r, c in pairs) / samples for k in counts[0]}

    layers = []
    for same in zip(*(r.layers for r in reports), strict=True):
        counted = ("dense_macs", "sops", "float_macs", "energy")
        counts = mean([{k: getattr(layer, k) for k in counted} for layer in same])
        reads = same[0].steps * counts["dense_macs"]
        rate = None if same[0].rate is None else counts["sops"] / reads
        layers.append(replace(same[0], rate=rate, **counts))
    per_sample = mean(
        [
            {"updates": r.membrane_updates, "spikes": r.spikes_per_neuron * r.membrane_updates}
            for r in reports
        ]
    )
    return replace(
        reports[0],
        samples=samples,
        layers=layers,
        elementwise=mean([r.elementwise for r in reports]),
        membrane_updates=per_sample["updates"],
        spikes_per_neuron=per_sample["spikes"] / per_sample["updates"],
        energies=mean([r.energies for r in reports]),
        memory=mean([r.memory for r in reports]),
    )


def microjoules(reports: Sequence[EnergyReport]) -> dict[str, list[float]]:
    """Variant ("spiking, float32", "dense, float32", ...) -> its energy in each report, in microjoules."""
    return {name: [r.energies[name] / 1e6 for r in reports] for name in reports[-1].energies}
