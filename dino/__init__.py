"""DINO (self-distillation with no labels, Caron et al. 2021) for Gaudi, CUDA, CPU and IPU.

    import dino

    backbone = dino.load("checkpoint.pth")
    features = dino.embed(backbone, "photos/")

Importing this package imports neither torch nor numpy; the functions below do so on first use.
`docs/python.md` shows how to use each one. `docs/architecture.md` describes the code underneath.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dino.api import (
        Embeddings,
        Result,
        attention,
        embed,
        knn,
        linear_probe,
        list_models,
        load,
        pretrain,
        transform,
    )

__version__ = "0.1.0"
__all__ = [
    "Embeddings",
    "Result",
    "__version__",
    "attention",
    "embed",
    "knn",
    "linear_probe",
    "list_models",
    "load",
    "pretrain",
    "transform",
]

# `import torch` would load vendor bridges before their environment is complete; `devices` does it.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
# Threads of OpenMP (libgomp, read when torch loads it) spin at the end of each parallel loop. By
# default they do so for milliseconds, which is most of their time if other programs want the cores.
# docs/performance.md has the figures.
if not os.environ.keys() & {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"}:
    os.environ["GOMP_SPINCOUNT"] = "10000"


def __getattr__(name: str) -> Any:
    """Import a public function when it is first used."""
    if name not in __all__:
        raise AttributeError(f"module 'dino' has no attribute {name!r}")
    from dino import api

    return getattr(api, name)


def __dir__() -> list[str]:
    """The public names."""
    return sorted({*globals(), *__all__})
