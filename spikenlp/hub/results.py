"""Results of a run, as the recipes record them in `results.json`, in the Hub's two forms.

The current form is `.eval_results/<task>.yaml` (https://huggingface.co/docs/hub/eval-results), the
legacy one `model-index` in the card's metadata. Both hold one entry a time step: the metric of the
running mean of the logits up to there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from huggingface_hub import EvalResult, EvalResultEntry

GLUE = "nyu-mll/glue"
GLUE_DEV_ROWS = {
    "cola": 1043,
    "sst2": 872,
    "mrpc": 408,
    "qqp": 40430,
    "stsb": 1500,
    "mnli_matched": 9815,
    "mnli_mismatched": 9832,
    "qnli": 5463,
    "rte": 277,
    "wnli": 71,
}
"""Rows of GLUE's dev sets. Local files with another number are not GLUE's, whatever their name."""
CALIBRATION = ("ece", "ada_ece", "nll", "brier", "confidence")
HUB_METRICS = {
    "accuracy": "accuracy",
    "f1": "f1",
    "mcc": "matthews_correlation",
    "pearson": "pearsonr",
    "spearman": "spearmanr",
}
"""Our name of a metric -> the Hub's."""
SPLITS = {
    "matched": "validation_matched",
    "mismatched": "validation_mismatched",
    "test": "test",
}
"""Prefix of a metric -> the split that it was measured on."""
HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
MEASURED = "spiking, float32"
RIVAL = "dense, float32"


def is_glue(task: Any) -> bool:
    return task in {name.partition("_")[0] for name in GLUE_DEV_ROWS}


def of_itself(results: Mapping[str, Any]) -> dict[str, Any]:
    """`results` with the figures of the model under "spiking", where the run of a network that stays dense
    has them under "dense"."""
    found = dict(results)
    if found.get("config", {}).get("neuron") == "relu" and "dense" in found:
        found["spiking"] = found.pop("dense")
    return found


def by_step(metrics: Mapping[str, Any]) -> dict[str, list[float]]:
    """Metric -> its values at steps 1 ... T, of keys such as accuracy_t1, accuracy_t2.

    Raises:
        ValueError: a metric that lacks a step.
    """
    found: dict[str, dict[int, float]] = {}
    for key, value in metrics.items():
        if match := re.fullmatch(r"(.+)_t(\d+)", key):
            found.setdefault(match[1], {})[int(match[2])] = value
    for name, values in found.items():
        if sorted(values) != list(range(1, len(values) + 1)):
            raise ValueError(f"results have {name} at steps {sorted(values)}, not at 1 ... T")
    return {name: [values[t] for t in sorted(values)] for name, values in found.items()}


def task_metrics(metrics: Mapping[str, Any]) -> dict[str, list[float]]:
    """`by_step` of the task's own metrics, the main one first: no loss, no calibration."""
    return {k: v for k, v in by_step(metrics).items() if not k.endswith(("loss", *CALIBRATION))}


def split_of(metric: str) -> tuple[str, str]:
    """(evaluation split, bare metric); MNLI's two splits and a test set are told apart by a prefix."""
    part, _, bare = metric.partition("_")
    split = SPLITS.get(part)
    return ("validation", metric) if split is None else (split, bare)


def _task_of(task: str, split: str) -> str:
    """The Hub's name of a task: MNLI's two validation splits are tasks of their own."""
    return task + split.partition("validation")[2]


def hub_dataset(results: Mapping[str, Any], split: str = "validation") -> str | None:
    """Hub id of the data that a split was taken from; None where that is not certain.

    Files count as nyu-mll/glue if the split has as many rows as GLUE's.
    """
    data = str(results.get("data", ""))
    if HUB_ID.fullmatch(data):
        return data
    task = str(results.get("task"))
    rows = results.get("samples", {}).get(split)
    name = _task_of(task, split)
    if data.startswith("the files in") and rows and rows == GLUE_DEV_ROWS.get(name):
        return GLUE
    return None


def eval_results(
    results: Mapping[str, Any], task_type: str = "text-classification"
) -> list[EvalResult]:
    """For `model-index`: each task metric, ECE and the energy, at each step; `task_type` is the Hub's."""
    metrics = by_step(results.get("spiking", {}))
    wanted = [*task_metrics(results.get("spiking", {})), *(k for k in metrics if k.endswith("ece"))]
    found = []
    for name in wanted:
        split, metric = split_of(name)
        found += [
            _eval_result(results, task_type, split, metric, value, t, len(metrics[name]))
            for t, value in enumerate(metrics[name], 1)
        ]
    energies = results.get("energy_microjoules", {}).get(MEASURED, []) if wanted else []
    found += [
        _eval_result(
            results,
            task_type,
            split_of(wanted[0])[0],
            "energy_microjoules",
            value,
            t,
            len(energies),
        )
        for t, value in enumerate(energies, 1)
    ]
    return found


def _eval_result(
    results: Mapping[str, Any],
    task_type: str,
    split: str,
    metric: str,
    value: float,
    step: int,
    steps: int,
) -> EvalResult:
    dataset, task = hub_dataset(results, split), results.get("task")
    data = results.get("data", "data not recorded")
    return EvalResult(
        task_type=task_type,
        dataset_type=dataset or task or "unknown",
        dataset_name=f"{task}, {data}" if task else data,
        dataset_config=task if dataset == GLUE else None,
        dataset_split=results.get("evaluated_on", split),
        metric_type=HUB_METRICS.get(metric, metric),
        metric_name=f"{metric}, step {step} of {steps}",
        metric_value=value,
    )


def eval_result_entries(results: Mapping[str, Any]) -> list[EvalResultEntry]:
    """For `.eval_results`: the main metric, the last step first. Empty where the data have no Hub id, or
    the run no task."""
    if "task" not in results:
        return []
    metrics = by_step(results.get("spiking", {}))
    energies = results.get("energy_microjoules", {}).get(MEASURED)
    main: dict[str, str] = {}
    for name in task_metrics(results.get("spiking", {})):
        main.setdefault(split_of(name)[0], name)
    entries = []
    for split, name in main.items():
        dataset = hub_dataset(results, split)
        if dataset is None:
            continue
        prefix, metric = name.removesuffix(split_of(name)[1]), split_of(name)[1]
        steps = len(metrics[name])
        for t in range(steps, 0, -1):
            notes = [f"{metric} at time step {t} of {steps}, split {split}"]
            if f"{prefix}ece" in metrics:
                notes.append(f"ECE {metrics[f'{prefix}ece'][t - 1]:.4f}")
            if energies:
                notes.append(f"energy {energies[t - 1]:.3f} uJ (45 nm, float32, arithmetic)")
            entries.append(
                EvalResultEntry(
                    dataset_id=dataset,
                    task_id=_task_of(results["task"], split),
                    value=metrics[name][t - 1],
                    notes="; ".join(notes),
                )
            )
    return entries


def steps_table(results: Mapping[str, Any]) -> str:
    """Markdown: one row a step, then the last step in float32, the model before training and the dense one,
    where recorded."""
    metrics = by_step(results.get("spiking", {}))
    if not metrics:
        return ""
    names = [*task_metrics(results["spiking"]), *(k for k in metrics if k.endswith(CALIBRATION))]
    energy = results.get("energy_microjoules", {})
    if not names:
        return ""
    steps = len(metrics[names[0]])
    header = ["", *names, *(["energy (µJ)"] if energy else [])]
    rows = [
        [f"step {t}", *(_cell(metrics[n][t - 1]) for n in names)]
        + ([f"{energy[MEASURED][t - 1]:.3f}"] if energy else [])
        for t in range(1, steps + 1)
    ]
    others = {
        "spiking_float32": f"step {steps}, in float32",
        "before_training": "before training",
        "dense": "dense",
    }
    for key, title in others.items():
        if key in results:
            row = [title, *(_cell(results[key].get(n)) for n in names)]
            if energy:
                row.append(f"{energy[RIVAL][-1]:.3f}" if key == "dense" else "")
            rows.append(row)
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.4f}"
