#!/usr/bin/env bash
# Trains a light ranker on one machine, one rank a GPU, or a single CPU rank. Arguments go to run.py, after the config.
#
#   CONFIG=...     default: projects/light_ranker/configs/local.yaml
#   NUM_RANKS=...  default: the number of GPUs, or 1
set -euo pipefail
cd -- "$(dirname -- "$0")/../../.."

num_gpus=$({ nvidia-smi -L 2>/dev/null || true; } | grep -c GPU || true)
num_ranks=${NUM_RANKS:-$((num_gpus > 0 ? num_gpus : 1))}
exec torchrun --standalone --local_addr 127.0.0.1 --nnodes 1 --nproc_per_node "$num_ranks" \
  projects/light_ranker/run.py --config "${CONFIG:-projects/light_ranker/configs/local.yaml}" "$@"
