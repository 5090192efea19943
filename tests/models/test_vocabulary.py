"""A trimmed vocabulary reads what it kept as before."""

import copy

import pytest
import torch
from transformers import AutoTokenizer

from spikenlp import (
    Int8Config,
    SpikingBertConfig,
    SpikingBertForMaskedLM,
    SpikingBertForSequenceClassification,
)
from spikenlp.data import sentencepiece_tokenizer
from spikenlp.models.vocabulary import trim_vocabulary
from tests.conftest import TINY_DENSE

CORPUS = ["the fine film stays with you", "a dull play, a dull film", "unwatchable Élan!"]
KEPT = "the dull film, a dull play"


@pytest.fixture
def tokenizer():
    """Words, pieces and characters; an unused token first, so that every id changes."""
    from transformers import BertTokenizer

    words = sorted({w for text in CORPUS for w in text.lower().replace(",", " ,").split()})
    characters = sorted(set("".join(words)) | set("elan!"))
    tokens = ["[unused0]", "[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *words, "un", "##watch"]
    tokens += ["##able", *characters, *(f"##{c}" for c in characters), "zebra", "z", "##z"]
    vocab = {token: i for i, token in enumerate(dict.fromkeys(tokens))}
    return BertTokenizer(vocab=vocab, do_lower_case=True, model_max_length=40)


@pytest.fixture
def model(tokenizer):
    torch.manual_seed(0)
    options = {"vocab_size": len(tokenizer), "pad_token_id": tokenizer.pad_token_id}
    config = SpikingBertConfig(**{**TINY_DENSE, **options})
    return SpikingBertForSequenceClassification(config).eval()


def logits(model, tokenizer, texts):
    with torch.no_grad():
        return model(**tokenizer(texts, padding=True, return_tensors="pt")).timestep_logits


def test_texts_whose_tokens_are_kept_give_the_same_bits(model, tokenizer, tmp_path):
    small, trimmed = trim_vocabulary(model, tokenizer, [KEPT], 40)
    assert len(trimmed) == small.config.vocab_size == len(small.get_input_embeddings().weight)
    assert len(trimmed) < len(tokenizer)
    texts = [KEPT, "DULL film", "a"]
    assert [trimmed(t).tokens() for t in texts] == [tokenizer(t).tokens() for t in texts]
    expected = logits(model, tokenizer, texts)
    assert torch.equal(logits(small, trimmed, texts), expected)
    for token, i in trimmed.get_added_vocab().items():
        assert trimmed.backend_tokenizer.model.token_to_id(token) == i
    assert trimmed.convert_tokens_to_ids("film") != tokenizer.convert_tokens_to_ids("film")
    small.save_pretrained(tmp_path)
    trimmed.save_pretrained(tmp_path)
    loaded = SpikingBertForSequenceClassification.from_pretrained(tmp_path)
    assert torch.equal(logits(loaded, AutoTokenizer.from_pretrained(tmp_path), texts), expected)


def test_the_model_that_was_given_stays_as_it_was(model, tokenizer):
    before = copy.deepcopy(model.state_dict())
    trim_vocabulary(model, tokenizer, [KEPT], 40)
    assert model.config.vocab_size == len(tokenizer)
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])


def test_what_is_frequent_is_kept_and_the_rest_is_spelled(model, tokenizer):
    texts = ["dull dull dull film film play the"]
    needed = len(set("dulfimpaythe")) * 2 + 5
    _, trimmed = trim_vocabulary(model, tokenizer, texts, needed + 2)
    assert len(trimmed) == needed + 2
    found = trimmed("dull film play").tokens()
    assert found == ["[CLS]", "dull", "film", "p", "##l", "##a", "##y", "[SEP]"]
    assert "zebra" not in trimmed.get_vocab()
    assert "##z" not in trimmed.get_vocab()
    assert trimmed("z").tokens() == ["[CLS]", "[UNK]", "[SEP]"]


def test_case_and_accents_are_treated_as_before(model, tokenizer):
    _, trimmed = trim_vocabulary(model, tokenizer, CORPUS, len(tokenizer))
    assert trimmed("Élan UNWATCHABLE").tokens() == tokenizer("élan unwatchable").tokens()
    assert trimmed.model_max_length == 40
    found, expected = trimmed(KEPT, "a film"), tokenizer(KEPT, "a film")
    assert found["token_type_ids"] == expected["token_type_ids"]


def test_padding_has_no_influence_after_ids_have_moved(model, tokenizer):
    small, trimmed = trim_vocabulary(model, tokenizer, CORPUS, 60)
    assert small.config.pad_token_id == trimmed.pad_token_id != tokenizer.pad_token_id
    assert small.get_input_embeddings().padding_idx == trimmed.pad_token_id
    together = logits(small, trimmed, [KEPT, "a"])
    torch.testing.assert_close(together[1:], logits(small, trimmed, ["a"]))


def test_bad_input_is_named(model, tokenizer, tmp_path):
    with pytest.raises(ValueError, match=r"size must be at least \d+.*got 6"):
        trim_vocabulary(model, tokenizer, CORPUS, 6)
    pieces = sentencepiece_tokenizer(CORPUS, 60)
    with pytest.raises(ValueError, match="BERT WordPiece, got "):
        trim_vocabulary(model, pieces, CORPUS, 100)
    with pytest.raises(ValueError, match="SpikingBertForMaskedLM predicts tokens"):
        trim_vocabulary(SpikingBertForMaskedLM(model.config), tokenizer, CORPUS, 100)
    model.save_pretrained(tmp_path)
    rounded = type(model).from_pretrained(tmp_path, quantization_config=Int8Config())
    with pytest.raises(ValueError, match="trim before rounding to int8"):
        trim_vocabulary(rounded, tokenizer, CORPUS, 100)


def test_added_tokens_are_not_lost_in_silence(model, tokenizer):
    tokenizer.add_tokens(["covid19"])
    model.resize_token_embeddings(len(tokenizer))
    with pytest.raises(ValueError, match="added to its WordPiece, covid19"):
        trim_vocabulary(model, tokenizer, CORPUS, 90)
