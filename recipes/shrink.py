"""A smaller dense BERT from a large one: fewer layers, or the words of a task alone.

    python recipes/shrink.py --model_name_or_path outputs/sst2/teacher --vocab_size 9000 \\
        --task_name sst2 --data_dir glue --output_dir outputs/teacher
    python recipes/shrink.py --model_name_or_path outputs/teacher --num_hidden_layers 2 \\
        --output_dir outputs/student
    python recipes/distill.py --task_name sst2 --data_dir glue --model_name_or_path outputs/student \\
        --teacher outputs/teacher --student outputs/student --output_dir outputs/small

Layers that stay are evenly spaced, the last one among them, which is how distill.py lets a student learn
from a deeper teacher. Words are those most frequent in the task's training text; others are spelled in
shorter pieces.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import transformers
from common import parse_arguments
from student import dense_config
from task_data import DataArguments, load_task_data, task_of
from torch import nn
from transformers import AutoTokenizer, PreTrainedModel

from spikenlp.losses.distillation import layer_map
from spikenlp.models.vocabulary import trim_vocabulary


@dataclass
class ShrinkArguments:
    model_name_or_path: str = field(metadata={"help": "Dense BERT, a path or a Hub id."})
    output_dir: str = field(metadata={"help": "Where the smaller one goes, with its tokenizer."})
    num_hidden_layers: int | None = field(
        default=None, metadata={"help": "Layers to keep (default: all)."}
    )
    vocab_size: int | None = field(
        default=None,
        metadata={"help": "Tokens to keep, of the text of --task_name (default: all)."},
    )


def shrink(options: ShrinkArguments, data_args: DataArguments) -> PreTrainedModel:
    """Of the class that the checkpoint was saved as, without a head where it has none."""
    made = dense_config(options.model_name_or_path).architectures or ["BertModel"]
    model = getattr(transformers, made[0]).from_pretrained(options.model_name_or_path)
    tokenizer = AutoTokenizer.from_pretrained(options.model_name_or_path)
    if options.num_hidden_layers is not None:
        encoder = model.base_model.encoder
        layers = encoder.layer
        kept = layer_map(options.num_hidden_layers, len(layers))[1:]
        encoder.layer = nn.ModuleList(layers[i - 1] for i in kept)
        model.config.num_hidden_layers = len(kept)
    if options.vocab_size is not None:
        data, _ = load_task_data(data_args)
        columns = task_of(data_args, data).text_columns
        rows = (text for column in columns for text in data["train"][column])
        texts = (text if isinstance(text, str) else " ".join(text) for text in rows)
        model, tokenizer = trim_vocabulary(model, tokenizer, texts, options.vocab_size)
    model.save_pretrained(options.output_dir)
    tokenizer.save_pretrained(options.output_dir)
    return model


def main() -> None:
    transformers.utils.logging.set_verbosity_warning()
    model = shrink(*parse_arguments(sys.argv[1:], (ShrinkArguments, DataArguments)))
    config = model.config
    print(
        f"{model.num_parameters() / 1e6:.1f}M parameters: {config.num_hidden_layers} layers of "
        f"{config.hidden_size}, {config.vocab_size:,} tokens"
    )


if __name__ == "__main__":
    main()
