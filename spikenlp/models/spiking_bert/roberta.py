"""RoBERTa, XLM-RoBERTa and CamemBERT as BERT: the same encoder (Liu et al., 2019, arXiv 1907.11692) under
other names.

They differ from BERT in three things, none of which changes what is computed:

    positions     count from pad_token_id + 1, so that the rows of the table before it are never read
    classifier    its dense layer and tanh are BERT's pooler
    names         of the LM head's parts
"""

from __future__ import annotations

import re
from typing import Any

from transformers import BertConfig, PreTrainedConfig, PreTrainedModel
from transformers.models.bert import modeling_bert

FAMILY = ("roberta", "xlm-roberta", "camembert")
"""Their `model_type`."""
NOT_OF_A_BERT = ("model_type", "architectures", "transformers_version")
RENAMED = {
    r"^roberta\.": "bert.",
    r"^classifier\.dense\.": "bert.pooler.dense.",
    r"^classifier\.out_proj\.": "classifier.",
    r"^lm_head\.dense\.": "cls.predictions.transform.dense.",
    r"^lm_head\.layer_norm\.": "cls.predictions.transform.LayerNorm.",
    r"^lm_head\.": "cls.predictions.",
}
POSITIONS = "embeddings.position_embeddings.weight"


def as_bert(model: PreTrainedModel) -> PreTrainedModel:
    """The BERT that computes what a model of RoBERTa's family does, with a copy of its weights.

    It is for sequences that are padded on the right; padded on the left, a RoBERTa counts positions from the
    first token and a BERT from the first position.

    Args:
        model: RobertaModel, or one with a head for masked language modelling, sequence or token
            classification or question answering.

    Returns:
        BertModel, BertForMaskedLM, ..., in the mode (training or not) and of the dtype of `model`.

    Raises:
        ValueError: another model, a decoder, or one with a head that BERT does not have.

    >>> as_bert(RobertaForSequenceClassification.from_pretrained(path)).save_pretrained("outputs/bert")
    """
    config: Any = model.config
    if config.model_type not in FAMILY or config.is_decoder:
        raise ValueError(
            f"as_bert takes an encoder of the model types {', '.join(FAMILY)}, got {config.model_type!r}"
        )
    head = re.sub(r".*?(Model|For\w+)$", r"\1", type(model).__name__)
    dense_class = getattr(modeling_bert, f"Bert{head}", None)
    if dense_class is None or head == "ForMultipleChoice":
        raise ValueError(f"{type(model).__name__} has a head that a BERT does not have")
    weights = {bert_name(k): v for k, v in model.state_dict().items()}
    has_pooler = any("pooler." in name for name in weights)
    options = {} if head != "Model" else {"add_pooling_layer": has_pooler}
    bert = dense_class(bert_config(config), **options)
    position = next(name for name in weights if name.endswith(POSITIONS))
    weights[position] = weights[position][config.pad_token_id + 1 :]
    bert.load_state_dict(weights)
    return bert.to(model.dtype).to(model.device).train(model.training)


def bert_name(name: str) -> str:
    """What a BERT calls the parameter `name` of a RoBERTa."""
    for pattern, replacement in RENAMED.items():
        name = re.sub(pattern, replacement, name)
    return name


def bert_config(config: PreTrainedConfig) -> BertConfig:
    """The config of that BERT."""
    fields = {k: v for k, v in config.to_dict().items() if k not in NOT_OF_A_BERT}
    fields["max_position_embeddings"] -= fields["pad_token_id"] + 1
    return BertConfig(**fields)
