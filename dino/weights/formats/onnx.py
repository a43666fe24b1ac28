"""Export a backbone as an ONNX graph with torch's exporter, and compare it with the network."""

from __future__ import annotations

import importlib.util
import logging
import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino.errors import OptionError
from dino.files import atomic_write
from dino.weights.config import ConversionConfig
from dino.weights.formats import Format

if TYPE_CHECKING:
    from torch import Tensor, nn

logger = logging.getLogger(__name__)

ENDING = ".onnx"
EXTRAS = ("onnx", "onnxscript")
TALKATIVE = ("onnxscript", "onnx_ir", "torch.onnx")  # loggers that report each node
LARGEST = 2**31  # bytes of a graph in one file, a limit of the format
INPUT, OUTPUT = "images", "features"  # names in the graph


@dataclass(frozen=True, kw_only=True)
class OnnxConfig(ConversionConfig):
    """Write a backbone as an ONNX graph: images of one size, any number of them, to features.

    python -m dino.interop.onnx IN OUT.onnx, or --output model.onnx with flags
    """


def write_onnx(config: ConversionConfig) -> None:
    """Write the graph of a backbone, and compare its features with the network's.

    Raises:
        DinoError: The weights do not fit, a library is missing, or the file cannot be written.
    """
    from dino.weights.programs import convert_program

    convert_program(config, ENDING, check=check_extras, write=write_graph, compare=compare)


def check_extras() -> None:
    """Check that the libraries that write the graph are installed.

    Raises:
        OptionError: A library is missing.
    """
    missing = [name for name in EXTRAS if importlib.util.find_spec(name) is None]
    if missing:
        raise OptionError(f"ONNX graphs need {', '.join(missing)}: pip install {' '.join(missing)}")


def write_graph(module: nn.Module, images: Tensor, target: Path) -> None:
    """Write `images` (batch, C, H, W) -> `features` (batch, D), for any batch.

    Args:
        module: The network, in eval mode.
        images: An example batch of more than one image. A batch of one would become a constant.
        target: The file.

    Raises:
        OptionError: The file cannot be written, this torch cannot export the network, or the
            network is too large for one file.
    """
    import torch

    size = sum(tensor.nbytes for tensor in module.state_dict().values())
    if size >= LARGEST:
        raise OptionError(
            f"an ONNX file holds up to 2 GiB (this network has {size / 2**30:.1f} GiB)"
        )
    for name in TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    with atomic_write(target, "`file_out`") as temporary:
        try:
            export(module, images, temporary)
        except RuntimeError as error:
            logger.info(
                "torch %s cannot export this network as a program: tracing it instead",
                torch.__version__,
            )
            logger.debug("the export failed", exc_info=error)
            trace(module, images, temporary)


def export(module: nn.Module, images: Tensor, target: Path) -> None:
    """Write the graph from torch's exported program.

    Raises:
        RuntimeError: This torch cannot export the network. torch 2.5 supports neither batch norm
            nor an in-place activation after a dropout.
    """
    import torch

    from dino.weights.programs import export_program

    # If passed the network itself, torch 2.5 silently falls back to the example's batch size.
    program = export_program(module, images)
    graph = torch.onnx.export(
        program, (images,), dynamo=True, input_names=[INPUT], output_names=[OUTPUT], verbose=False
    )
    assert graph is not None
    graph.save(target, external_data=False)


def trace(module: nn.Module, images: Tensor, target: Path) -> None:
    """Write the graph by tracing the network on the example, torch's older exporter.

    Raises:
        OptionError: This torch cannot trace the network.
    """
    import torch
    from torch.jit._trace import TracerWarning

    axes = {INPUT: {0: "batch"}, OUTPUT: {0: "batch"}}
    names: Any = {"input_names": [INPUT], "output_names": [OUTPUT], "dynamic_axes": axes}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", TracerWarning)  # sizes are meant to become constants
        warnings.simplefilter("ignore", DeprecationWarning)  # tracing itself is deprecated
        try:
            torch.onnx.export(module, (images,), str(target), dynamo=False, verbose=False, **names)
        except RuntimeError as error:
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            raise OptionError(
                f"torch {torch.__version__} cannot write an ONNX graph of this network: {reason}",
                remedy="try a newer torch, or another `arch`",
            ) from error


def compare(module: nn.Module, images: Tensor, target: Path) -> float | None:
    """Run the graph and the network on the same images, at two batch sizes.

    Returns:
        The largest difference relative to the largest feature. None, with a warning, if onnxruntime
        is missing.

    Raises:
        WeightsError: The features differ.
    """
    if importlib.util.find_spec("onnxruntime") is None:
        logger.warning("%s was not run: pip install onnxruntime", target.name)
        return None
    import onnxruntime
    import torch

    from dino.weights.programs import compare_features

    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])

    def infer(images: Tensor) -> Tensor:
        return torch.from_numpy(session.run(None, {INPUT: images.numpy()})[0])

    return compare_features(infer, module, images, target.name)


FORMAT = Format(rank=2, config=OnnxConfig, ending=ENDING, run=write_onnx)
