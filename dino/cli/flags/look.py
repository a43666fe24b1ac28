"""Flags: the page of `dino look`."""

from __future__ import annotations

from collections.abc import Mapping

from dino.cli.spec import Spec

FLAGS: Mapping[str, Spec] = {
    # LikenessConfig
    "shown_images": Spec("images whose neighbors and patches are shown, evenly spaced"),
    "duplicate_similarity": Spec(
        "cosine similarity from which on two images count as near-duplicates"
    ),
}
