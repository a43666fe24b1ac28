#!/bin/sh
# ViT-B/16 in float16 on 256 IPUs: 32 copies of eight, a process each; link domains go into POPRUN_FLAGS.
#   sh training_scripts/vit_base_pod256.sh [IMAGENET/train [flags of main_dino.py]]
set -eu
cd "$(dirname "$0")/.."
. training_scripts/poprun.sh
data=${1:-data/imagenet1k/train}
[ $# -eq 0 ] || shift
start_replicas 32 32 8 vit_base_pod256 "$data" "$@"
