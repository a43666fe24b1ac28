#!/bin/sh
# ViT-B/16 in float16 on 64 IPUs: eight copies of eight.
#   sh training_scripts/vit_base_pod64.sh [IMAGENET/train [flags of main_dino.py]]
set -eu
cd "$(dirname "$0")/.."
. training_scripts/poprun.sh
data=${1:-data/imagenet1k/train}
[ $# -eq 0 ] || shift
start_replicas 1 8 8 vit_base_pod64 "$data" "$@"
