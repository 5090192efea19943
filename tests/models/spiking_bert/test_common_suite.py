"""SpikingBERT passes transformers' common model suite."""

import unittest
from typing import ClassVar

import pytest
import torch

from spikenlp import (
    SpikingBertConfig,
    SpikingBertForMaskedLM,
    SpikingBertForQuestionAnswering,
    SpikingBertForSequenceClassification,
    SpikingBertForTokenClassification,
    SpikingBertModel,
)
from tests.models.transformers_suite import SuiteUnavailable, load_suite, register_model_names

try:
    suite = load_suite()
except SuiteUnavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

register_model_names(
    "spiking_bert",
    "SpikingBertModel",
    MASKED_LM="SpikingBertForMaskedLM",
    SEQUENCE_CLASSIFICATION="SpikingBertForSequenceClassification",
    TOKEN_CLASSIFICATION="SpikingBertForTokenClassification",
    QUESTION_ANSWERING="SpikingBertForQuestionAnswering",
)

TINY = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 37,
    "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.0,
    "max_position_embeddings": 64,
    "type_vocab_size": 16,
    "num_timesteps": 3,
}


class TinyModels:
    """Makes the configs and inputs that the suite asks for."""

    batch_size, seq_length, hidden_size, num_hidden_layers, num_attention_heads = 5, 7, 32, 2, 2
    is_training = True

    def __init__(self, parent, **overrides):
        self.parent = parent
        self.overrides = overrides

    def get_config(self):
        return SpikingBertConfig(**{**TINY, **self.overrides})

    def prepare_config_and_inputs_for_common(self):
        shape = [self.batch_size, self.seq_length]
        return self.get_config(), {
            "input_ids": suite.ids_tensor(shape, TINY["vocab_size"]),
            "token_type_ids": suite.ids_tensor(shape, TINY["type_vocab_size"]),
            "attention_mask": suite.random_attention_mask(shape),
        }


class SpikingBertSuite(suite.ModelTesterMixin, unittest.TestCase):
    overrides: ClassVar[dict] = {}
    all_model_classes = (
        SpikingBertModel,
        SpikingBertForMaskedLM,
        SpikingBertForQuestionAnswering,
        SpikingBertForSequenceClassification,
        SpikingBertForTokenClassification,
    )

    def setUp(self):
        self.model_tester = TinyModels(self, **self.overrides)
        self.config_tester = suite.ConfigTester(self, config_class=SpikingBertConfig, **TINY)

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_retain_grad_hidden_states_attentions(self):
        """The suite wants the gradient at the maps of a layer. Ours leave the model as means over
        time, which nothing downstream reads: only the gradient through them is there."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = SpikingBertModel._from_config(config, attn_implementation="eager")
        outputs = model(**inputs, output_hidden_states=True, output_attentions=True)
        embedding = outputs.hidden_states[0]
        if config.architecture == "default":
            embedding.retain_grad()
            outputs.last_hidden_state.flatten()[0].backward(retain_graph=True)
            self.assertIsNotNone(embedding.grad)
        else:  # the rate of a population
            words = model.embeddings.word_embeddings.weight
            (gradient,) = torch.autograd.grad(embedding.square().sum(), words, retain_graph=True)
            self.assertTrue(gradient.any())
        query = model.encoder.layer[0].attention.self.query.weight
        (gradient,) = torch.autograd.grad(outputs.attentions[0].square().sum(), query)
        self.assertTrue(gradient.isfinite().all())


class OtherNeuronsSuite(SpikingBertSuite):
    """Of other fields than the defaults; the heads are those of the suite above."""

    __test__ = False
    all_model_classes = (SpikingBertModel, SpikingBertForSequenceClassification)


@pytest.mark.slow
class ClassicNeuronSuite(OtherNeuronsSuite):
    __test__ = True
    overrides: ClassVar[dict] = {"neuron": "plif", "nonlinearity": "step", "ternary": False}


@pytest.mark.slow
class BinaryRoundingSuite(OtherNeuronsSuite):
    __test__ = True
    overrides: ClassVar[dict] = {"ternary": False}


@pytest.mark.slow
class CollapsedSuite(OtherNeuronsSuite):
    __test__ = True
    overrides: ClassVar[dict] = {"collapsed": True}


class SpikingBertRateSuite(SpikingBertSuite):
    overrides: ClassVar[dict] = {"architecture": "spikingbert"}


@pytest.mark.slow
class UnrolledRateSuite(OtherNeuronsSuite):
    __test__ = True
    overrides: ClassVar[dict] = {
        "architecture": "spikingbert",
        "gradient": "bptt",
        "nonlinearity": "step",
    }
