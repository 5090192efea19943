"""A vocabulary of one's own, for models that start from scratch."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterable

import sentencepiece
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import BertTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
LONGEST_SENTENCE = 2**24
"""In bytes; sentencepiece leaves longer texts out, by default those beyond 4,192."""


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


def sentencepiece_tokenizer(
    texts: Iterable[str], vocab_size: int = 8192, *, lowercase: bool = True
) -> PreTrainedTokenizerBase:
    """A unigram sentencepiece tokenizer (Kudo, 2018) with BERT's special tokens and pair encoding.

    sentencepiece learns the pieces from `texts` as the tokenizer itself will normalise them: NFKC,
    control characters out, white space to single spaces, lower case. The same texts give the same
    tokenizer.

    Args:
        texts: what to learn from.
        vocab_size: upper bound, special tokens included; small texts have fewer pieces.
        lowercase: False keeps the case.

    Raises:
        ValueError: `texts` holds no text, or has more characters than `vocab_size` leaves room for.

    >>> tokenizer = sentencepiece_tokenizer(texts, 8192)
    >>> tokenizer("the wolf", "the fox").tokens()
    ['[CLS]', '▁the', '▁wolf', '[SEP]', '▁the', '▁fox', '[SEP]']
    """
    normalizer = normalizers.Sequence(
        [
            normalizers.NFKC(),
            normalizers.BertNormalizer(
                handle_chinese_chars=False, strip_accents=False, lowercase=lowercase
            ),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    pad, unknown, *others = SPECIAL_TOKENS
    normalised = [line for text in texts if (line := normalizer.normalize_str(text))]
    if not normalised:
        raise ValueError("no text to learn a vocabulary from")
    written = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(normalised),
            model_writer=written,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            normalization_rule_name="identity",
            max_sentence_length=LONGEST_SENTENCE,
            num_threads=1,  # with more of them sums, and so pieces, depend on their number
            minloglevel=2,
            bos_id=-1,
            eos_id=-1,
            pad_id=0,
            unk_id=1,
            pad_piece=pad,
            unk_piece=unknown,
            control_symbols=others,
        )
    except RuntimeError as error:
        raise ValueError(f"sentencepiece takes no vocab_size={vocab_size}: {error}") from error
    learnt = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    pieces = [(learnt.id_to_piece(i), learnt.get_score(i)) for i in range(len(learnt))]
    backend = Tokenizer(models.Unigram(pieces, unk_id=learnt.unk_id()))
    backend.normalizer = normalizer
    backend.pre_tokenizer = pre_tokenizers.Metaspace()
    backend.decoder = decoders.Metaspace()
    backend.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[(token, learnt.piece_to_id(token)) for token in ("[CLS]", "[SEP]")],
    )
    cls, sep, mask = others
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        pad_token=pad,
        unk_token=unknown,
        cls_token=cls,
        sep_token=sep,
        mask_token=mask,
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
    )
