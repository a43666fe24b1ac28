#!/bin/sh
# k-NN score of a backbone or checkpoint, ours, the original's or of the published IPU code:
#   sh script/eval_knn.sh vit_model.pth [flags of eval_knn.py]
#   sh script/eval_knn.sh vit_base checkpoint.pth [flags of eval_knn.py]
# From any folder, also `cd script; sh eval_knn.sh`, which scores the vit_model.pth there.
set -eu
[ $# -gt 0 ] || [ ! -f vit_model.pth ] || set -- vit_model.pth
[ $# -gt 0 ] || { echo "name a file of weights: sh script/eval_knn.sh vit_model.pth" >&2; exit 2; }
case $1 in
vit_*.* | */* | *.pth) weights=$1 arch= ;;
*) arch=$1 weights=${2:?name a file of weights after the architecture}; shift ;;
esac
shift
here=$(dirname "$0")/..
case " $* " in
*" --data_path"*) data= ;;
*) data=${DATA:-data/imagenet1k}; [ -e "$data" ] || [ ! -e "$here/$data" ] || data=$here/$data ;;
esac
exec "${PYTHON:-python3}" "$here/eval_knn.py" ${arch:+--arch "$arch"} --pretrained_weights "$weights" \
    ${data:+--data_path "$data"} --nb_knn 10 20 "$@"
