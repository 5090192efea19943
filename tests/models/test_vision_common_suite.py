"""The vision models pass transformers' common model suite, as far as it is about images."""

import unittest
from typing import ClassVar

import pytest
import torch

from spikenlp import (
    QKFormerConfig,
    QKFormerForImageClassification,
    QKFormerModel,
    SpikingResNetConfig,
    SpikingResNetForImageClassification,
    SpikingResNetModel,
    SpikingVGGConfig,
    SpikingVGGForImageClassification,
    SpikingVGGModel,
)
from tests.models.test_vision import TINY
from tests.models.transformers_suite import SuiteUnavailable, load_suite, register_model_names

try:
    suite = load_suite()
except SuiteUnavailable as reason:
    pytest.skip(str(reason), allow_module_level=True)

for model_type, prefix in (
    ("spiking_vgg", "SpikingVGG"),
    ("spiking_resnet", "SpikingResNet"),
    ("qkformer", "QKFormer"),
):
    register_model_names(
        model_type, f"{prefix}Model", IMAGE_CLASSIFICATION=f"{prefix}ForImageClassification"
    )


class TinyModels:
    """Makes the configs and inputs that the suite asks for."""

    batch_size, is_training = 3, True

    def __init__(self, parent, config_class, fields):
        self.parent, self.config_class, self.fields = parent, config_class, fields

    def get_config(self):
        return self.config_class(**self.fields)

    def prepare_config_and_inputs_for_common(self):
        config = self.get_config()
        shape = (self.batch_size, config.num_channels, config.image_size, config.image_size)
        return config, {"pixel_values": torch.rand(shape)}


class VisionSuite:
    has_attentions = False
    test_resize_embeddings = False
    config_class: ClassVar[type]
    fields: ClassVar[dict]

    def setUp(self):
        self.model_tester = TinyModels(self, self.config_class, self.fields)
        self.config_tester = suite.ConfigTester(
            self,
            config_class=self.config_class,
            has_text_modality=False,
            common_properties=["num_channels", "image_size", "hidden_sizes"],
            **self.fields,
        )

    def test_config(self):
        self.config_tester.run_common_tests()

    @unittest.skip("an image has no embedding table")
    def test_model_get_set_embeddings(self):
        pass

    def test_retain_grad_hidden_states_attentions(self):
        """The suite wants the gradient at a hidden state. Ours leave the model as means over time,
        which nothing downstream reads: the gradient through them is there."""
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        model = self.all_model_classes[0](config)
        states = model(**inputs, output_hidden_states=True).hidden_states
        states[-1].square().sum().backward()
        gradients = [p.grad for p in model.parameters() if p.requires_grad]
        self.assertTrue(all(g is not None and g.isfinite().all() for g in gradients))

    def test_hidden_states_output(self):
        config, inputs = self.model_tester.prepare_config_and_inputs_for_common()
        for model_class in self.all_model_classes:
            for from_config in (False, True):
                config.output_hidden_states = from_config
                model = model_class(config).eval()
                outputs = model(**inputs, **({} if from_config else {"output_hidden_states": True}))
                for state in outputs.hidden_states:
                    self.assertEqual(len(state), self.model_tester.batch_size)


@pytest.mark.slow
class SpikingVGGSuite(VisionSuite, suite.ModelTesterMixin, unittest.TestCase):
    config_class = SpikingVGGConfig
    fields: ClassVar[dict] = TINY["vgg"]
    all_model_classes = (SpikingVGGModel, SpikingVGGForImageClassification)


class SpikingResNetSuite(VisionSuite, suite.ModelTesterMixin, unittest.TestCase):
    config_class = SpikingResNetConfig
    fields: ClassVar[dict] = TINY["resnet"]
    all_model_classes = (SpikingResNetModel, SpikingResNetForImageClassification)


class QKFormerSuite(VisionSuite, suite.ModelTesterMixin, unittest.TestCase):
    config_class = QKFormerConfig
    fields: ClassVar[dict] = TINY["qkformer"]
    all_model_classes = (QKFormerModel, QKFormerForImageClassification)
