#!/bin/sh
# Every benchmark on a CUDA GPU: sh benchmarks/gpu.sh [output folder]. Compiling whole models takes most of the time.
set -eu
cd "$(dirname "$0")/.."
out=${1:-results/benchmarks}
python benchmarks/neurons.py --device cuda --rounds 9 --output "$out/neurons_cuda.json"
python benchmarks/neurons.py --device cuda --rounds 9 --dtype bfloat16 --output "$out/neurons_cuda_bf16.json"
python benchmarks/training_step.py --device cuda --dtype bfloat16 --batch 32 --output "$out/training_step_cuda.json"
python benchmarks/training_step.py --device cuda --dtype bfloat16 --batch 32 --num_timesteps 4 --compile \
    --output "$out/training_step_cuda_compiled.json"
python benchmarks/inference.py --device cuda --dtype bfloat16 --batch 1 32 128 --output "$out/inference_cuda.json"
python benchmarks/growth.py --device cuda --dtype bfloat16 --batch 32 --output "$out/growth_cuda.json"
