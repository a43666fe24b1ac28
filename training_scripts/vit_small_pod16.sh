#!/bin/sh
# ViT-S/16 in float32 on 16 IPUs: four copies of four.
#   sh training_scripts/vit_small_pod16.sh [IMAGENET/train [flags of main_dino.py]]
set -eu
cd "$(dirname "$0")/.."
. training_scripts/poprun.sh
data=${1:-data/imagenet1k/train}
[ $# -eq 0 ] || shift
start_replicas 1 4 4 vit_small_pod16 "$data" "$@"
