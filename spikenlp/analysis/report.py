"""One page about a spiking classifier: accuracy, calibration, spikes and energy over time steps.

The page holds everything (SVG charts, no network); the numbers that it shows lie beside it as JSON.
"""

from __future__ import annotations

import html
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from spikenlp.analysis.energy import (
    EnergyConstants,
    EnergyReport,
    energy_by_step,
    microjoules,
    pooled,
)
from spikenlp.analysis.spikes import (
    SpikeMonitor,
    assert_spiking,
    describe_spikes,
    spikes_table,
)
from spikenlp.analysis.temporal import mean_off_diagonal, temporal_similarity
from spikenlp.analysis.watching import Sent, unrolled, watch_neurons
from spikenlp.metrics import calibration_by_timestep, reliability_curve, scores_by_timestep
from spikenlp.models.modes import evaluating, has_several_labels
from spikenlp.provenance import run_record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Metrics = Callable[[np.ndarray, np.ndarray], dict[str, float]]

EXAMPLE_CHANNELS = 12
"""Channels of each layer whose spikes the example shows."""
ENERGY_SAMPLES = 128
"""Energy is counted on the first batches, up to the one that completes so many samples."""
BY_HEAD = ("self.key_neuron", "self.value_neuron", "attention.output.neuron")
"""Neurons whose channels belong to heads: those of keys, values and context."""
SMALLEST_TEXT = 8.0
"""CSS pixels of a chart's smallest letters; a chart that needs more room for it scrolls in its frame."""


def collect(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    *,
    constants: EnergyConstants | None = None,
) -> dict[str, Any]:
    """What the report is made of; see `report` for the arguments."""
    batches = list(batches)
    _check(model, batches)
    labels = [batch["labels"].cpu() for batch in batches]
    inputs = [{k: v.to(model.device) for k, v in b.items() if k != "labels"} for b in batches]
    try:
        assert_spiking(model, inputs[0])
        spiking = "every neuron sends spikes, and every layer that claims to read spikes does"
    except AssertionError as error:
        spiking = f"NOT SPIKING: {error}"
    with evaluating(model), SpikeMonitor(model) as monitor, torch.no_grad():
        logits = [model(**batch).timestep_logits.float().cpu() for batch in inputs]
    samples = np.cumsum([len(of_batch) for of_batch in labels])
    counted = inputs[: int(np.searchsorted(samples, ENERGY_SAMPLES)) + 1]
    return {
        "spiking": spiking,
        "timestep_logits": torch.cat(logits),
        "labels": torch.cat(labels),
        "spikes": monitor.layers,
        "heads": getattr(model.config, "num_attention_heads", None),
        "drivers": describe_spikes(model, inputs[0]),
        "similarity_samples": len(labels[0]),
        "similarity": temporal_similarity(model, inputs[0]),
        "energy": [
            pooled(of_step)
            for of_step in zip(
                *(energy_by_step(model, batch, constants=constants) for batch in counted),
                strict=True,
            )
        ],
    }


def _check(model: PreTrainedModel, batches: Sequence[Mapping[str, Tensor]]) -> None:
    if not batches:
        raise ValueError("a report needs at least one batch")
    if missing := [i for i, batch in enumerate(batches) if "labels" not in batch]:
        raise ValueError(f"a report needs labels, which batch {missing[0]} has not")
    classes = model.config.num_labels
    if classes < 2:
        raise ValueError("a report is about confidence, which a regression has none of")
    if has_several_labels(model.config):
        raise ValueError(
            "a report is about one label a sample, and this model gives several at once: SpikingTrainer.evaluate "
            "reports their calibration"
        )
    for i, batch in enumerate(batches):
        if batch["labels"].dim() != 1:
            raise ValueError(
                "a report is about one label a sample, labels [B], those of batch "
                f"{i} are {list(batch['labels'].shape)}"
            )
        low, high = batch["labels"].min(), batch["labels"].max()
        if low < 0 or high >= classes:
            raise ValueError(
                f"labels must lie in [0, {classes}), those of batch {i} in {low} ... {high}"
            )


def numbers(found: dict[str, Any], metrics: Metrics | None = None) -> dict[str, Any]:
    """What `collect` found as plain numbers, for JSON: None where there is no value."""
    logits, labels = found["timestep_logits"], found["labels"]
    means = _running_mean(logits)
    spikes, energies = found["spikes"], found["energy"]
    scores: dict[str, list[float]] = {}
    if metrics is not None:
        for name, score in scores_by_timestep(metrics, logits, labels).items():
            scores.setdefault(name.rpartition("_t")[0], []).append(score)
        scores.pop("accuracy", None)
    return _plain(
        {
            "spiking": found["spiking"],
            "samples": len(labels),
            "accuracy": [float((m.argmax(-1) == labels).double().mean()) for m in means.unbind(1)],
            "scores": scores,
            "calibration": calibration_by_timestep(logits, labels),
            "reliability": [
                {k: v.tolist() for k, v in asdict(reliability_curve(m.softmax(-1), labels)).items()}
                for m in means.unbind(1)
            ],
            "firing_rate": {name: c.rate_by_step.tolist() for name, c in spikes.items()},
            "firing_rate_by_head": {
                name: c.rate_by_head(found["heads"]).tolist()
                for name, c in spikes.items()
                if name.endswith(BY_HEAD)
            },
            "silent": {name: c.silent for name, c in spikes.items()},
            "saturated": {name: c.saturated for name, c in spikes.items()},
            "similarity_samples": found["similarity_samples"],
            "similarity": {name: m.tolist() for name, m in found["similarity"].items()},
            "mean_similarity": {k: mean_off_diagonal(m) for k, m in found["similarity"].items()},
            "drivers": [asdict(driver) for driver in found["drivers"]],
            "energy_microjoules": microjoules(energies),
            "energy": {
                **energies[-1].to_dict(),
                "products_ratio_formula": energies[-1].products_ratio_by_formula(),
            },
        }
    )


def _plain(value: Any) -> Any:
    """`value` with None for the floats that JSON has no word for."""
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    if isinstance(value, list):
        return [_plain(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def report(
    model: PreTrainedModel,
    batches: Iterable[Mapping[str, Tensor]],
    out: str | Path,
    *,
    tokenizer: PreTrainedTokenizerBase | None = None,
    title: str = "Spiking model",
    metrics: Metrics | None = None,
    constants: EnergyConstants | None = None,
) -> dict[str, Any]:
    """Writes the page `out` and, beside it, its numbers with the ending .json.

    Args:
        model: a sequence or image classifier of ours.
        batches: tokenised batches, images or frames of equal T (`pixel_values`), with `labels` [B] in
            [0, C); similarity, what drives each product and
            the example are taken from the first, energy from the first `ENERGY_SAMPLES` samples (whole
            batches), everything else from all.
        tokenizer: names the tokens of the example, whose spikes are shown of text only.
        metrics: further scores by name of logits [N, C] and labels [N], as `glue_metrics("qqp")`.
        constants: picojoules of operations.

    Returns:
        The numbers; None where there is no value, such as a similarity at T = 1.

    Raises:
        ValueError: no batch, no labels or others, a regression, a collapsed model or one without neurons;
            `out` is a folder or ends with .json.
        ImportError: matplotlib is not installed (extra `plots`).
    """
    from spikenlp.analysis import plots

    plots.new_figure()  # that matplotlib is missing is found out before the model runs
    out = Path(out)
    if out.suffix == ".json" or out.is_dir():
        raise ValueError(f"out must be the page's file, such as report.html, got {out}")
    batches = list(batches)
    found = collect(model, batches, constants=constants)
    example = _example(model, batches[0], tokenizer)
    spikes = example.pop("spikes")
    values = {
        "title": title,
        "run": run_record(),
        **numbers(found, metrics),
        "example": example,
    }
    energy: EnergyReport = found["energy"][-1]
    page = _page(
        title,
        lead=_lead(values, energy),
        charts=[*_charts(found, values), *_example_chart(example, spikes)],
        tables=[
            ("Accuracy, calibration and energy by step", _steps_table(values)),
            ("Energy of each product, with T steps", energy.table()),
            ("The products alone, spiking against dense", _check_of_products(energy)),
            ("How energy is counted", formula(energy.constants)),
            ("What drives each product", spikes_table(found["drivers"])),
            ("The example at each step", _example_table(example)),
        ],
    )
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page)
    out.with_suffix(".json").write_text(json.dumps(values, indent=1, allow_nan=False) + "\n")
    return values


def _lead(values: Mapping[str, Any], energy: EnergyReport) -> list[str]:
    """The sentences above the charts."""
    further = "".join(f"{name} {of_step[-1]:.3f}, " for name, of_step in values["scores"].items())
    return [
        values["spiking"],
        f"{values['samples']} samples, T = {len(values['accuracy'])}: accuracy "
        f"{100 * values['accuracy'][-1]:.1f} %, {further}ECE {values['calibration']['ece']:.3f}",
        f"energy (arithmetic) {energy.verdict()}",
        f"Energy is the mean of the first {energy.samples} samples; similarity, and what drives each "
        f"product, are of the first {values['similarity_samples']}.",
    ]


def _charts(found: Mapping[str, Any], values: Mapping[str, Any]) -> list[tuple[str, Figure]]:
    """Heading and chart of what is measured over all samples."""
    from spikenlp.analysis import plots

    logits, labels, scores = found["timestep_logits"], found["labels"], values["scores"]
    calibration, steps = values["calibration"], logits.shape[1]
    by_step = [f"t{t}" for t in range(1, steps + 1)]
    errors = {
        name: [calibration[f"{key}_{t}"] for t in by_step]
        for name, key in (("ECE", "ece"), ("AdaECE", "ada_ece"))
    }
    charts = [
        (
            " and ".join(["Accuracy", *scores]) + " by time step",
            plots.plot_metric_by_step(
                {"accuracy": values["accuracy"], **scores}, "score" if scores else "accuracy"
            ),
        ),
        (
            "Calibration error by time step",
            plots.plot_metric_by_step(errors, "calibration error"),
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
            plots.plot_similarity({_titled(k): m for k, m in found["similarity"].items()}),
        ),
    ]
    if values["firing_rate_by_head"]:
        rates = {_short(k): v for k, v in values["firing_rate_by_head"].items()}
        heads = plots.plot_head_rates(rates)
        charts.append(("Firing rate of keys, values and context, layer by head", heads))
    return charts


def _example_chart(example: Mapping[str, Any], spikes: Any) -> list[tuple[str, Figure]]:
    """The spikes of a text; none of an image."""
    from spikenlp.analysis import plots

    if not spikes:
        return []
    answer = f"{_answer(example['by_step'][-1])} (truth: {example['truth']})"
    return [(f"One example: {answer}", plots.plot_raster(spikes, example["tokens"]))]


def formula(constants: EnergyConstants) -> str:
    """How energy is counted, with these constants."""
    c = constants
    source = "45 nm, Horowitz, ISSCC 2014" if c == EnergyConstants() else "Constants of your own"
    return f"""\
SOP      = spikes that a product reads x its outputs; key and value spikes are read once a query
E        = SOP x E_AC + (MACs that floats drive, at each step that they run in) x E_MAC
           + float operations between products x E_MAC + membrane updates x E_AC
E_AC     = {c.float_ac:g} pJ (float32), {c.int32_add:g} pJ (int8 weights)     \
E_MAC = {c.float_mac:g} pJ (float32), {c.int8_mac:g} pJ (int8)
memory   = one weight fetched for each operation, 8 bytes of membrane for each neuron and step,
           {c.memory_byte:g} pJ a byte (32 kB SRAM); nothing is reused
quantised = the same network with as many levels and no time steps: 8-bit weights, activations of
           ceil(log2(levels)) bits, a multiplier's energy in proportion to both widths
{source}. Arithmetic and operands only: no control, no leakage."""


def _check_of_products(energy: EnergyReport) -> str:
    c, f = energy.constants, energy.driven_share
    few = ""
    if any(layer.rate is None and layer.steps < energy.num_timesteps for layer in energy.layers):
        few = (
            "\nThe formula has floats drive products at all T steps; some run in fewer, as what is the same at "
            "each step runs once."
        )
    return (
        f"by formula  E_spiking / E_dense = T (rho f r + 1 - f) = {energy.products_ratio_by_formula():.3f}\n"
        f"counted     {energy.products_ratio():.3f}, product by product\n"
        f"T = {energy.num_timesteps}, rho = {energy.rate:.4f} spikes per neuron and step, "
        f"f = {f:.4f} of the MACs driven by spikes,\n"
        f"r = E_AC / E_MAC = {c.float_ac:g} / {c.float_mac:g}{few}"
    )


def _running_mean(logits: Tensor) -> Tensor:
    return logits.cumsum(1) / torch.arange(1, logits.shape[1] + 1)[:, None]


def _short(name: str) -> str:
    return name.replace("bert.encoder.layer.", "").removesuffix(".neuron")


def _titled(name: str) -> str:
    short = _short(name)
    return f"layer {short}" if short.isdigit() else short


def _example(
    model: PreTrainedModel,
    batch: Mapping[str, Tensor],
    tokenizer: PreTrainedTokenizerBase | None,
) -> dict[str, Any]:
    """The first sample of the batch: what it says at each step and, of text, its tokens and spikes of a few
    channels."""
    inputs = {k: v[:1].to(model.device) for k, v in batch.items() if k != "labels"}
    length = int(inputs["attention_mask"].sum()) if "attention_mask" in inputs else None
    spikes: dict[str, np.ndarray] = {}

    def keep(sent: Sent) -> None:
        if "input_ids" in inputs and sent.levels.dim() == 4:
            shown = sent.spikes()[:, 0, :length, :EXAMPLE_CHANNELS]
            spikes[_short(sent.name)] = shown.to(torch.int8).cpu().numpy()

    with evaluating(model), unrolled(model), watch_neurons(model, keep), torch.no_grad():
        logits = model(**inputs).timestep_logits.float().cpu()
    names: dict[Any, str] = dict(model.config.id2label or {})
    confidences, classes = _running_mean(logits)[0].softmax(-1).max(-1)
    tokens = {}
    if "input_ids" in inputs:
        ids = inputs["input_ids"][0, :length].tolist()
        named = map(str, ids) if tokenizer is None else tokenizer.convert_ids_to_tokens(ids)
        tokens = {"tokens": list(named)}
    return {
        **tokens,
        "truth": names[int(batch["labels"][0])],
        "by_step": [
            {"prediction": names[best], "confidence": confidence}
            for best, confidence in zip(classes.tolist(), confidences.tolist(), strict=True)
        ],
        "spikes": spikes,
    }


def _answer(of_step: Mapping[str, Any]) -> str:
    return f"{of_step['prediction']}, confidence {of_step['confidence']:.3f}"


def _example_table(example: Mapping[str, Any]) -> str:
    steps = (f"step {t}: {_answer(of_step)}" for t, of_step in enumerate(example["by_step"], 1))
    tokens = [f"tokens: {' '.join(example['tokens'])}"] if "tokens" in example else []
    return "\n".join([*tokens, f"truth: {example['truth']}", *steps])


def _steps_table(values: dict[str, Any]) -> str:
    calibration, scores = values["calibration"], values["scores"]
    energies = values["energy_microjoules"]
    lines = [
        f"{'step':>4}{'accuracy':>10}"
        + "".join(f"{name:>10}" for name in scores)
        + f"{'confidence':>12}{'ECE':>8}{'AdaECE':>8}{'NLL':>8}{'Brier':>8}"
        + "".join(f"{name + ', uJ':>28}" for name in energies)
    ]
    for t, accuracy in enumerate(values["accuracy"], 1):
        cells = (calibration[f"{name}_t{t}"] for name in ("ece", "ada_ece", "nll", "brier"))
        lines.append(
            f"{t:>4}{accuracy:10.4f}"
            + "".join(f"{score[t - 1]:10.4f}" for score in scores.values())
            + f"{calibration[f'confidence_t{t}']:12.4f}"
            + "".join(f"{cell:8.4f}" for cell in cells)
            + "".join(f"{energy[t - 1]:28.3f}" for energy in energies.values())
        )
    return "\n".join(lines)


def _svg(figure: Any) -> str:
    """The chart, between the width where its smallest letters are `SMALLEST_TEXT` and a little more
    than its own."""
    from matplotlib.text import Text

    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", bbox_inches="tight")
    svg = "<svg" + buffer.getvalue().partition("<svg")[2]
    points = float(re.findall(r'width="([\d.]+)pt"', svg)[0])
    smallest = min(text.get_fontsize() for text in figure.findobj(Text) if text.get_text())
    least, most = points * SMALLEST_TEXT / smallest, 1.25 * points * 96 / 72
    return svg.replace("<svg", f'<svg style="min-width: {least:.0f}px; max-width: {most:.0f}px"', 1)


STYLE = """
body { font: 16px/1.5 system-ui, sans-serif; margin: 0 auto; max-width: 1200px; padding: 1rem; color: #1b1b1b; overflow-wrap: break-word }
main { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 26rem), 1fr)); gap: 1.5rem }
figure { margin: 0; min-width: 0 } figure.wide { grid-column: 1 / -1 }
figcaption { font-weight: 600 } .chart { overflow-x: auto } svg { display: block; width: 100%; height: auto }
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
        f'</figcaption><div class="chart" tabindex="0">{_svg(figure)}</div></figure>'
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
