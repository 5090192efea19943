"""Train a spiking BERT on Quora question pairs with TMC; without arguments, on synthetic demo pairs.

    accelerate launch recipes/qqp_tmc.py
    accelerate launch recipes/qqp_tmc.py --data_dir glue/QQP --model_name_or_path path/to/bert
    accelerate launch recipes/qqp_tmc.py --dataset nyu-mll/glue --model_name_or_path bert-base-uncased

The same job as `glue_tmc.py --task_name qqp`, with the same options. Demo pairs are used if, and
only if, neither `--data_dir` nor `--dataset` is given. No argument at all means configs/demo.yaml.
"""

from __future__ import annotations

import sys
from pathlib import Path

import transformers
from common import parse_arguments
from glue_tmc import ARGUMENTS, run
from task_data import load_pairs

from spikenlp.data import get_task


def main() -> None:
    transformers.utils.logging.set_verbosity_warning()
    argv = sys.argv[1:] or [str(Path(__file__).parent / "configs" / "demo.yaml")]
    model_args, data_args, training_args = parse_arguments(
        argv, ARGUMENTS, task_name="qqp", output_dir="outputs/qqp"
    )
    if get_task(data_args.task_name).name != "qqp":
        raise ValueError(f"this recipe is for qqp: run glue_tmc.py for {data_args.task_name}")
    run(model_args, data_args, training_args, load_data=load_pairs)


if __name__ == "__main__":
    main()
