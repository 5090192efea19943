"""One page about a spiking classifier: accuracy, calibration, spikes and energy over time steps.

The page holds everything (SVG charts, no network); the numbers that it shows lie beside it as JSON.
"""

from __future__ import annotations

import html
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spikenlp.analysis.energy import EnergyReport, energy_by_step, microjoules
from spikenlp.analysis.spikes import SpikeMonitor, assert_spiking, describe_spikes, spikes_table
from spikenlp.analysis.temporal import mean_off_diagonal, temporal_similarity
from spikenlp.analysis.tracing import Sent, unrolled, watch_neurons
from spikenlp.metrics.calibration import calibration_by_timestep, reliability_curve

EXAMPLE_CHANNELS = 12
"""Channels of each layer whose spikes the example shows."""


def collect(model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, Any]:
    """The numbers of the report; see `report` for the arguments."""
    batches = [dict(batch) for batch in batches]
    if not batches:
        raise ValueError("a report needs at least one batch")
    if missing := [i for i, batch in enumerate(batches) if "labels" not in batch]:
        raise ValueError(f"a report needs labels, which batch {missing[0]} has not")
    if model.config.num_labels < 2:
        raise ValueError("a report is about confidence, which a regression has none of")
    first = {k: v.to(model.device) for k, v in batches[0].items() if k != "labels"}
    try:
        assert_spiking(model, first)
        spiking = "every neuron sends spikes, and every layer that claims to read spikes does"
    except AssertionError as error:
        spiking = f"NOT SPIKING: {error}"
    logits, labels = [], []
    training = model.training
    model.eval()
    with SpikeMonitor(model) as monitor, torch.no_grad():
        for batch in batches:
            inputs = {k: v.to(model.device) for k, v in batch.items() if k != "labels"}
            logits.append(model(**inputs).timestep_logits.float().cpu())
            labels.append(batch["labels"].cpu())
    model.train(training)
    return {
        "spiking": spiking,
        "timestep_logits": torch.cat(logits),
        "labels": torch.cat(labels),
        "spikes": monitor.layers,
        "drivers": describe_spikes(model, first),
        "similarity": temporal_similarity(model, first),
        "energy": energy_by_step(model, first),
    }


def numbers(found: dict[str, Any]) -> dict[str, Any]:
    """What `collect` found as plain numbers, for JSON."""
    means = _running_mean(found["timestep_logits"])
    labels = found["labels"]
    energies: list[EnergyReport] = found["energy"]
    return {
        "spiking": found["spiking"],
        "samples": len(labels),
        "accuracy": [float((m.argmax(-1) == labels).double().mean()) for m in means.unbind(1)],
        "calibration": calibration_by_timestep(found["timestep_logits"], labels),
        "firing_rate": {name: c.rate_by_step.tolist() for name, c in found["spikes"].items()},
        "silent": {name: c.silent for name, c in found["spikes"].items()},
        "saturated": {name: c.saturated for name, c in found["spikes"].items()},
        "similarity": {name: m.tolist() for name, m in found["similarity"].items()},
        "mean_similarity": {k: mean_off_diagonal(m) for k, m in found["similarity"].items()},
        "energy_microjoules": microjoules(energies),
        "energy": energies[-1].to_dict(),
    }


def report(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    out: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    title: str = "Spiking model",
) -> dict[str, Any]:
    """Writes the page `out` and, beside it, its numbers with the ending .json.

    Args:
        model: a sequence classifier of ours.
        batches: tokenised batches with `labels` [B]; energy, similarity and the example are taken from
            the first, everything else from all.
        tokenizer: names the example's tokens.

    Returns:
        The numbers.

    Raises:
        ValueError: no batch, no labels, a regression, a collapsed model.
        ImportError: matplotlib is not installed (extra `plots`).
    """
    from spikenlp.analysis import plots
    from spikenlp.training.provenance import run_record

    batches = [dict(batch) for batch in batches]
    found = collect(model, batches)
    values = {"title": title, "run": run_record(), **numbers(found)}
    logits, labels = found["timestep_logits"], found["labels"]
    steps = logits.shape[1]
    calibration = values["calibration"]
    example = _example(model, batches[0], tokenizer)
    by_step = [f"t{t}" for t in range(1, steps + 1)]
    charts = [
        (
            "Accuracy by time step",
            plots.plot_metric_by_step({"accuracy": values["accuracy"]}, "accuracy"),
        ),
        (
            "Calibration error by time step",
            plots.plot_metric_by_step(
                {
                    "ECE": [calibration[f"ece_{t}"] for t in by_step],
                    "AdaECE": [calibration[f"ada_ece_{t}"] for t in by_step],
                },
                "calibration error",
            ),
        ),
        (
            "Energy of one inference, if it is stopped at a step",
            plots.plot_metric_by_step(values["energy_microjoules"], "energy (µJ)"),
        ),
        *(
            (
                f"Reliability at step {t + 1}",
                plots.plot_reliability(reliability_curve(p.softmax(-1), labels)),
            )
            for t, p in enumerate(_running_mean(logits).unbind(1))
            if t in (0, steps - 1)
        ),
        (
            "Firing rate, layer by step",
            plots.plot_firing_rates({_short(k): v for k, v in values["firing_rate"].items()}),
        ),
        (
            "Similarity of features between time steps",
            plots.plot_similarity({_short(k): m for k, m in found["similarity"].items()}),
        ),
        (f"One example: {example['prediction']}", plots.plot_raster(**example["raster"])),
    ]
    energy: EnergyReport = found["energy"][-1]
    page = _page(
        title,
        lead=[
            values["spiking"],
            f"{values['samples']} samples, T = {steps}: accuracy {100 * values['accuracy'][-1]:.1f} %, "
            f"ECE {calibration['ece']:.3f}",
            f"energy (arithmetic, 45 nm) {energy.verdict()}",
        ],
        charts=charts,
        tables=[
            ("Accuracy, calibration and energy by step", _steps_table(values)),
            ("Energy of each product, with T steps", energy.table()),
            ("How energy is counted", FORMULA),
            ("What drives each product", spikes_table(found["drivers"])),
            ("The example at each step", example["table"]),
        ],
    )
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page)
    out.with_suffix(".json").write_text(json.dumps(values, indent=1) + "\n")
    return values


FORMULA = """\
SOP      = spikes that a product reads x its outputs; key and value spikes are read once a query
E        = SOP x E_AC + (MACs that floats drive, at each step) x E_MAC
           + float operations between products x E_MAC + membrane updates x E_AC
E_AC     = 0.9 pJ (float32), 0.1 pJ (int8 weights)     E_MAC = 4.6 pJ (float32), 0.3 pJ (int8)
memory   = one weight fetched for each operation, 8 bytes of membrane for each neuron and step,
           2.5 pJ a byte (32 kB SRAM); nothing is reused
quantised = the same network with as many levels and no time steps: 8-bit weights, activations of
           ceil(log2(levels)) bits, a multiplier's energy in proportion to both widths
45 nm, Horowitz, ISSCC 2014. Arithmetic and operands only: no control, no leakage."""


def _running_mean(logits: Tensor) -> Tensor:
    return logits.cumsum(1) / torch.arange(1, logits.shape[1] + 1)[:, None]


def _short(name: str) -> str:
    return name.replace("bert.encoder.layer.", "").removesuffix(".neuron")


def _example(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase | None,
) -> dict[str, Any]:
    """The first sample of the batch: what it says at each step, and spikes of a few channels."""
    inputs = {k: v[:1].to(model.device) for k, v in batch.items() if k != "labels"}
    length = int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else None
    spikes: dict[str, np.ndarray] = {}

    def keep(sent: Sent) -> None:
        if sent.levels.dim() == 4:
            shown = sent.spikes()[:, 0, :length, :EXAMPLE_CHANNELS]
            spikes[_short(sent.name)] = shown.to(torch.int8).cpu().numpy()

    training = model.training
    model.eval()
    with unrolled(model), watch_neurons(model, keep), torch.no_grad():
        logits = model(**inputs).timestep_logits.float().cpu()
    model.train(training)
    names: dict[Any, str] = dict(model.config.id2label or {})
    truth = names[int(batch["labels"][0])]
    confident = _running_mean(logits)[0].softmax(-1)
    lines = [f"truth: {truth}"]
    for t, probabilities in enumerate(confident, 1):
        best = int(probabilities.argmax())
        lines.append(f"step {t}: {names[best]}, confidence {probabilities[best]:.3f}")
    ids = inputs["input_ids"][0, :length].tolist()
    tokens = [str(i) for i in ids] if tokenizer is None else tokenizer.convert_ids_to_tokens(ids)
    return {
        "prediction": lines[-1].partition(": ")[2] + f" (truth: {truth})",
        "table": "\n".join(lines),
        "raster": {"spikes": spikes, "tokens": tokens},
    }


def _steps_table(values: dict[str, Any]) -> str:
    calibration, energies = values["calibration"], values["energy_microjoules"]
    lines = [
        f"{'step':>4}{'accuracy':>10}{'confidence':>12}{'ECE':>8}{'AdaECE':>8}{'NLL':>8}{'Brier':>8}"
        + "".join(f"{name + ', uJ':>28}" for name in energies)
    ]
    for t, accuracy in enumerate(values["accuracy"], 1):
        cells = (calibration[f"{name}_t{t}"] for name in ("ece", "ada_ece", "nll", "brier"))
        lines.append(
            f"{t:>4}{accuracy:10.4f}{calibration[f'confidence_t{t}']:12.4f}"
            + "".join(f"{cell:8.4f}" for cell in cells)
            + "".join(f"{energy[t - 1]:28.3f}" for energy in energies.values())
        )
    return "\n".join(lines)


def _svg(figure: Any) -> str:
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    return buffer.getvalue().partition("<svg")[1] + buffer.getvalue().partition("<svg")[2]


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1200px; padding: 1rem; color: #1b1b1b }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem }
figure { margin: 0; min-width: 0 } figure.wide { grid-column: 1 / -1 }
figcaption { font-weight: 600 } svg { width: 100%; height: auto }
pre { overflow-x: auto; background: #f5f5f5; padding: .8rem; font-size: .8rem; line-height: 1.35 }
.bad { color: #b00020; font-weight: 700 }
"""


def _page(
    title: str, lead: list[str], charts: list[tuple[str, Any]], tables: list[tuple[str, str]]
) -> str:
    def escape(text: str) -> str:
        return html.escape(text)

    wide = ("Similarity", "One example")
    figures = "\n".join(
        f"<figure{' class=wide' if name.startswith(wide) else ''}><figcaption>{escape(name)}"
        f"</figcaption>{_svg(figure)}</figure>"
        for name, figure in charts
    )
    bad = ' class="bad"' if lead[0].startswith("NOT") else ""
    paragraphs = "\n".join(
        f"<p{bad if i == 0 else ''}>{escape(text)}</p>" for i, text in enumerate(lead)
    )
    details = "\n".join(
        f"<h2>{escape(name)}</h2>\n<pre>{escape(text)}</pre>" for name, text in tables
    )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head>\n<body>\n"
        f"<h1>{escape(title)}</h1>\n{paragraphs}\n<main>\n{figures}\n</main>\n{details}\n"
        "</body></html>\n"
    )
