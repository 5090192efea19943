"""A vocabulary of one's own, for models that start from scratch."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from transformers import BertTokenizer, PreTrainedTokenizerBase

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")


def wordpiece_tokenizer(texts: Iterable[str], vocab_size: int = 8192) -> PreTrainedTokenizerBase:
    """A lower-casing BERT tokenizer with the most frequent words of `texts`; others are spelled.

    The vocabulary depends on the texts alone, which that of the tokenizers library's trainer does
    not: it breaks ties by the order of a hash table.

    Args:
        texts: what to learn from.
        vocab_size: upper bound; special tokens and single characters come first.

    Raises:
        ValueError: `texts` is empty, or has more characters than `vocab_size` leaves room for.
    """
    backend = BertTokenizer().backend_tokenizer
    words: Counter[str] = Counter()
    for text in texts:
        pieces = backend.pre_tokenizer.pre_tokenize_str(backend.normalizer.normalize_str(text))
        words.update(word for word, _ in pieces)
    if not words:
        raise ValueError("no text to learn a vocabulary from")
    characters = sorted({character for word in words for character in word})
    tokens = [*SPECIAL_TOKENS, *characters, *(f"##{character}" for character in characters)]
    if len(tokens) > vocab_size:
        raise ValueError(
            f"vocab_size={vocab_size} has no room for the {len(characters)} characters of the texts"
        )
    frequent = sorted((w for w in words if len(w) > 1), key=lambda word: (-words[word], word))
    tokens += frequent[: vocab_size - len(tokens)]
    return BertTokenizer(vocab={token: i for i, token in enumerate(tokens)})
