"""The model card: everything that a run knows about itself, nothing that it does not.

Figures come from `results`, the mapping that the recipes write as results.json: task, data, samples,
base_model, seed, run, config, dense, before_training, training, spiking (metrics, at each step as
`accuracy_t1` ...) and energy_microjoules. Whatever is absent there is left out of the card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, eval_result_entries_to_yaml
from transformers import PreTrainedModel

from spikenlp.hub import results as recorded
from spikenlp.hub.citations import citations
from spikenlp.hub.privacy import scrub

TEMPLATE = Path(__file__).parent / "model_card.md"
EVAL_RESULTS = ".eval_results"
PLOTS = "plots"
LICENCE = "apache-2.0"
PIPELINES = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForMaskedLM": "fill-mask",
    "ForImageClassification": "image-classification",
    "Model": "feature-extraction",
}
"""Ending of a class's name -> pipeline of transformers that serves it."""


def model_card(
    model: PreTrainedModel,
    results: Mapping[str, Any] | None = None,
    *,
    name: str,
    licence: str | None = None,
    tags: list[str] | None = None,
    plots: list[dict[str, str]] | None = None,
) -> ModelCard:
    """The card of `model`.

    Args:
        results: of the run that trained it, in the form of results.json; it is scrubbed.
        name: Hub id, or what the model is called.
        licence: identifier such as "mit". Default: Apache-2.0 for a model trained from scratch; of one
            that was made from another, whose licence counts too, none.
        plots: {"title", "file"} of charts that lie beside the card.

    Raises:
        ValueError: results of a model with another T, neuron, alphabet or nonlinearity.
    """
    results = scrub(dict(results or {}))
    check_config(model, results)
    base = results.get("base_model")
    if licence is None and from_scratch(results):
        licence = LICENCE
    pipeline = next((p for k, p in PIPELINES.items() if type(model).__name__.endswith(k)), None)
    dataset = recorded.hub_dataset(results)
    measured = recorded.eval_results(results)
    spikes, drivers = describe(model)
    data = ModelCardData(
        library_name="transformers",
        pipeline_tag=pipeline,
        language="en" if recorded.is_glue(results.get("task")) else None,
        license=licence,
        base_model=base if base and recorded.HUB_ID.fullmatch(base) else None,
        datasets=[dataset] if dataset else None,
        metrics=sorted({r.metric_type for r in measured} & set(recorded.HUB_METRICS.values()))
        or None,
        tags=["spikenlp", "spiking-neural-network", model.config.model_type, *(tags or [])],
        model_name=name.split("/")[-1],
        eval_results=measured or None,
        spikes=spikes,
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name.split("/")[-1],
        summary=_summary(model, results),
        load=_load(model, name, pipeline),
        table=recorded.steps_table(results),
        results_note=_results_note(results),
        plots=plots or [],
        spikes=_sentence(spikes),
        drivers=drivers,
        facts=_facts(results),
        licence_note=_licence_note(results, licence),
        citations=citations(results, model.config.model_type),
    )


def write_card(
    folder: str | Path,
    model: PreTrainedModel,
    results: Mapping[str, Any] | None = None,
    **options: Any,
) -> None:
    """Writes README.md, `.eval_results/` and, where matplotlib is installed, `plots/` into `folder`.

    Raises:
        ValueError: as `model_card`, whose options it takes.
    """
    folder = Path(folder)
    clean = scrub(dict(results or {}))
    plots = _draw(folder, clean)
    card = model_card(model, clean, plots=plots, **options)
    card.save(folder / "README.md")
    entries = recorded.eval_result_entries(clean)
    for stale in (folder / EVAL_RESULTS).glob("*.yaml"):
        stale.unlink()
    if entries:
        (folder / EVAL_RESULTS).mkdir(exist_ok=True)
        text = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False)
        (folder / EVAL_RESULTS / f"{clean['task']}.yaml").write_text(text)


def from_scratch(results: Mapping[str, Any]) -> bool:
    """Whether the run says so: a base model that is absent is not one that there was not."""
    return "base_model" in results and results["base_model"] is None and "dense" not in results


def check_config(model: PreTrainedModel, results: Mapping[str, Any]) -> None:
    """Raises ValueError where `results` say that they are of another model than this one."""
    for key, value in results.get("config", {}).items():
        found = getattr(model.config, key, None)
        if found != value:
            raise ValueError(f"results are of a model with {key}={value!r}, this one has {found!r}")


def describe(model: PreTrainedModel) -> tuple[dict[str, Any] | None, str]:
    """What drives the matrix products, of `describe_spikes`: counts by alphabet, and the whole table."""
    from spikenlp.analysis import describe_spikes, spikes_table

    if getattr(model.config, "collapsed", False):
        return None, ""
    training = model.training
    model.eval()
    try:
        drivers = describe_spikes(model)
    finally:
        model.train(training)
    counts: dict[str, Any] = {"products": len(drivers)}
    for driver in drivers:
        counts[driver.driver] = counts.get(driver.driver, 0) + 1
        if driver.alphabet:
            counts["alphabet"] = f"{{{driver.alphabet}}}"
    return counts, spikes_table(drivers)


def _sentence(spikes: dict[str, Any] | None) -> str:
    if spikes is None:
        return "None: this is the collapsed twin of a spiking model, without a time axis."
    driven = spikes["products"] - spikes.get("float", 0)
    return (
        f"{driven} of the {spikes['products']} matrix products of a forward pass read spikes, from the "
        f"alphabet {spikes.get('alphabet', 'none')} times a learned amplitude; floats drive the others."
    )


def _summary(model: PreTrainedModel, results: Mapping[str, Any]) -> str:
    c = model.config
    layers = getattr(c, "num_hidden_layers", None)
    size = f"{model.num_parameters() / 1e6:.1f}M parameters"
    if layers is not None:
        size += f", {layers} layers of {c.hidden_size}"
    parts = [f"`{type(model).__name__}` of spikenlp: {size}"]
    if getattr(c, "neuron", None):
        sent = "{-1, 0, 1}" if c.ternary else "{0, 1}"
        parts.append(f"T = {c.num_timesteps} time steps of {c.neuron} neurons that send {sent}")
    if results.get("task"):
        parts.append(f"trained for {results['task']}")
    return "; ".join(parts) + "."


def _load(model: PreTrainedModel, name: str, pipeline: str | None) -> str:
    kind = type(model).__name__
    if pipeline in (None, "image-classification"):
        return f'from spikenlp import {kind}  # pip install spikenlp\n\nmodel = {kind}.from_pretrained("{name}")'
    return (
        "import spikenlp  # pip install spikenlp\n"
        "from transformers import pipeline\n\n"
        f'answer = pipeline("{pipeline}", model="{name}")'
    )


def _results_note(results: Mapping[str, Any]) -> str:
    notes = ["Row t is the model stopped after t steps."]
    samples = results.get("samples", {})
    evaluated = [f"{rows:,} ({split})" for split, rows in samples.items() if split != "train"]
    if evaluated:
        notes.append(f"Evaluated on {', '.join(evaluated)} of {results.get('data', 'the data')}.")
    if results.get("rounded_after_evaluation"):
        notes.append(
            f"The weights were rounded to {results['rounded_after_evaluation']} after this evaluation."
        )
    if results.get("energy_microjoules"):
        on = results.get("energy_samples")
        notes.append(
            "Energy per sample: arithmetic in float32 by the 45 nm convention (Horowitz, ISSCC 2014), "
            "without memory" + (f", counted on {on} evaluation samples." if on else ".")
        )
    return " ".join(notes)


def _facts(results: Mapping[str, Any]) -> dict[str, str]:
    training = results.get("training", {})
    run = results.get("run", {})
    samples = results.get("samples", {})
    options = {k: v for k, v in training.items() if k not in ("steps", "seconds", "loss")}
    loss = options.pop("temporal_loss", None)
    chosen = ", ".join(f"{k}={v}" for k, v in options.items())
    data = results.get("data")
    if data and samples.get("train"):
        data += f" ({samples['train']:,} training rows)"
    base = results.get("base_model")
    if results.get("dense"):
        base = f"{base or 'not recorded'}, fine-tuned for the task as a dense model"
    elif from_scratch(results):
        base = "none, trained from scratch"
    hardware = run.get("hardware", {})
    facts = {
        "Task": results.get("task"),
        "Data": data,
        "Base model": base or ("not recorded" if training else None),
        "Loss": f"{loss}{f' ({chosen})' if chosen else ''}" if loss else None,
        "Steps": training.get("steps"),
        "Seed": results.get("seed"),
        "Command": f"`{run['command']}`" if run.get("command") else None,
        "Commit": run.get("commit"),
        "Versions": ", ".join(f"{k} {v}" for k, v in run.get("versions", {}).items()),
        "Hardware": hardware.get("accelerator") or hardware.get("processor"),
    }
    facts = {k: str(v) for k, v in facts.items() if v not in (None, "")}
    return facts or {"Record": "none"}


def _licence_note(results: Mapping[str, Any], licence: str | None) -> str:
    base = results.get("base_model")
    notes = [f"{licence}." if licence else "None is stated for these weights."]
    if base or "dense" in results:
        notes.append(
            f"They were made from {base or 'a dense model'}, whose licence applies to them."
        )
    notes.append("spikenlp itself is under Apache-2.0.")
    return " ".join(notes)


def _draw(folder: Path, results: Mapping[str, Any]) -> list[dict[str, str]]:
    from importlib.util import find_spec

    metrics = recorded.by_step(results.get("spiking", {}))
    if not metrics or find_spec("matplotlib") is None:
        return []
    from spikenlp.analysis.plots import plot_metric_by_step

    energy = results.get("energy_microjoules", {})
    charts = {
        "Metrics by time step": (recorded.task_metrics(results["spiking"]), "value"),
        "Expected calibration error by time step": (
            {k: v for k, v in metrics.items() if re.search(r"(^|_)ece$", k)},
            "ECE",
        ),
        "Energy of an inference that stops at a step": (
            {k: v for k, v in energy.items() if k in (recorded.MEASURED, recorded.RIVAL)},
            "energy (µJ)",
        ),
    }
    drawn = []
    for title, (values, label) in charts.items():
        if not values:
            continue
        file = f"{PLOTS}/{title.split()[0].lower()}_by_step.png"
        (folder / PLOTS).mkdir(parents=True, exist_ok=True)
        plot_metric_by_step(values, label).savefig(folder / file, dpi=120, bbox_inches="tight")
        drawn.append({"title": title, "file": file})
    return drawn
