"""timm's weights: `python -m dino.interop.timm IN OUT.safetensors`, or `timm:NAME OUT.pth`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from dino.errors import WeightsError
from dino.weights.convert import Form, Network


def write_timm(network: Network, target: Path) -> None:
    """Write what `timm.create_model(..., checkpoint_path=...)` reads, once every tensor of that model is there.

    Names are those of timm's vision transformers already.

    Raises:
        OptionError: timm has no such network, or the file cannot be written.
        WeightsError: timm's network has other tensors.
    """
    from safetensors.torch import save

    from dino.files import atomic_write
    from dino.models.registry import list_timm_shapes

    name, settings = name_model(network)
    wanted, own = list_timm_shapes(name, settings), {key: tensor.shape for key, tensor in network.tensors.items()}
    wrong = sorted(key for key in wanted.keys() | own.keys() if wanted.get(key) != own.get(key))
    if wrong:
        raise WeightsError(f"timm's {name} has other tensors than {network.origin}: {', '.join(wrong[:10])}")
    tensors = {key: tensor.contiguous() for key, tensor in network.tensors.items()}
    with atomic_write(target, "`file_out`") as temporary:
        temporary.write_bytes(save(tensors, metadata={"format": "pt", "architecture": name}))


def name_model(network: Network) -> tuple[str, dict[str, Any]]:
    """The model of timm that a network is, and its settings.

    Raises:
        OptionError: timm has no such network.
        WeightsError: Nobody knows which it is.
    """
    from dino.models.registry import describe_in_timm

    if not network.arch:
        raise WeightsError(f"{network.origin}: the number of its heads is not known, so timm's network is not either")
    size = network.grid_size if network.is_plain_vit else network.image_size
    return describe_in_timm(network.arch, patch_size=network.patch_size, in_chans=network.in_chans, image_size=size)


def phrase_loading(network: Network, target: Path) -> str:
    """The line of Python that loads the file."""
    name, settings = name_model(network)
    words = "".join(f", {key}={value!r}" for key, value in settings.items())
    return f"timm.create_model({name!r}, checkpoint_path={str(target)!r}{words})"


FORM = Form(write=write_timm, ending=".safetensors", tell=phrase_loading)
