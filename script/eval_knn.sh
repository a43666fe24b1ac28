#!/bin/sh
# k-NN score of a backbone or checkpoint, ours, the original's or of the published IPU code:
#   sh script/eval_knn.sh vit_model.pth [flags of eval_knn.py]
#   sh script/eval_knn.sh vit_base checkpoint.pth [flags of eval_knn.py]
set -eu
[ $# -gt 0 ] || { echo "name a file of weights: sh script/eval_knn.sh vit_model.pth" >&2; exit 2; }
case $1 in
vit_*.* | */* | *.pth) weights=$1 arch= ;;
*) arch=$1 weights=${2:?name a file of weights after the architecture}; shift ;;
esac
shift
case " $* " in *" --data_path"*) data= ;; *) data=${DATA:-data/imagenet1k} ;; esac
here=$(dirname "$0")/..
exec "${PYTHON:-python3}" "$here/eval_knn.py" ${arch:+--arch "$arch"} --pretrained_weights "$weights" \
    ${data:+--data_path "$data"} --nb_knn 10 20 "$@"
