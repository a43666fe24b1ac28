"""DINO (self-distillation with no labels, Caron et al. 2021) for Gaudi, CUDA and CPU.

The rooms, from the bottom up: words (`options`, `flags`, `errors`, `checkpoint`), rooms (`data`, `models`, `devices`),
the run (`runtime`), the work (`training`, `evaluation`, `visualization`). Imports go down, never up, never sideways;
`docs/architecture.md` says why.
"""

import os

# `import torch` would import vendors' bridges by itself, before their environment is complete: `devices` does it.
os.environ.setdefault("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
