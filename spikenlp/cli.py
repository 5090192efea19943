"""The command `spikenlp`.

spikenlp inspect MODEL      what it is and what training it takes; nothing is loaded but its config
"""

from __future__ import annotations

import argparse
import sys

import torch
from transformers import AutoConfig, PreTrainedConfig

from spikenlp.analysis import estimate_memory
from spikenlp.models.spiking_bert.conversion_spiking_bert import spiking_config


def inspect_model(args: argparse.Namespace) -> str:
    config = AutoConfig.from_pretrained(args.model)
    if config.model_type not in ("bert", "spiking_bert"):
        raise ValueError(
            f"{args.model} is of model_type {config.model_type!r}: give a spiking checkpoint or a "
            "dense BERT"
        )
    dense = config.model_type == "bert"
    spiking = spiking_config(config, {}) if dense else config
    lines = [
        f"{args.model}: {config.model_type}, {config.num_hidden_layers} layers of "
        f"{config.hidden_size}, {config.num_attention_heads} heads",
        f"{'as a spiking model' if dense else 'neurons'}: {spiking.neuron}, spikes "
        f"{'{-1, 0, 1}' if spiking.ternary else '{0, 1}'}, nonlinearity {spiking.nonlinearity}, "
        f"T = {spiking.num_timesteps}",
        "",
        f"training step, batch {args.batch}, {args.length} tokens, AdamW, "
        f"{'bfloat16 autocast' if args.bf16 else 'float32'} (estimate, MB)",
        f"{'':12}{'parameters':>12}{'optimizer':>12}{'activations':>12}{'peak':>12}",
    ]
    rows: dict[str, PreTrainedConfig] = {"dense": config} if dense else {}
    for steps in args.num_timesteps or [spiking.num_timesteps]:
        rows[f"T = {steps}"] = spiking.__class__(**{**spiking.to_dict(), "num_timesteps": steps})
    for name, row in rows.items():
        found = estimate_memory(
            row, args.batch, args.length, autocast=torch.bfloat16 if args.bf16 else None
        )
        sizes = (found.parameters, found.optimizer, found.activations, found.peak)
        lines.append(f"{name:12}" + "".join(f"{size / 1e6:12,.0f}" for size in sizes))
    return "\n".join(lines)


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="spikenlp", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="command")
    inspect = commands.add_parser("inspect", help="what a model is and the memory training takes")
    inspect.add_argument("model", help="folder or Hub id of a spiking model or a dense BERT")
    inspect.add_argument("--batch", type=int, default=32)
    inspect.add_argument("--length", type=int, default=128, help="tokens of a sequence")
    inspect.add_argument("--num_timesteps", type=int, nargs="+", help="default: the model's own T")
    inspect.add_argument("--bf16", action="store_true", help="bfloat16 autocast")
    inspect.set_defaults(run=inspect_model)
    args = parser.parse_args(argv)
    try:
        print(args.run(args))
    except (ValueError, OSError) as error:
        sys.exit(f"spikenlp: {error}")


if __name__ == "__main__":
    main()
