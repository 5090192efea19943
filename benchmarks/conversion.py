"""What a fine-tuned dense BERT loses when it is made spiking without any training, by T and spike cost: amplitudes
calibrated alone, and its weights fitted to the spikes as well (`reconstruct`), on the same sentences.

    python benchmarks/conversion.py --task_name sst2 --data_dir path/to/glue \\
        --model_name_or_path outputs/sst2/dense --seeds 1 2 3 --output results/conversion/sst2.json
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path

import torch
from measure import batches_by_length, finish
from transformers import AutoTokenizer, BertForSequenceClassification

from spikenlp import SpikingBertForSequenceClassification
from spikenlp.analysis import SpikeMonitor
from spikenlp.data import get_task, load_task
from spikenlp.metrics import glue_metrics
from spikenlp.models.spiking_bert.reconstruction import reconstruct

BATCH = 32


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--task_name", required=True)
    parser.add_argument("--data_dir", required=True)
    parser.add_argument("--model_name_or_path", required=True, help="fine-tuned dense BERT")
    parser.add_argument("--num_timesteps", type=int, nargs="+", default=[4, 8])
    parser.add_argument("--nonlinearity", nargs="+", default=["running", "step"])
    parser.add_argument("--spike_cost", type=float, nargs="+", default=[0.0], help="of from_dense")
    parser.add_argument("--calibration_batches", type=int, default=16, help=f"of {BATCH} sentences")
    parser.add_argument(
        "--seeds", type=int, nargs="+", default=[1], help="which sentences are drawn"
    )
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    task = get_task(args.task_name)
    tokenizer = AutoTokenizer.from_pretrained(args.model_name_or_path)
    dense = BertForSequenceClassification.from_pretrained(args.model_name_or_path).eval()
    data = load_task(args.task_name, data_dir=args.data_dir)
    evaluation = batches_by_length(data["validation"], task, tokenizer, BATCH)
    metrics = glue_metrics(task.name)

    @torch.no_grad()
    def score(model):
        labels = torch.cat([batch["labels"] for batch in evaluation])
        outputs = [model(**{k: v for k, v in b.items() if k != "labels"}) for b in evaluation]
        if "timestep_logits" not in outputs[0]:
            return metrics(torch.cat([o.logits for o in outputs]).numpy(), labels.numpy())
        logits = torch.cat([o.timestep_logits for o in outputs])
        return [
            metrics(logits[:, :t].mean(1).numpy(), labels.numpy())
            for t in range(1, logits.shape[1] + 1)
        ]

    found = {"task": task.name, "dense": score(dense), "converted": []}
    print("dense", found["dense"])
    for seed, nonlinearity, steps, cost in itertools.product(
        args.seeds, args.nonlinearity, args.num_timesteps, args.spike_cost
    ):
        chosen = data["train"].shuffle(seed=seed).select(range(args.calibration_batches * BATCH))
        calibration = batches_by_length(chosen, task, tokenizer, BATCH)
        spiking = SpikingBertForSequenceClassification.from_dense(
            dense,
            calibration=calibration,
            spike_cost=cost,
            num_timesteps=steps,
            nonlinearity=nonlinearity,
        )
        row = {
            "seed": seed,
            "nonlinearity": nonlinearity,
            "num_timesteps": steps,
            "spike_cost": cost,
            "calibration_samples": len(chosen),
            "spikes_per_neuron": {},
        }
        for name in ("calibrated", "reconstructed"):
            if name == "reconstructed":
                reconstruct(spiking, calibration)
            with SpikeMonitor(spiking) as monitor:
                row[name] = score(spiking)
            row["spikes_per_neuron"][name] = float(monitor.spikes_per_neuron)
            print(
                f"seed {seed}, {nonlinearity}, T = {steps}, spike cost {cost:g}, {name}: {row[name][-1]}, "
                f"{monitor.spikes_per_neuron:.2f} spikes a neuron",
                flush=True,
            )
        found["converted"].append(row)
    finish(found, args.output)


if __name__ == "__main__":
    main()
