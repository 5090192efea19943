"""A smaller vocabulary for a model that is there: the tokens that a kind of text needs.

WordPiece takes the longest token that fits. With fewer tokens a text whose tokens are all kept is cut as
before, so that the model answers the same, bit for bit; a word that lost its token is spelled in shorter
ones.
"""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Iterable
from typing import TypeVar

from tokenizers.models import WordPiece
from torch import nn
from transformers import BertTokenizer, PreTrainedModel, PreTrainedTokenizerBase

_OF_OLD_IDS = ("vocab", "vocab_file", "added_tokens_decoder", "name_or_path")
Model = TypeVar("Model", bound=PreTrainedModel)


def trim_vocabulary(
    model: Model, tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], size: int
) -> tuple[Model, PreTrainedTokenizerBase]:
    """A copy of `model` and a tokenizer with at most `size` tokens.

    They are, in the order that they had: the special tokens; every character of `texts` alone and as
    the continuation of a word, where the tokenizer has it; and the most frequent tokens of `texts`.

    Args:
        model: float, without an output over its vocabulary.
        tokenizer: the BERT WordPiece tokenizer that belongs to it.
        texts: a sample of what the model will read.
        size: upper bound, fewer where `texts` has fewer tokens.

    Raises:
        ValueError: `size` has no room for special tokens and characters; another kind of tokenizer, or
            one with added tokens; a model in int8, or one that predicts tokens.

    >>> small, tokenizer = trim_vocabulary(model, tokenizer, texts, 8192)
    >>> small.config.vocab_size == len(tokenizer)
    True
    """
    embedding = model.get_input_embeddings()
    if type(embedding) is not nn.Embedding or len(embedding.weight) < len(tokenizer):
        raise ValueError(
            f"model must have a float embedding of the tokenizer's {len(tokenizer)} tokens, got "
            f"{embedding}: trim before rounding to int8"
        )
    if model.get_output_embeddings() is not None:
        raise ValueError(f"{type(model).__name__} predicts tokens, and would lose those it drops")
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if not isinstance(tokenizer, BertTokenizer) or not isinstance(backend.model, WordPiece):
        raise ValueError(f"tokenizer must be a BERT WordPiece, got {type(tokenizer).__name__}")
    if added := sorted(set(tokenizer.get_added_vocab()) - set(tokenizer.all_special_tokens)):
        raise ValueError(
            f"the tokenizer has tokens that were added to its WordPiece, {', '.join(added[:4])}, which would "
            "be lost: trim before they are added"
        )
    kept = _tokens_to_keep(tokenizer, texts, size)
    options = {k: v for k, v in tokenizer.init_kwargs.items() if k not in _OF_OLD_IDS}
    small = BertTokenizer(vocab={token: i for i, token in enumerate(kept)}, **options)

    model = copy.deepcopy(model)
    rows = tokenizer.convert_tokens_to_ids(kept)
    padding = small.pad_token_id
    trimmed = nn.Embedding(len(kept), embedding.embedding_dim, padding_idx=padding)
    trimmed = trimmed.to(embedding.weight.device, embedding.weight.dtype)
    trimmed.weight.data.copy_(embedding.weight.data[rows])
    model.set_input_embeddings(trimmed.requires_grad_(embedding.weight.requires_grad))
    model.config.vocab_size = len(kept)
    model.config.pad_token_id = padding
    return model.train(model.training), small


def _tokens_to_keep(
    tokenizer: PreTrainedTokenizerBase, texts: Iterable[str], size: int
) -> list[str]:
    """In the order of their ids."""
    vocabulary = tokenizer.get_vocab()
    backend = tokenizer.backend_tokenizer
    counts: Counter[str] = Counter()
    characters: set[str] = set()
    for text in texts:
        normalised = backend.normalizer.normalize_str(text)
        characters.update(normalised)
        for word, _ in backend.pre_tokenizer.pre_tokenize_str(normalised):
            counts.update(token.value for token in backend.model.tokenize(word))
    spelling = {form for c in characters for form in (c, f"##{c}")}
    needed = {token for token in spelling if token in vocabulary} | set(
        tokenizer.all_special_tokens
    )
    if len(needed) > size:
        raise ValueError(
            f"size must be at least {len(needed)}, the special tokens and characters of the texts, "
            f"got {size}"
        )
    frequent = sorted(counts.keys() - needed, key=lambda token: (-counts[token], vocabulary[token]))
    return sorted([*needed, *frequent[: size - len(needed)]], key=vocabulary.__getitem__)
