"""Tokenizers of one's own: what AutoTokenizer makes of their folder, and sentencepiece's own word for it."""

import json
import random

import pytest
import sentencepiece
from transformers import AutoTokenizer

from spikenlp import SpikingBertConfig
from spikenlp.data import sentencepiece_tokenizer, wordpiece_tokenizer

WORDS = "wolf fox house forest water mother father little golden running jumped walking king queen".split()
BERTS_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}


@pytest.fixture(scope="module")
def texts():
    rng = random.Random(0)
    return [" ".join(rng.choices(WORDS, k=12)) + "." for _ in range(200)]


@pytest.fixture(scope="module")
def pieces(texts):
    return sentencepiece_tokenizer(texts, 120)


@pytest.mark.parametrize("make", [sentencepiece_tokenizer, wordpiece_tokenizer])
@pytest.mark.parametrize("beside_a_model", [False, True])
def test_autotokenizer_loads_the_folder_with_berts_tokens(make, beside_a_model, texts, tmp_path):
    made = make(texts, 120)
    made.save_pretrained(tmp_path)
    if beside_a_model:
        SpikingBertConfig(num_hidden_layers=1).save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert loaded.special_tokens_map == BERTS_TOKENS
    assert loaded.convert_tokens_to_ids(list(BERTS_TOKENS.values())) == [0, 1, 2, 3, 4]
    assert loaded.get_vocab() == made.get_vocab()
    pair = loaded("The Wolf", "a [MASK] jumped", return_special_tokens_mask=True)
    assert pair == made("The Wolf", "a [MASK] jumped", return_special_tokens_mask=True)
    ids = pair["input_ids"]
    second = ids.index(3) + 1
    assert (ids[0], ids[-1], ids.count(3), ids.count(4)) == (2, 3, 2, 1)
    assert pair["token_type_ids"] == [0] * second + [1] * (len(ids) - second)
    padded = loaded(["wolf", "wolf fox king"], padding=True)
    assert padded["input_ids"][0][-1] == 0
    assert padded["attention_mask"][0][-1] == 0


def test_words_of_the_text_become_pieces(pieces):
    assert pieces("the little Wolf").tokens()[-3:-1] == ["▁little", "▁wolf"]


def test_pieces_are_those_that_sentencepiece_finds(pieces, tmp_path):
    """Its own encoder, with the same pieces, cuts normalised text alike."""
    vocabulary = json.loads(pieces.backend_tokenizer.to_str())["model"]["vocab"]
    words = ["running wolf", "kingfather", "queenqueen jumpedhouse", "zebra", "wolf's  fox!"]
    processor = sentencepiece.SentencePieceProcessor(model_proto=model_proto(vocabulary))
    for text in words:
        assert pieces(text, add_special_tokens=False)["input_ids"] == processor.encode(text)


def model_proto(vocabulary):
    """sentencepiece's file format, by hand: pieces (1), trainer (2: unigram), normaliser (3: identity)."""

    def field(number, payload):
        return bytes([number << 3 | 2]) + varint(len(payload)) + payload

    def varint(n):
        low = []
        while n > 127:
            low.append(n & 127 | 128)
            n >>= 7
        return bytes([*low, n])

    import struct

    kinds = {"[PAD]": 3, "[UNK]": 2, "[CLS]": 3, "[SEP]": 3, "[MASK]": 3}
    out = b""
    for piece, score in vocabulary:
        body = field(1, piece.encode()) + b"\x15" + struct.pack("<f", score)
        out += field(1, body + b"\x18" + bytes([kinds.get(piece, 1)]))
    out += field(2, b"\x18\x01")
    return out + field(3, field(1, b"identity"))


def test_the_same_texts_give_the_same_pieces(texts, pieces):
    again = sentencepiece_tokenizer(iter(texts), 120)
    assert again.backend_tokenizer.to_str() == pieces.backend_tokenizer.to_str()


def test_the_text_comes_back(pieces, texts):
    ids = pieces(texts[0])["input_ids"]
    assert pieces.decode(ids, skip_special_tokens=True) == texts[0]


def test_case_is_kept_on_demand(texts):
    cased = sentencepiece_tokenizer([text.title() for text in texts], 120, lowercase=False)
    assert cased("Wolf").tokens()[1:-1] == ["▁Wolf"]
    assert cased("Wolf").tokens() != cased("wolf").tokens()


def test_long_texts_are_learnt_from():
    texts = [("zebra " * 2000).strip(), "wolf fox"]
    assert "▁zebra" in sentencepiece_tokenizer(texts, 60).get_vocab()


@pytest.mark.parametrize("make", [sentencepiece_tokenizer, wordpiece_tokenizer])
def test_what_gives_no_vocabulary_is_refused(make, texts):
    with pytest.raises(ValueError, match="no text"):
        make(["", "  "] if make is sentencepiece_tokenizer else [], 120)
    with pytest.raises(ValueError, match="vocab_size=8"):
        make(texts, 8)
