"""What the spiking language model of a recipe is, and what it starts from."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
import yaml
from torch import Tensor
from transformers import (
    AutoConfig,
    AutoTokenizer,
    BertConfig,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from spikenlp import SpikingBertConfig
from spikenlp.data import TextTask, wordpiece_tokenizer
from spikenlp.data.tasks import check_label_order
from spikenlp.models.spiking_bert import SpikingBertPreTrainedModel
from spikenlp.models.spiking_bert.conversion_spiking_bert import calibrate

CALIBRATION_BATCH = 32
PROBED = 1000
"""Words of a vocabulary that tokenizers are compared by."""
FROM_SCRATCH: dict[str, Any] = {
    "hidden_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 512,
    "max_position_embeddings": 128,
    "initializer_range": 0.1,
}

OF_TOKENIZER = ("vocab_size", "pad_token_id")
SPIKES_STAY = ("hidden_dropout_prob", "gradient", "settle_tolerance", "burst")
"""Fields that leave amplitudes what they should be."""

Model = TypeVar("Model", bound=PreTrainedModel)
Spiking = TypeVar("Spiking", bound=SpikingBertPreTrainedModel)


@dataclass
class StudentArguments:
    model_name_or_path: str | None = field(
        default=None,
        metadata={
            "help": "Dense BERT or spiking checkpoint to start from: a path or a Hub id. Without it "
            "a small model starts from scratch, with a vocabulary of the training text."
        },
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={
            "help": "Tokenizer, as a path or a Hub id (default: that of the start): of a model from "
            "scratch, see train_tokenizer.py."
        },
    )
    architecture: Literal["default", "spikingbert"] | None = field(
        default=None,
        metadata={
            "help": "What spikes (default: default); spikingbert: SpikingBERT's 2024 design."
        },
    )
    gradient: Literal["bptt", "implicit"] | None = field(
        default=None,
        metadata={"help": "Through the time steps, or (spikingbert, its default) implicit."},
    )
    settle_tolerance: float | None = field(
        default=None,
        metadata={
            "help": "Implicit: a sample stops once its average spiking rates differ by no more than this "
            "from those at half as many steps (default: none stops)."
        },
    )
    num_timesteps: int | None = field(
        default=None,
        metadata={"help": "T (default: 4, spikingbert 100, or that of the spiking checkpoint)."},
    )
    nonlinearity: Literal["running", "step"] | None = field(
        default=None, metadata={"help": "How float functions act over time (default: running)."}
    )
    neuron: Literal["rounding", "if", "lif", "plif"] | None = field(
        default=None, metadata={"help": "Neuron (default: rounding)."}
    )
    ternary: bool | None = field(
        default=None, metadata={"help": "Spikes {-1, 0, 1} (default), or with False {0, 1}."}
    )
    burst: int | None = field(
        default=None,
        metadata={
            "help": "The most spikes of a rounding neuron in one time step, 1 to 16 (default: 1, or that of the "
            "spiking checkpoint). With 2 or more it makes up for spikes that came too late."
        },
    )
    hidden_dropout_prob: float = field(
        default=0.0, metadata={"help": "Dropout of the spiking model."}
    )
    calibration_batches: int = field(
        default=4,
        metadata={"help": f"Batches of {CALIBRATION_BATCH} that amplitudes are calibrated on."},
    )
    spike_cost: float = field(
        default=0.0,
        metadata={
            "help": "Above 0 amplitudes are calibrated for fewer spikes, too: the squared error, relative to the "
            "layer's mean square, that a spike less is worth. Of the order of 0.1; rounding neurons only."
        },
    )
    reconstruct: bool = field(
        default=False,
        metadata={
            "help": "Fit the weights of a converted model, too, to the spikes that reach them on these "
            "batches, without training: give 16 or more. What follows is best the phase unrolled."
        },
    )

    def __post_init__(self):
        if self.reconstruct and self.architecture == "spikingbert":
            raise ValueError("--reconstruct is for the architecture 'default', got 'spikingbert'")
        if not self.spike_cost >= 0:
            raise ValueError(f"--spike_cost must be >= 0, got {self.spike_cost}")
        if self.spike_cost and self.neuron not in (None, "rounding"):
            raise ValueError(f"--spike_cost is for rounding neurons, got --neuron {self.neuron}")

    def created(self) -> str:
        """What a conversion makes anew."""
        fitted = "; fits the weights to the spikes" if self.reconstruct else ""
        return f"amplitudes (calibrated){fitted}"

    def check_reconstruct(self, start: str) -> None:
        """Raises ValueError where nothing is converted: `start` says what the model is instead."""
        if self.reconstruct:
            raise ValueError(
                f"--reconstruct fits the weights of a dense model that is converted, but {start}: leave "
                "it out"
            )

    def spiking_fields(self) -> dict[str, Any]:
        names = ("architecture", "gradient", "settle_tolerance", "num_timesteps", "nonlinearity")
        names += ("neuron", "ternary", "burst")
        chosen = {k: getattr(self, k) for k in names if getattr(self, k) is not None}
        if self.gradient == "bptt":  # which runs all steps, whatever the checkpoint does
            chosen.setdefault("settle_tolerance", None)
        return {**chosen, "hidden_dropout_prob": self.hidden_dropout_prob}

    def spikes_otherwise(self, path: str | Path) -> bool:
        """Whether a spiking checkpoint is to spike as it did not when its amplitudes were learned, say at
        another T or at a cost: they are then calibrated anew."""
        if self.spike_cost:
            return True
        before = AutoConfig.from_pretrained(path)
        fields = self.spiking_fields().items()
        return any(getattr(before, k) != v for k, v in fields if k not in SPIKES_STAY)

    def check_converted(self, path: Path, config: SpikingBertConfig) -> None:
        """Raises ValueError where the student at `path` was converted with other options than are given."""
        differing = [
            f"{name} {getattr(config, name)!r}, not {value!r}"
            for name, value in self.spiking_fields().items()
            if getattr(config, name) != value
        ]
        record = path.parent / "converted" / "arguments.yaml"
        if self.spike_cost and record.exists():
            cost = yaml.safe_load(record.read_text()).get("spike_cost", 0.0)
            if cost != self.spike_cost:
                differing.append(f"spike_cost {cost}, not {self.spike_cost}")
        if differing:
            raise ValueError(f"{path} was converted with {'; '.join(differing)}")

    def load_tokenizer(self, texts: Iterable[str]) -> PreTrainedTokenizerBase:
        """The one that is named, else that of the start, else a new one with the words of `texts`."""
        path = self.tokenizer_name or self.model_name_or_path
        return wordpiece_tokenizer(texts) if path is None else AutoTokenizer.from_pretrained(path)


@dataclass
class ConversionArguments(StudentArguments):
    """Options of a student that is made of a dense BERT or of a spiking one, with a teacher beside it."""

    model_name_or_path: str | None = field(
        default=None,
        metadata={"help": "Dense BERT that the teacher comes from: a path or a Hub id. Required."},
    )
    tokenizer_name: str | None = field(
        default=None,
        metadata={"help": "Tokenizer, as a path or a Hub id (default: that of the dense BERT)."},
    )
    student: str | None = field(
        default=None,
        metadata={
            "help": "What the student is made of, if not of the teacher: a dense BERT, say of another "
            "shape, or a spiking one, which is calibrated anew if it is to spike otherwise, say at another "
            "T or with a --spike_cost. Same tokenizer. Default: the teacher; before the phase general of distill.py the model that "
            "it was fine-tuned from."
        },
    )
    hidden_act: str | None = field(
        default=None,
        metadata={"help": "Activation of the student's feed-forward layers; relu spikes less."},
    )

    def spiking_fields(self) -> dict[str, Any]:
        fields = super().spiking_fields()
        return fields if self.hidden_act is None else {**fields, "hidden_act": self.hidden_act}

    def student_config(self, phases: Collection[str]) -> SpikingBertConfig:
        """What makes the student spike. Raises ValueError where one of `phases` is not for such a one."""
        fields = self.spiking_fields()
        config = SpikingBertConfig(**fields)
        if self.student and is_spiking(self.student):
            self.check_reconstruct(f"{self.student} is spiking")
            config = SpikingBertConfig.from_pretrained(self.student, **fields)
        for phase in ("collapsed", "reconstructed"):
            if phase in phases and config.neuron != "rounding":
                raise ValueError(
                    f"the phase {phase} needs rounding neurons, the student's are {config.neuron!r}: leave "
                    "it out of --phases"
                )
        if "reconstructed" in phases and config.architecture != "default":
            raise ValueError("the phase reconstructed is for the architecture 'default'")
        return config

    def make_student(
        self,
        kind: type[Spiking],
        dense: type[PreTrainedModel],
        source: str | Path,
        batches: list[dict[str, Tensor]],
        **fields: Any,
    ) -> tuple[Spiking, list[str], list[str]]:
        """A model of `kind` made of the one at `source`, which is of the kind `dense` or spiking, and what
        of it was created and dropped.

        Args:
            batches: to calibrate amplitudes on.
            fields: others of the config.
        """
        spiking = self.spiking_fields()
        if is_spiking(source):
            model, created, dropped = load(kind, source, **fields, **spiking)
            anew = self.spikes_otherwise(source)
            if anew:
                calibrate(model, batches, self.spike_cost)
        else:
            loaded, created, dropped = load(dense, source, **fields)
            model = kind.from_dense(
                loaded,
                calibration=batches,
                reconstruct=self.reconstruct,
                spike_cost=self.spike_cost,
                **spiking,
            )
            anew = True
        return model, created + ([self.created()] if anew else []), dropped


def config_from_scratch(
    tokenizer: PreTrainedTokenizerBase, max_seq_length: int, **fields: Any
) -> SpikingBertConfig:
    """Of a small model for `tokenizer`, unless `fields` say otherwise, and for texts of `max_seq_length`."""
    positions = max(max_seq_length, FROM_SCRATCH["max_position_embeddings"])
    usual = {**FROM_SCRATCH, "max_position_embeddings": positions}
    words = dict(zip(OF_TOKENIZER, (len(tokenizer), tokenizer.pad_token_id), strict=True))
    return SpikingBertConfig(**{**usual, **fields, **words})


def dense_config(path: str | Path) -> BertConfig:
    """Raises ValueError where a model is no dense BERT: loaded as one it would have random weights."""
    config = AutoConfig.from_pretrained(path)
    if config.model_type != "bert":
        raise ValueError(
            f"{path} is of model_type {config.model_type!r}: give a dense BERT ('bert'). A RoBERTa becomes one "
            "by spikenlp.models.spiking_bert.as_bert(model).save_pretrained(folder)"
        )
    return config


def is_spiking(path: str | Path) -> bool:
    return AutoConfig.from_pretrained(path).model_type == "spiking_bert"


def bert_config(path: str | Path) -> BertConfig | SpikingBertConfig:
    """Of a dense BERT or a spiking one with float weights. Raises ValueError where a model is neither."""
    if not is_spiking(path):
        return dense_config(path)
    config = SpikingBertConfig.from_pretrained(path)
    if getattr(config, "quantization_config", None):
        raise ValueError(
            f"{path} has weights in int8, which cannot be trained: give the float ones"
        )
    return config


def load(kind: type[Model], path: str | Path, **fields: Any) -> tuple[Model, list[str], list[str]]:
    """The model in float32, whatever the checkpoint is in, and the names of what it creates and of what it drops
    of that. A classifier of another number of labels is created anew.

    Raises:
        ValueError: other weights whose shapes are not those of the model.
    """
    options = {"output_loading_info": True, "ignore_mismatched_sizes": True}
    model, report = kind.from_pretrained(path, dtype=torch.float32, **options, **fields)
    replaced = [name for name, *_ in report["mismatched_keys"]]
    if broken := [name for name in replaced if not name.startswith("classifier.")]:
        raise ValueError(f"{path} has weights of other shapes than its config says: {broken}")
    created = [*report["missing_keys"], *replaced]
    return model, modules_of(created), modules_of(report["unexpected_keys"])


def check_labels(path: str | Path, config: PreTrainedConfig, task: TextTask) -> None:
    """Raises ValueError where a model has the task's labels in another order, or a head of another number."""
    check_label_order(path, config, task)
    found, wanted = config.num_labels, len(task.labels or ()) or 1
    made = (config.architectures or [""])[0]
    head = "TokenClassification" if task.kind == "tokens" else "SequenceClassification"
    other = "SequenceClassification" if task.kind == "tokens" else "TokenClassification"
    if made.endswith(other):
        raise ValueError(
            f"{path} is a {made}, and the task needs a model for {head}: give a model of this task, or one "
            "without a head"
        )
    if made.endswith(head) and found != wanted:
        raise ValueError(
            f"{path} has {found} labels, {task.name} {wanted}: give a model of this task, or fine-tune "
            "that one on it first (glue_tmc.py --dense_first, or distill.py, which does)"
        )


def modules_of(parameters: Iterable[str]) -> list[str]:
    """classifier of classifier.weight, cls.predictions of cls.predictions.transform.dense.weight."""
    return sorted({".".join(name.split(".")[:-1][:2]) for name in parameters})


def check_tokenizer(
    path: str | Path, tokenizer: PreTrainedTokenizerBase, known_as: str | None
) -> None:
    """Raises ValueError where the tokenizer of a model gives other ids than `tokenizer`, that of `known_as`."""
    if not read_alike(AutoTokenizer.from_pretrained(path), tokenizer):
        raise ValueError(
            f"the tokenizer at {path} is not that of {known_as}: teacher and student must read the same "
            "token ids"
        )


def read_alike(first: PreTrainedTokenizerBase, second: PreTrainedTokenizerBase) -> bool:
    """Whether two tokenizers have one vocabulary, and give its words, in capitals as well, accents,
    punctuation and ideographs the same ids."""
    vocabulary = first.get_vocab()
    if vocabulary != second.get_vocab():
        return False
    words = sorted(word for word in vocabulary if word.isalpha())[:PROBED]
    texts = [*words, *map(str.upper, words), "A café's Naïve 3.5% -- (東京), don't\n"]
    return first(texts)["input_ids"] == second(texts)["input_ids"]
