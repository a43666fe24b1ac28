"""Flags: the k-NN score."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # VoteConfig
    "nb_knn": Spec("numbers of neighbors to report"),
    "temperature": Spec("temperature of the vote"),
    "index": Spec(
        "search all training images, or cells of them (faiss): faster for millions of images, but "
        "misses some neighbors"
    ),
    "dump_features": Spec("folder to write features and labels to"),
    "load_features": Spec("folder to read features and labels from instead of computing them"),
    "max_batches": Spec("stop after this many batches per split, for a quick look"),
    "dump_tb_events": Spec("folder for TensorBoard events of the extraction"),
}
