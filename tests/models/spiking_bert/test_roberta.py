"""Models of RoBERTa's family as BERT, and made spiking."""

import pytest
import torch
import transformers
from tokenizers import ByteLevelBPETokenizer
from transformers import (
    AutoModelForSequenceClassification,
    AutoTokenizer,
    BertConfig,
    BertForSequenceClassification,
    CamembertConfig,
    CamembertForSequenceClassification,
    RobertaConfig,
    RobertaForCausalLM,
    RobertaForMultipleChoice,
    RobertaForSequenceClassification,
    RobertaModel,
    RobertaTokenizer,
    XLMRobertaConfig,
    XLMRobertaForSequenceClassification,
)

from spikenlp import SpikingBertForSequenceClassification
from spikenlp.hub import SpikingClassifier
from spikenlp.models.spiking_bert import as_bert
from tests.conftest import TINY_DENSE

HEADS = [
    *("Model", "ForMaskedLM", "ForSequenceClassification"),
    *("ForTokenClassification", "ForQuestionAnswering"),
]
PAD = 1


def make(model_class=RobertaForSequenceClassification, config_class=RobertaConfig, **fields):
    torch.manual_seed(0)
    positions = {"max_position_embeddings": TINY_DENSE["max_position_embeddings"] + PAD + 1}
    config = config_class(**{**TINY_DENSE, **positions, "pad_token_id": PAD, **fields})
    model = model_class(config).eval()
    with torch.no_grad():  # no head is zero, and neither are the biases
        for parameter in model.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    return model


def make_batch(length=40):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 120, (3, length), generator=generator)
    mask = (torch.arange(length) < torch.tensor([[length], [7], [20]])).long()
    return {"input_ids": ids * mask + PAD * (1 - mask), "attention_mask": mask}


def real(output, mask):
    """Of the positions that are not padding, where there are positions."""
    return output[mask.bool()] if output.shape[:2] == mask.shape else output


@pytest.mark.parametrize("head", HEADS)
def test_the_bert_computes_what_the_roberta_does(head):
    model = make(getattr(transformers, f"Roberta{head}")).double()
    bert = as_bert(model)
    assert type(bert) is getattr(transformers, f"Bert{head}")
    assert bert.dtype == torch.float64
    assert not bert.training
    batch = make_batch()
    found, expected = bert(**batch).to_tuple(), model(**batch).to_tuple()
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        mask = batch["attention_mask"]
        torch.testing.assert_close(real(one, mask), real(other, mask), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("model_class", "config_class"),
    [
        (XLMRobertaForSequenceClassification, XLMRobertaConfig),
        (CamembertForSequenceClassification, CamembertConfig),
    ],
)
def test_the_rest_of_the_family(model_class, config_class):
    model = make(model_class, config_class)
    batch = make_batch()
    torch.testing.assert_close(as_bert(model)(**batch).logits, model(**batch).logits)


def test_a_spiking_model_is_made_of_a_roberta_or_its_folder(tmp_path):
    model = make(num_labels=3)
    model.save_pretrained(tmp_path / "roberta")
    as_bert(model).save_pretrained(tmp_path / "bert")
    batches = [make_batch()]
    convert = SpikingBertForSequenceClassification.from_dense
    expected = convert(str(tmp_path / "bert"), calibration=batches)
    assert expected.config.max_position_embeddings == 40
    for dense in (model, str(tmp_path / "roberta")):
        found = convert(dense, calibration=batches)
        for name, value in expected.state_dict().items():
            assert torch.equal(found.state_dict()[name], value), name
    collapsed = convert(model, calibration=batches, num_timesteps=512, collapsed=True)
    torch.testing.assert_close(
        collapsed(**batches[0]).logits, model(**batches[0]).logits, rtol=0.05, atol=0.05
    )


def test_a_headless_folder_gets_a_new_head(tmp_path):
    model = make(RobertaModel)
    model.save_pretrained(tmp_path)
    found = SpikingBertForSequenceClassification.from_dense(
        str(tmp_path), calibration=[make_batch()], num_labels=5
    )
    assert found.classifier.out_features == 5
    word = found.bert.embeddings.word_embeddings.weight
    assert torch.equal(word, model.embeddings.word_embeddings.weight)


def test_its_tokenizer_goes_with_it(tmp_path):
    trained = ByteLevelBPETokenizer()
    texts = ["a fine film", "why should i learn chess"]
    trained.train_from_iterator(texts, special_tokens=["<s>", "<pad>", "</s>", "<unk>", "<mask>"])
    trained.save_model(str(tmp_path))
    tokenizer = RobertaTokenizer(str(tmp_path / "vocab.json"), str(tmp_path / "merges.txt"))
    spiking = SpikingBertForSequenceClassification.from_dense(
        make(vocab_size=len(tokenizer)),
        calibration=[dict(tokenizer(texts, padding=True, return_tensors="pt"))],
    )
    spiking.save_pretrained(tmp_path / "spiking")
    tokenizer.save_pretrained(tmp_path / "spiking")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "spiking")
    assert loaded(texts, padding=True) == tokenizer(texts, padding=True)
    classify = SpikingClassifier.from_pretrained(tmp_path / "spiking")
    model = AutoModelForSequenceClassification.from_pretrained(tmp_path / "spiking")
    expected = model(**tokenizer(texts[0], return_tensors="pt")).logits.softmax(-1)
    assert classify(texts[0]).score == pytest.approx(expected.max().item(), rel=1e-4)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        (lambda: BertForSequenceClassification(BertConfig(**TINY_DENSE)), "got 'bert'"),
        (lambda: make(RobertaForCausalLM, is_decoder=True), "got 'roberta'"),
        (lambda: make(RobertaForMultipleChoice), "RobertaForMultipleChoice has a head"),
    ],
)
def test_what_is_no_encoder_of_the_family_is_refused(model, message):
    with pytest.raises(ValueError, match=message):
        as_bert(model())
