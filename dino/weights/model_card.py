"""The model card of a folder for the Hugging Face Hub: what is known, and no more."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import torch

from dino import __version__
from dino.data.crops import RESIZE_RATIO
from dino.data.photometric import build_normalization
from dino.files import atomic_write
from dino.weights.network import Network, is_vision_transformer
from dino.weights.run_facts import RunFacts

# The lines of each library; `IMAGES` or `NUMBERS` stands for {images}.
TRANSFORMERS = """\
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel

name = "."  # this folder, or its name on the Hub
model = AutoModel.from_pretrained(name, add_pooling_layer=False).eval()
{images}
with torch.inference_mode():
    features = model(images).last_hidden_state[:, 0]  # (1, {width})
"""
TIMM = """\
import timm
import torch
from PIL import Image

name = "local-dir:."  # this folder; on the Hub "hf-hub:" and its name
model = timm.create_model(name, pretrained=True).eval()
{images}
with torch.inference_mode():
    features = model(images)  # (1, {width})
"""
OURS = """\
import dino

backbone = dino.load(".")  # this folder; huggingface_hub.snapshot_download gets it from the Hub
features = dino.embed(backbone, "{photo}").vectors  # (1, {width})
"""
CODE = {"transformers": TRANSFORMERS, "timm": TIMM, "dino-reference": OURS}
IMAGES = {
    "transformers": """\
processor = AutoImageProcessor.from_pretrained(name)
images = processor(Image.open("photo.jpg"), return_tensors="pt").pixel_values""",
    "timm": """\
transform = timm.data.create_transform(**timm.data.resolve_data_config({}, model=model))
images = transform(Image.open("photo.jpg").convert("RGB"))[None]""",
}
NUMBERS = "images = torch.zeros({shape})  # a batch of one, normalized by mean and std"
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # tensors, not parameters
SCORES = """\
Own views found: how often one crop of an image finds another one of it among those of all scored
images. RankMe: the effective rank of the features. Neither needs labels."""
CLOSING = f"""\
License, training data and intended use are for the author to add. Written by `dino convert --to
hub` of dino-reference {__version__} with torch {torch.__version__}."""


def write_card(path: Path, network: Network, library: str, facts: RunFacts, *, width: int) -> None:
    """Write the model card.

    Args:
        path: The file.
        network: The network of the folder.
        library: What loads it, one of `CODE`.
        facts: What is known of its training.
        width: D, the numbers of an image's features.

    Raises:
        OptionError: It cannot be written.
    """
    text = "\n\n".join(draw_parts(network, library, facts, width)) + "\n"
    with atomic_write(path, "`file_out`") as temporary:
        temporary.write_text(text, encoding="utf-8")


def draw_parts(network: Network, library: str, facts: RunFacts, width: int) -> Iterator[str]:
    """Yield the parts of the card: metadata, introduction, code, tables, closing."""
    yield draw_metadata(library, trained=bool(facts.network))
    yield f"# {network.arch}{', trained with DINO' if facts.network else ''}"
    origin = (
        f" It is the {facts.network} of a run of DINO (self-distillation with no labels, Caron et"
        " al. 2021)."
    )
    yield f"A backbone: it maps an image to {width:,} numbers.{origin if facts.network else ''}"
    yield f"## Use\n\n```python\n{draw_code(network, library, width)}```"
    if library in IMAGES:
        yield 'In dino-reference, `dino.load(".")` loads the folder too.'
    yield f"## Network\n\n{draw_table(('what', 'value'), list_network(network, width))}"
    if facts.settings:
        yield f"## Training\n\n{draw_table(('what', 'value'), facts.settings)}"
    if facts.scores:
        head = ("score of the teacher", "before training", "last", "after epoch")
        yield f"## Scores\n\n{draw_table(head, facts.scores)}\n\n{SCORES}"
    yield CLOSING


def draw_metadata(library: str, *, trained: bool) -> str:
    """Draw what the Hub reads. The license is the author's choice, so there is none."""
    tags = (["timm"] if library == "timm" else []) + (
        ["dino", "self-supervised-learning"] if trained else []
    )
    lines = [
        *("---", "# license: for you to choose, such as apache-2.0"),
        *(f"library_name: {library}", "pipeline_tag: image-feature-extraction"),
        *(["tags:", *(f"- {tag}" for tag in tags)] if tags else []),
        "---",
    ]
    return "\n".join(lines)


def draw_code(network: Network, library: str, width: int) -> str:
    """Draw the lines of Python that load the folder and compute features."""
    shape = ", ".join(map(str, (1, network.in_chans, *network.image_size)))
    is_color = network.in_chans == 3
    images = IMAGES.get(library, "") if is_color else NUMBERS.format(shape=shape)
    photo = "photo.jpg" if network.in_chans in {1, 3} else "photo.npy"
    code = CODE[library].format(images=images, width=width, photo=photo)
    return (
        code
        if is_color
        else code.replace("from PIL import Image\n", "").replace("AutoImageProcessor, ", "")
    )


def list_network(network: Network, width: int) -> list[tuple[str, str]]:
    """List what is known of the network and of its images."""
    height, side = network.image_size
    parameters = (t.numel() for n, t in network.tensors.items() if not n.endswith(STATISTICS))
    normalization = build_normalization(network.in_chans, network.normalization)
    shorter = round(min(network.image_size) * RESIZE_RATIO)
    rows = [
        ("architecture", network.arch),
        ("parameters", f"{sum(parameters):,}"),
        ("features", f"{width:,}"),
        *(
            [("patch size", str(network.patch_size))]
            if is_vision_transformer(network.tensors)
            else []
        ),
        ("images", f"{network.in_chans} channels, {height} x {side} pixels"),
        ("resizing", f"shorter side to {shorter} pixels, bicubic; center crop"),
        ("mean, of levels from 0 to 1", ", ".join(f"{x:.6g}" for x in normalization.mean)),
        ("standard deviation", ", ".join(f"{x:.6g}" for x in normalization.std)),
    ]
    if network.pixel_range:
        low, high = network.pixel_range
        rows.append(("beyond 8 bits", f"levels {low:g} to {high:g} become 0 to 255 first"))
    return rows


def draw_table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Draw a table in Markdown."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
