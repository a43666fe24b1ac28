"""DINO from Python: values in, values out.

Settings are keywords, named like the flags of the commands (`lr`, `batch_size_per_device`); `device` and `precision`
are taken everywhere. Under torchrun every function joins the processes. Wrong values raise `dino.errors.DinoError`,
unknown keywords TypeError. Shapes: B batch, C channels, H W pixels, N images, D width of the features.
"""

from dino.api.evaluation import Embeddings, attention, embed, knn, linear_probe
from dino.api.training import Result, pretrain
from dino.api.weights import list_models, load

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
]
