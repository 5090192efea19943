"""The command `spikenlp`.

spikenlp inspect MODEL       what it is, what drives its products, and the memory that training takes;
                             only its config is read
spikenlp report MODEL ...    one page on texts or images: accuracy, calibration, spikes and energy over time
                             steps
spikenlp compare A.json ...  the numbers of several reports side by side
spikenlp space CHECKPOINT    writes a Gradio Space: the answer, spikes and energy step by step
spikenlp export CHECKPOINT   for other runtimes: torch.export, ONNX or NIR, checked against the model
spikenlp doctor              what is installed, and what will be slow and why
"""

from __future__ import annotations

import argparse
import copy
import importlib.metadata
import importlib.util
import json
import platform
import sys
from collections.abc import Collection
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub.errors import StrictDataclassError
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
)

import spikenlp
from spikenlp.analysis import describe_spikes, estimate_memory, spikes_table
from spikenlp.analysis.spikes import Driver
from spikenlp.models.checkpoint import SpikingConfig
from spikenlp.models.spiking_bert.conversion_spiking_bert import spiking_config
from spikenlp.models.vision import SpikingVisionConfig
from spikenlp.neurons.modules import alphabet


def inspect_model(args: argparse.Namespace) -> str:
    config = AutoConfig.from_pretrained(args.model)
    if config.model_type == "bert":
        spiking = spiking_config(config, {})
        return "\n".join([*_bert(args, config, spiking), "", *_memory(args, config, spiking)])
    if not isinstance(config, SpikingConfig):
        raise ValueError(
            f"{args.model} is of model_type {config.model_type!r}: give a spiking checkpoint or a "
            "dense BERT"
        )
    if config.model_type == "spiking_bert":
        memory = [*_memory(args, config, config)]
        if getattr(config, "quantization_config", None):
            memory = ["weights in int8, which do not train"]
        lines = [*_bert(args, config, config), "", *memory]
    else:
        lines = [
            f"{args.model}: {config.model_type}, images of {config.num_channels} x "
            f"{config.image_size} x {config.image_size}",
            f"neurons: {config.neuron}, T = {config.num_timesteps}",
        ]
    if config.neuron != "relu":
        lines += ["", spikes_table(_drivers(config))]
    return "\n".join(lines)


def _bert(
    args: argparse.Namespace, config: PreTrainedConfig, spiking: PreTrainedConfig
) -> list[str]:
    return [
        f"{args.model}: {config.model_type}, {config.num_hidden_layers} layers of "
        f"{config.hidden_size}, {config.num_attention_heads} heads",
        f"{'neurons' if config is spiking else 'as a spiking model'}: {spiking.neuron}, spikes "
        f"{alphabet(spiking.ternary, spiking.burst)}, nonlinearity {spiking.nonlinearity}, "
        f"T = {spiking.num_timesteps}",
    ]


def _memory(
    args: argparse.Namespace, config: PreTrainedConfig, spiking: PreTrainedConfig
) -> list[str]:
    length = min(128, config.max_position_embeddings) if args.length is None else args.length
    lines = [
        f"training step as a sequence classifier, batch {args.batch}, {length} tokens, AdamW, "
        f"{'bfloat16 autocast' if args.bf16 else 'float32'} (estimate, MB)",
        f"{'':12}{'parameters':>12}{'optimizer':>12}{'activations':>12}{'peak':>12}",
    ]
    rows: dict[str, PreTrainedConfig] = {} if config is spiking else {"dense": config}
    for steps in args.num_timesteps or [spiking.num_timesteps]:
        rows[f"T = {steps}"] = spiking.__class__(**{**spiking.to_dict(), "num_timesteps": steps})
    for name, row in rows.items():
        found = estimate_memory(
            row, args.batch, length, autocast=torch.bfloat16 if args.bf16 else None
        )
        sizes = (found.parameters, found.optimizer, found.activations, found.peak)
        lines.append(f"{name:12}" + "".join(f"{size / 1e6:12,.0f}" for size in sizes))
    return lines


def _drivers(config: PreTrainedConfig) -> list[Driver]:
    """What drives each product; neither the weights nor how many steps there are matter to it."""
    from spikenlp.export.program import example

    one_step = copy.deepcopy(config)
    one_step.num_timesteps = 1
    if getattr(one_step, "collapsed", False):
        one_step.collapsed = False
    name = next(iter(config.architectures or []), "")
    if name in spikenlp.__all__:
        model = getattr(spikenlp, name)(one_step)
    else:
        model = AutoModel.from_config(one_step)
    return describe_spikes(model, example(model, 1, 8))


def report_model(args: argparse.Namespace) -> str:
    from spikenlp.analysis.report import report
    from spikenlp.metrics import glue_metrics

    if args.batch < 1 or args.max_samples < 1:
        raise ValueError("--batch and --max_samples must be >= 1")
    config = AutoConfig.from_pretrained(args.model)
    kind = next(iter(config.architectures or []), None)
    tokenizer = None
    if kind == "SpikingBertForSequenceClassification":
        tokenizer = AutoTokenizer.from_pretrained(args.model)
        batches = _text_batches(args, config, tokenizer)
    elif isinstance(config, SpikingVisionConfig) and str(kind).endswith("ForImageClassification"):
        batches = _image_batches(args, config)
    else:
        raise ValueError(
            f"a report reads spiking classifiers of texts or images, but {args.model} holds a {kind} "
            f"({config.model_type}); `spikenlp inspect` describes every model of spikenlp"
        )
    values = report(
        getattr(spikenlp, str(kind)).from_pretrained(args.model),
        batches,
        args.out,
        tokenizer=tokenizer,
        title=f"{Path(args.model).name} on {args.task_name or args.data.name}",
        metrics=glue_metrics(args.task_name) if args.task_name else None,
    )
    scores = "".join(f", {name} {score[-1]:.3f}" for name, score in values["scores"].items())
    return (
        f"{values['spiking']}\naccuracy {100 * values['accuracy'][-1]:.1f} %{scores}, ECE "
        f"{values['calibration']['ece']:.3f} on {values['samples']} samples\n"
        f"written: {args.out} and {args.out.with_suffix('.json')}"
    )


Batch = dict[str, torch.Tensor]


def _text_batches(
    args: argparse.Namespace, config: PreTrainedConfig, tokenizer: PreTrainedTokenizerBase
) -> list[Batch]:
    columns, labels = _labelled_texts(args, config)
    longest, batches = min(128, config.max_position_embeddings), []
    for start in range(0, len(labels), args.batch):
        rows = slice(start, start + args.batch)
        batch = tokenizer(
            *(texts[rows] for texts in columns),
            truncation=True,
            max_length=longest,
            padding=True,
            return_tensors="pt",
        )
        batches.append({**batch, "labels": torch.tensor(labels[rows])})
    return batches


def _image_batches(args: argparse.Namespace, config: SpikingVisionConfig) -> list[Batch]:
    """`--max_samples` images of the test split, else of the validation split, drawn at random but the same
    each time: folders hold them class by class.

    Raises:
        ValueError: options or data that do not fit each other or the model.
        OSError: no folder, or no image processor and no `--normalisation`.
    """
    from spikenlp.data.augmentation import ImageTransform, of_eight_bits
    from spikenlp.data.images import MEAN_STD, label_names, load_images

    if config.num_channels == 2:
        raise ValueError(
            f"{args.model} reads frames of an event camera: give batches of them to "
            "spikenlp.analysis.report.report"
        )
    if args.data is None or args.data_dir or args.dataset:
        raise ValueError(f"{args.model} is an image classifier: give --data, a folder of images")
    splits = load_images(data_dir=args.data)
    split = splits.get("test", splits.get("validation"))
    if split is None:
        raise ValueError(f"{args.data} has no test or validation split beside train")
    names = label_names(splits["train"])
    ids = _ids(config, names)
    if unknown := [name for name in names if name not in ids]:
        raise ValueError(f"{args.data} has classes {unknown}, the model's are {list(ids)}")
    if args.normalisation is None:
        processor = AutoImageProcessor.from_pretrained(args.model)

        def pixels(image: Any) -> torch.Tensor:
            image = of_eight_bits(image).convert("RGB")
            return processor(images=image, return_tensors="pt")["pixel_values"][0]
    elif args.normalisation in MEAN_STD:
        pixels = ImageTransform(config.image_size, *MEAN_STD[args.normalisation], train=False)
    else:
        raise ValueError(f"--normalisation must be one of {', '.join(MEAN_STD)}")
    drawn = np.random.default_rng(0).permutation(len(split))[: args.max_samples].tolist()
    batches = []
    for start in range(0, len(drawn), args.batch):
        rows = [split[i] for i in drawn[start : start + args.batch]]
        batches.append(
            {
                "pixel_values": torch.stack([pixels(row["image"]) for row in rows]),
                "labels": torch.tensor([ids[names[row["label"]]] for row in rows]),
            }
        )
    return batches


def _ids(config: PreTrainedConfig, given: Collection[str]) -> dict[str, Any]:
    """Class as it is written -> its id: by name or by id, whichever all of `given` are.

    Raises:
        ValueError: some of `given` may be a name as well as the id of another class, and the others do not
            tell.
    """
    names: dict[str, Any] = config.label2id or {}
    ids = {str(i): i for i in config.id2label or {}}
    by_name, by_id = set(given) <= names.keys(), set(given) <= ids.keys()
    if by_name != by_id:
        return names if by_name else ids
    if either := sorted(k for k in set(given) & names.keys() & ids.keys() if names[k] != ids[k]):
        raise ValueError(
            f"the labels {either} are names of the model's classes ({names}) and ids of others: write them "
            "so that they can be told apart"
        )
    return ids | names


def _labelled_texts(
    args: argparse.Namespace, config: PreTrainedConfig
) -> tuple[list[list[str]], list[int]]:
    """The columns of text and the class ids of the first `--max_samples` samples.

    Raises:
        ValueError: options or data that do not fit each other or the model.
    """
    from spikenlp.data import get_task, load_task
    from spikenlp.data.tasks import check_label_order

    if args.data is not None:
        if args.data_dir or args.dataset:
            raise ValueError("--data_dir and --dataset belong to --task_name, not to --data")
        return _own_data(args, config)
    task = get_task(args.task_name)
    if task.labels is None or len(task.labels) != config.num_labels:
        classes = "a regression" if task.labels is None else f"of {len(task.labels)} classes"
        raise ValueError(
            f"{task.name} is {classes}, and {args.model} tells {config.num_labels} classes apart"
        )
    check_label_order(args.model, config, task)
    splits = load_task(task.name, data_dir=args.data_dir, dataset=args.dataset)
    split = next(data for name, data in splits.items() if name.startswith("validation"))
    rows = split[: args.max_samples]
    return [list(rows[column]) for column in task.text_columns], list(rows["label"])


def _own_data(
    args: argparse.Namespace, config: PreTrainedConfig
) -> tuple[list[list[str]], list[int]]:
    from spikenlp.data.own import read_table

    path, text_columns, label_column = args.data, args.text_columns, args.label_column
    if args.normalisation:
        raise ValueError("--normalisation is for images")
    rows = read_table(path, text_columns, label_column)[: args.max_samples]
    ids = _ids(config, {str(label) for label in rows[label_column]})
    for i, label in enumerate(rows[label_column], 1):
        if str(label) not in ids:
            raise ValueError(
                f"{path}, row {i}: label {label!r} is none of the model's classes {list(ids)}"
            )
    texts = [[str(text) for text in rows[column]] for column in text_columns]
    return texts, [ids[str(label)] for label in rows[label_column]]


def compare_reports(args: argparse.Namespace) -> str:
    """A table of reports' JSON files: one row each, its accuracy and ECE at each step, and energy."""
    lines = []
    width = max(len(path.stem) for path in args.reports)
    for path in args.reports:
        try:
            values = json.loads(path.read_text())
            steps = range(1, len(values["accuracy"]) + 1)
            accuracy = " ".join(f"{100 * a:5.1f}" for a in values["accuracy"])
            ece = " ".join(f"{values['calibration'][f'ece_t{t}']:.3f}" for t in steps)
            scores = "".join(f"  {k} {v[-1]:.3f}" for k, v in values.get("scores", {}).items())
            energy = values["energy_microjoules"]["spiking, float32"][-1]
            ratio = values["energy"]["ratios"]["spiking, float32 / dense, float32"]
        except (TypeError, ValueError, LookupError) as error:
            raise ValueError(f"{path} is not what `spikenlp report` wrote") from error
        lines.append(
            f"{path.stem:{width}}  accuracy {accuracy}{scores}  ECE {ece}  {energy:.1f} uJ "
            f"({ratio:.2f} of dense, float32)"
        )
    return "\n".join(lines)


def make_space(args: argparse.Namespace) -> str:
    from spikenlp.hub.space import write_space

    return f"written: {write_space(args.checkpoint, args.out)}"


def export_model(args: argparse.Namespace) -> str:
    from spikenlp.export import export
    from spikenlp.hub.release import load

    config = spikenlp.Int8Config() if args.int8 else None
    dtype = "auto" if args.format == "torch" else torch.float32
    model = load(Path(args.checkpoint), quantization_config=config, dtype=dtype)
    batch = None
    if args.text:
        if model.main_input_name != "input_ids":
            raise ValueError(
                f"--text is for models of text, {args.checkpoint} reads images: leave it out"
            )
        tokenizer = AutoTokenizer.from_pretrained(args.checkpoint)
        longest = model.config.max_position_embeddings
        batch = tokenizer(
            args.text, padding=True, truncation=True, max_length=longest, return_tensors="pt"
        )
    agreement = export(model, args.out, args.format, batch=batch)
    return f"written: {args.out}\nchecked: {agreement}"


def doctor(args: argparse.Namespace) -> str:
    versions = {"spikenlp": spikenlp.__version__, "python": platform.python_version()}
    for name in ("torch", "transformers", "accelerate", "datasets", "evaluate"):
        versions[name] = importlib.metadata.version(name)
    lines = [f"{name:14}{version}" for name, version in versions.items()]
    slow = ["a spiking model takes about T times as long as its dense twin"]
    cuda = torch.cuda.is_available()
    lines.append(f"{'accelerator':14}{torch.cuda.get_device_name() if cuda else 'none'}")
    if cuda:
        if importlib.util.find_spec("triton") is None:
            slow.append("neurons on the GPU run in eager mode: Triton is not installed")
    else:
        from spikenlp.training.cpu import available_cores

        cores = available_cores()
        lines.append(
            f"{'processor':14}{torch.backends.cpu.get_cpu_capability()}, "
            f"{torch.get_num_threads()} of {cores} cores"
        )
        if torch.get_num_threads() < cores:
            slow.append(
                "not all cores are used: unset OMP_NUM_THREADS or call torch.set_num_threads"
            )
    compiler = _cpp_compiler()
    lines.append(f"{'C++ compiler':14}{compiler or 'none'}")
    if compiler is None and not cuda:
        slow.append("neurons run in eager mode, several times slower: no C++ compiler was found")
    extras = {"plots": "matplotlib", "space": "gradio", "export": "onnxruntime"}
    for extra, module in {**extras, "peers": "spikingjelly"}.items():
        found = importlib.util.find_spec(module) is not None
        lines.append(f"{'extra ' + extra:14}{'installed' if found else 'not installed'}")
    return "\n".join([*lines, "", "slow here:", *(f"- {reason}" for reason in slow)])


def _cpp_compiler() -> str | None:
    from torch._inductor.cpp_builder import get_cpp_compiler
    from torch._inductor.exc import InvalidCxxCompiler

    try:
        return get_cpp_compiler()
    except InvalidCxxCompiler:
        return None


def check_folder(name: str) -> None:
    """Raises FileNotFoundError for what can be no Hub id and is no folder."""
    path = Path(name)
    if (
        path.is_absolute() or name.startswith((".", "~")) or name.count("/") > 1
    ) and not path.exists():
        raise FileNotFoundError(f"there is no folder {name}")


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="spikenlp", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = parser.add_subparsers(required=True, metavar="command")

    inspect = commands.add_parser("inspect", help="what a model is and the memory training takes")
    inspect.add_argument("model", help="folder or Hub id of a spiking model or a dense BERT")
    inspect.add_argument("--batch", type=int, default=32)
    inspect.add_argument(
        "--length",
        type=int,
        help="tokens of a sequence (default: 128, or as many as the model reads)",
    )
    inspect.add_argument("--num_timesteps", type=int, nargs="+", help="default: the model's own T")
    inspect.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    inspect.set_defaults(run=inspect_model)

    report = commands.add_parser("report", help="one HTML page about a spiking classifier")
    report.add_argument("model", help="folder or Hub id of a spiking classifier")
    source = report.add_mutually_exclusive_group(required=True)
    source.add_argument(
        "--data",
        type=Path,
        help="your labelled texts: .csv, .tsv, .json or .jsonl; of an image classifier a folder of images "
        "as recipes/image_tmc.py reads it",
    )
    source.add_argument("--task_name", help="or a task, of its dev set: sst2, qqp, r8, ...")
    report.add_argument(
        "--text_columns", nargs="+", default=["text"], help="one or two of --data (default: text)"
    )
    report.add_argument(
        "--label_column",
        default="label",
        help="of --data, with names or ids of the model's classes (default: label)",
    )
    report.add_argument("--data_dir", help="folder with the task's files")
    report.add_argument("--dataset", help="Hub data set with GLUE's configurations: nyu-mll/glue")
    report.add_argument(
        "--normalisation",
        help="of images, where the model has no image processor: cifar10, cifar100, imagenet or mnist",
    )
    report.add_argument("--max_samples", type=int, default=1000)
    report.add_argument("--batch", type=int, default=32)
    report.add_argument("--out", type=Path, default=Path("report.html"))
    report.set_defaults(run=report_model)

    compare = commands.add_parser("compare", help="the numbers of several reports side by side")
    compare.add_argument("reports", type=Path, nargs="+", help="JSON files that `report` wrote")
    compare.set_defaults(run=compare_reports)

    space = commands.add_parser("space", help="a Gradio Space for a spiking classifier")
    space.add_argument("checkpoint", help="folder or Hub id of a spiking classifier")
    space.add_argument("--out", type=Path, default=Path("space"))
    space.set_defaults(run=make_space)

    export = commands.add_parser("export", help="the model for other runtimes, checked")
    export.add_argument("checkpoint", help="folder of a spiking model")
    export.add_argument(
        "--format",
        required=True,
        help="torch (.pt2, in the weights' own type), onnx or nir (in float32)",
    )
    export.add_argument("--out", type=Path, required=True, help="the file to write")
    export.add_argument("--int8", action="store_true", help="round the weights to int8 before")
    export.add_argument(
        "--text", nargs="+", help="sentences that the file is checked on; else random inputs"
    )
    export.set_defaults(run=export_model)

    commands.add_parser("doctor", help="what is installed, and what will be slow").set_defaults(
        run=doctor
    )
    args = parser.parse_args(argv)
    try:
        check_folder(getattr(args, "model", getattr(args, "checkpoint", "")))
        print(args.run(args))
    except (ValueError, OSError, ImportError, RuntimeError, StrictDataclassError) as error:
        sys.exit(f"spikenlp: {error}")


if __name__ == "__main__":
    main()
