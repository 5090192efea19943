"""The model card: everything that a run knows about itself, nothing that it does not.

Figures come from `results`, the mapping that the recipes write as results.json: task, data, samples,
evaluated_on (the split, of a run that has a test set), base_model, dense_first, seed, run, config, dense,
before_training, training, spiking and spiking_float32 (metrics, at each step as `accuracy_t1` ...) and
energy_microjoules. Whatever is absent there is left out of the card.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from huggingface_hub import ModelCard, ModelCardData, eval_result_entries_to_yaml
from torch import nn
from transformers import PreTrainedModel

from spikenlp.hub import results as recorded
from spikenlp.hub.citations import citations
from spikenlp.models.vision import SpikingVisionPreTrainedModel
from spikenlp.neurons.modules import SpikingNeuron
from spikenlp.privacy import scrub

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
POLARITIES = 2
"""Channels of an event camera's frames, which no pipeline of transformers makes."""
PROCESSOR = "preprocessor_config.json"
OF_THE_RUN = (
    "steps",
    "epochs",
    "seconds",
    "loss",
    "best_checkpoint",
    "best_validation_accuracy",
)
"""What a record of training holds besides the options of the loss."""


def model_card(
    model: PreTrainedModel,
    results: Mapping[str, Any] | None = None,
    *,
    name: str,
    licence: str | None = None,
    tags: list[str] | None = None,
    plots: list[dict[str, str]] | None = None,
    processor: bool = False,
) -> ModelCard:
    """The card of `model`.

    Args:
        results: of the run that trained it, in the form of results.json; it is scrubbed.
        name: Hub id, or what the model is called.
        licence: identifier such as "mit". Default: Apache-2.0 for a model trained from scratch; of one
            that was made from another, whose licence counts too, none.
        plots: {"title", "file"} of charts that lie beside the card.
        processor: an image processor lies beside it, without which no pipeline takes images.

    Raises:
        ValueError: results of a model with another T, neuron, alphabet or nonlinearity.
    """
    results = recorded.of_itself(scrub(dict(results or {})))
    check_config(model, results)
    base = results.get("base_model")
    if licence is None and from_scratch(results):
        licence = LICENCE
    pipeline = _pipeline(model)
    dataset = recorded.hub_dataset(results)
    vision = isinstance(model, SpikingVisionPreTrainedModel)
    task_type = pipeline or ("image-classification" if vision else "text-classification")
    measured = recorded.eval_results(results, task_type)
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
        tags=[
            "spikenlp",
            *(["spiking-neural-network"] if spikes else []),
            model.config.model_type,
            *(tags or []),
        ],
        model_name=name.split("/")[-1],
        eval_results=measured or None,
        spikes=spikes,
    )
    return ModelCard.from_template(
        data,
        template_path=str(TEMPLATE),
        name=name.split("/")[-1],
        summary=_summary(model, results),
        load=_load(model, name, pipeline, processor),
        outputs=_outputs(model),
        table=recorded.steps_table(results),
        results_note=_results_note(model, results),
        plots=plots or [],
        spikes=_sentence(model, spikes),
        drivers=drivers,
        facts=_facts(results),
        licence_note=_licence_note(results, licence),
        citations=citations(results, model.config),
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
    clean = recorded.of_itself(scrub(dict(results or {})))
    plots = _draw(folder, clean)
    processor = (folder / PROCESSOR).is_file()
    card = model_card(model, clean, plots=plots, processor=processor, **options)
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
    made = "dense" in results and not results.get("dense_first")
    return "base_model" in results and results["base_model"] is None and not made


def check_config(model: PreTrainedModel, results: Mapping[str, Any]) -> None:
    """Raises ValueError where `results` say that they are of another model than this one."""
    recorded_config = results.get("config", {})
    if recorded_config and hasattr(model.config, "burst"):
        recorded_config = {"burst": 1, **recorded_config}  # of before there were bursts
    for key, value in recorded_config.items():
        found = getattr(model.config, key, None)
        if found != value and key != "parameters":  # their number, which is no field
            raise ValueError(f"results are of a model with {key}={value!r}, this one has {found!r}")


def describe(model: PreTrainedModel) -> tuple[dict[str, Any] | None, str]:
    """What drives the matrix products, of `describe_spikes`: counts by alphabet, and the whole table."""
    from spikenlp.analysis import describe_spikes, spikes_table

    if getattr(model.config, "collapsed", False) or not _neurons(model):
        return None, ""
    drivers = describe_spikes(model)
    counts: dict[str, Any] = {"products": len(drivers)}
    for driver in drivers:
        counts[driver.driver] = counts.get(driver.driver, 0) + 1
    counts["alphabet"] = _alphabet(model)
    return counts, spikes_table(drivers)


def _neurons(model: PreTrainedModel) -> list[SpikingNeuron]:
    return [module for module in model.modules() if isinstance(module, SpikingNeuron)]


def _alphabet(model: PreTrainedModel) -> str:
    return max(_neurons(model), key=lambda neuron: (neuron.ternary, neuron.burst)).alphabet


def _pipeline(model: PreTrainedModel) -> str | None:
    found = next((p for k, p in PIPELINES.items() if type(model).__name__.endswith(k)), None)
    if not isinstance(model, SpikingVisionPreTrainedModel):
        return found
    if model.config.num_channels == POLARITIES:
        return None
    return "image-feature-extraction" if found == "feature-extraction" else found


def _sentence(model: PreTrainedModel, spikes: dict[str, Any] | None) -> str:
    if not _neurons(model):
        return "None: this is a dense network, with ReLU in the place of neurons."
    if spikes is None:
        return "None: this is the collapsed twin of a spiking model, without a time axis."
    driven = spikes["products"] - spikes.get("float", 0)
    sums = spikes.get("integer", 0)
    learned = any(isinstance(n.amplitude, nn.Parameter) for n in _neurons(model))
    return (
        f"{driven} of the {spikes['products']} matrix products of a forward pass read spikes"
        f"{f' ({sums} of them bursts, sums or averages of spikes)' if sums else ''}, from the "
        f"alphabet {spikes['alphabet']}{' times a learned amplitude' if learned else ''}; "
        "floats drive the others."
    )


def _summary(model: PreTrainedModel, results: Mapping[str, Any]) -> str:
    c = model.config
    layers = getattr(c, "num_hidden_layers", None)
    size = f"{model.num_parameters() / 1e6:.1f}M parameters"
    if layers is not None:
        size += f", {layers} layers of {c.hidden_size}"
    parts = [f"`{type(model).__name__}` of spikenlp: {size}"]
    if isinstance(model, SpikingVisionPreTrainedModel):
        parts.append(f"{_input(model)} of {c.num_channels} x {c.image_size} x {c.image_size}")
    if _neurons(model):
        sent = _alphabet(model)
        parts.append(f"T = {c.num_timesteps} time steps of {c.neuron} neurons that send {sent}")
    else:
        parts.append("dense, without time steps")
    if results.get("task"):
        parts.append(f"trained for {results['task']}")
    return "; ".join(parts) + "."


def _input(model: PreTrainedModel) -> str:
    return "frames" if model.config.num_channels == POLARITIES else "images"


def _load(model: PreTrainedModel, name: str, pipeline: str | None, processor: bool) -> str:
    kind = type(model).__name__
    if isinstance(model, SpikingVisionPreTrainedModel):
        if not (pipeline and processor):
            return _load_vision(model, name)
    elif pipeline is None:
        return f'from spikenlp import {kind}  # pip install spikenlp\n\nmodel = {kind}.from_pretrained("{name}")'
    return (
        "import spikenlp  # pip install spikenlp\n"
        "from transformers import pipeline\n\n"
        f'answer = pipeline("{pipeline}", model="{name}")'
    )


def _load_vision(model: PreTrainedModel, name: str) -> str:
    c = model.config
    shape = [c.num_channels, c.image_size, c.image_size]
    comment = "images [B, C, H, W], normalised as in training"
    if _input(model) == "frames":
        shape.insert(0, c.num_timesteps)
        comment = "T frames of an event camera's recording, [B, T, 2, H, W]"
    auto = next(a for a, kind in c.auto_classes.items() if kind == type(model).__name__)
    return (
        "import spikenlp  # pip install spikenlp\n"
        "import torch\n"
        f"from transformers import {auto}\n\n"
        f'model = {auto}.from_pretrained("{name}")\n'
        f"pixel_values = torch.zeros(1, {', '.join(map(str, shape))})  # {comment}\n"
        "outputs = model(pixel_values=pixel_values)"
    )


def _outputs(model: PreTrainedModel) -> str:
    if not _neurons(model):
        return "The model sees an image once, and each frame of a recording by itself."
    if getattr(model.config, "collapsed", False) or "For" not in type(model).__name__:
        return ""
    if type(model).__name__.endswith("ForQuestionAnswering"):
        held = "`timestep_start_logits` and `timestep_end_logits` of `model(**inputs)` hold"
    else:
        held = "`model(**inputs).timestep_logits` holds"
    return f"{held} what each step sends; the mean of the first t steps is the answer at\nstep t."


def _results_note(model: PreTrainedModel, results: Mapping[str, Any]) -> str:
    notes = ["Row t is the model stopped after t steps."]
    if not _neurons(model):
        notes = ["Row t is the mean answer to the first t frames; of an image there is one."]
    samples = results.get("samples", {})
    evaluated = [f"{rows:,} ({split})" for split, rows in samples.items() if split != "train"]
    if split := results.get("evaluated_on"):
        evaluated = [f"{samples['test']:,} ({split})"]
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
    options = {k: v for k, v in training.items() if k not in OF_THE_RUN}
    loss = options.pop("temporal_loss", None)
    chosen = ", ".join(f"{k}={v}" for k, v in options.items())
    data = results.get("data")
    if data and samples.get("train"):
        data += f" ({samples['train']:,} training rows)"
    base = results.get("base_model")
    if from_scratch(results):
        base = "none, trained from scratch"
        if results.get("dense_first"):
            base += " as a dense network, then converted"
    elif results.get("dense"):
        base = f"{base or 'not recorded'}, trained for the task as a dense model"
    best = training.get("best_validation_accuracy")
    hardware = run.get("hardware", {})
    facts = {
        "Task": results.get("task"),
        "Data": data,
        "Base model": base or ("not recorded" if training else None),
        "Loss": f"{loss}{f' ({chosen})' if chosen else ''}" if loss else None,
        "Steps": training.get("steps"),
        "Epochs": training.get("epochs"),
        "Kept": f"the best on validation data, accuracy {best:.4f}" if best is not None else None,
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
    if base or ("dense" in results and not from_scratch(results)):
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
    if max(len(values) for values in metrics.values()) == 1:
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
