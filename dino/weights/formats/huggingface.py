"""Folders of the transformers library: `python -m dino.interop.huggingface IN FOLDER`, or `FOLDER OUT.pth`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from dino.errors import WeightsError
from dino.weights.convert import Form, Network

BICUBIC = 3  # Pillow's number


def write_folder(network: Network, target: Path) -> None:
    """Write what `transformers.ViTModel.from_pretrained(FOLDER, add_pooling_layer=False)` reads.

    Raises:
        WeightsError: transformers' ViT cannot hold the network.
        OptionError: The folder cannot be written to.
    """
    from safetensors.torch import save

    from dino.files import atomic_write
    from dino.models.layouts import to_hugging_face
    from dino.runtime.context import make_output_folder

    if not (network.is_plain_vit and network.arch):
        other = network.arch or "a network whose number of heads is not known"
        raise WeightsError(f"{network.origin}: transformers' ViT has the shapes of vit_small and the like, not {other}")
    make_output_folder(str(target), "`file_out`")
    for name, content in {
        "config.json": describe(network),
        "preprocessor_config.json": describe_input(network),
    }.items():
        with atomic_write(target / name, "`file_out`") as temporary:
            temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    with atomic_write(target / "model.safetensors", "`file_out`") as temporary:
        temporary.write_bytes(save(to_hugging_face(network.tensors), metadata={"format": "pt"}))


def describe(network: Network) -> dict[str, Any]:
    """The network as transformers' ViTConfig."""
    from dino.models.registry import VITS
    from dino.models.vit import LAYER_NORM_EPS

    shape, (height, width) = VITS[network.arch], network.grid_size
    return {
        "architectures": ["ViTModel"],
        "model_type": "vit",
        "hidden_size": shape.embed_dim,
        "num_hidden_layers": shape.depth,
        "num_attention_heads": shape.heads,
        "intermediate_size": int(shape.embed_dim * shape.mlp_ratio),
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0,
        "layer_norm_eps": LAYER_NORM_EPS,
        "image_size": height if height == width else [height, width],
        "patch_size": network.patch_size,
        "num_channels": network.in_chans,
        "qkv_bias": True,
        "torch_dtype": str(next(iter(network.tensors.values())).dtype).removeprefix("torch."),
    }


def describe_input(network: Network) -> dict[str, Any]:
    """How this project's evaluations prepare an image, for transformers' AutoImageProcessor."""
    from dino.data.crops import RESIZE_RATIO
    from dino.data.photometric import build_normalization

    height, width = network.image_size
    normalization = build_normalization(network.in_chans, network.normalization)
    return {
        "image_processor_type": "BitImageProcessor",  # the one that cuts the center of a resized image
        "do_convert_rgb": network.in_chans == 3,
        "do_resize": True,
        "size": {"shortest_edge": round(min(height, width) * RESIZE_RATIO)},
        "resample": BICUBIC,
        "do_center_crop": True,
        "crop_size": {"height": height, "width": width},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(normalization.mean),
        "image_std": list(normalization.std),
    }


FORM = Form(write=write_folder, tells_images=True)
