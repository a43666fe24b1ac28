"""DINO from Python: values in, values out.

Settings are keywords, named like the flags of the commands (`lr`, `batch_size_per_device`). Every
function that computes accepts `device` and `precision`, and joins the processes of torchrun. Wrong
values raise `dino.errors.DinoError`; unknown keywords raise TypeError.

Shapes: B batch, C channels, H W pixels, N images, D width of the features.
"""

from dino.api.evaluation import Embeddings, attention, embed, knn, linear_probe
from dino.api.training import Result, pretrain
from dino.api.weights import list_models, load, transform

__all__ = [
    "Embeddings",
    "Result",
    "attention",
    "embed",
    "knn",
    "linear_probe",
    "list_models",
    "load",
    "pretrain",
    "transform",
]
