"""Write dino/golden/augment.npz: a painted picture, and its versions from Pillow and torchvision.

    python tools/make_golden_augment.py [FILE]

The original augments Pillow images with these same functions (DataAugmentationDINO of
facebookresearch/dino), so their results are the reference. Run this again only to change what is
compared; tests/test_golden.py recomputes the file.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageFilter, ImageOps
from torchvision.transforms import InterpolationMode
from torchvision.transforms import functional as TF

sys.path.insert(0, str(Path(__file__).parent.parent))

from dino.data.demo import paint  # noqa: E402
from dino.data.photometric import IMAGENET_MEAN, IMAGENET_STD  # noqa: E402

FILE = Path(__file__).resolve().parents[1] / "dino" / "golden" / "augment.npz"
HEIGHT, WIDTH = 500, 335  # of a typical photograph
LABEL, SEED = 6, 4  # a ringed hexagon in many colors: curved edges at all scales
BOXES = (  # top, left, height, width, side of the crop: from 4x smaller to 4x larger
    (67, 0, 329, 335, 224),
    (10, 20, 120, 160, 40),
    (0, 0, 500, 335, 64),
    (88, 140, 186, 166, 72),
    (209, 35, 191, 255, 56),
    (330, 200, 96, 96, 96),
    (120, 90, 41, 54, 96),
    (476, 311, 24, 24, 96),
)
# The crop that operations and chains start from. A crop that is reduced more (from 260 pixels) has
# denser edges than a photograph. Pillow's blur, which is made of boxes, is then 1.1 levels from a
# Gaussian's mean, instead of 0.5.
BASE = 1
CHAINS = 8
# The number of chains in which each flag is set.
FLAGS = {"flip": 4, "jitter": 6, "gray": 2, "blur": 4, "solarize": 3}
JITTER = ("brightness", "contrast", "saturation", "hue")
OPERATIONS: Mapping[str, Sequence[float]] = {
    **{"brightness": (0.6, 0.85, 1.4), "contrast": (0.6, 0.85, 1.4), "saturation": (0.8, 1.2)},
    **{"hue": (-0.1, -0.03, 0.05, 0.1), "blur": (0.1, 0.4, 0.8, 1.3, 2.0)},
}
Arrays = dict[str, np.ndarray]


def paint_picture() -> np.ndarray:
    """Paint a square and return its middle columns, (H, W, 3) uint8.

    It has no noise, because noise cannot be compressed.
    """
    square = paint(LABEL, HEIGHT, np.random.default_rng(SEED))
    left = (HEIGHT - WIDTH) // 2
    return np.rint(square[:, left : left + WIDTH].clip(0, 1) * 255).astype(np.uint8)


def crop(picture: Image.Image, box: Sequence[int], size: int) -> Image.Image:
    """Crop (top, left, height, width) and resize it to `size` pixels, bicubic and antialiased."""
    return TF.resized_crop(picture, *box, [size, size], interpolation=InterpolationMode.BICUBIC)


def change(picture: Image.Image, operation: str, value: float) -> Image.Image:
    """Apply one operation by its name; flip, gray and solarize ignore the value."""
    if operation == "flip":
        return TF.hflip(picture)
    if operation == "gray":
        return TF.rgb_to_grayscale(picture, num_output_channels=3)
    if operation == "solarize":
        return ImageOps.solarize(picture)
    if operation == "blur":
        return picture.filter(ImageFilter.GaussianBlur(radius=value))
    return getattr(TF, f"adjust_{operation}")(picture, value)


def run_chain(
    picture: Image.Image, flags: Sequence[bool], jitter: Mapping[str, float], radius: float
) -> Image.Image:
    """Flip, jitter (in the order of `jitter`), gray, blur, solarize, each if its flag is set."""
    steps = {name: [(name, radius)] for name in FLAGS} | {"jitter": list(jitter.items())}
    for name, flag in zip(FLAGS, flags, strict=True):
        for operation, value in steps[name] if flag else ():
            picture = change(picture, operation, value)
    return picture


def normalize(picture: Image.Image) -> np.ndarray:
    """Return (3, S, S) float32, normalized with ImageNet's mean and standard deviation."""
    return TF.normalize(TF.to_tensor(picture), IMAGENET_MEAN, IMAGENET_STD).numpy()


def choose_parameters() -> Arrays:
    """Return the picture and the parameters of all crops, operations and chains, by key."""
    chosen: Arrays = {"0/photo": paint_picture(), "0/base_crop_index": np.array(BASE)}
    for index, (*box, size) in enumerate(BOXES):
        chosen |= {f"0/crop/{index}/params": np.array(box), f"0/crop/{index}/size": np.array(size)}
    cases = [("flip", 0.0), ("gray", 0.0), ("solarize", 128.0)]
    cases += [(f"{name}_{value}", value) for name, values in OPERATIONS.items() for value in values]
    chosen |= {f"0/op/{name}/param": np.array(value) for name, value in cases}
    rng = np.random.RandomState(SEED)
    flags = np.stack([rng.permutation(CHAINS) < count for count in FLAGS.values()], axis=1)
    for index in range(CHAINS):
        order, radius = rng.permutation(len(JITTER)), rng.uniform(0.1, 2.0)
        factors = rng.uniform((0.6, 0.6, 0.8, -0.1), (1.4, 1.4, 1.2, 0.1))
        numbers = {
            "order": order,
            "factors": factors,
            "flags": flags[index],
            "radius": np.array(radius),
        }
        chosen |= {f"0/chain/{index}/{key}": value for key, value in numbers.items()}
    return chosen


def compute(parameters: Arrays) -> Arrays:
    """Compute `image` and `normalised` of every crop, operation and chain in `parameters`."""
    results: Arrays = {}
    for key, value in parameters.items():
        whole, name = key.rsplit("/", 1)
        photo, case = whole.split("/")[0], whole.split("/")[-1]
        if name == "params":
            picture = Image.fromarray(parameters[f"{photo}/photo"])
            results[f"{whole}/image"] = np.asarray(
                crop(picture, value.tolist(), int(parameters[f"{whole}/size"]))
            )
        elif name == "param":
            base = cut_base(parameters, photo)
            results[f"{whole}/image"] = np.asarray(change(base, case.split("_")[0], float(value)))
        elif name == "order":
            factors = parameters[f"{whole}/factors"]
            jitter = {JITTER[index]: float(factors[index]) for index in value}
            flags, radius = parameters[f"{whole}/flags"], float(parameters[f"{whole}/radius"])
            image = run_chain(cut_base(parameters, photo), flags, jitter, radius)
            results |= {
                f"{whole}/image": np.asarray(image),
                f"{whole}/normalised": normalize(image),
            }
    return results


def cut_base(parameters: Arrays, photo: str) -> Image.Image:
    """Return the crop of a picture that its operations and chains start from."""
    base = f"{photo}/crop/{int(parameters[f'{photo}/base_crop_index'])}"
    picture = Image.fromarray(parameters[f"{photo}/photo"])
    return crop(picture, parameters[f"{base}/params"].tolist(), int(parameters[f"{base}/size"]))


if __name__ == "__main__":
    path = Path(sys.argv[1]) if len(sys.argv) > 1 else FILE
    parameters = choose_parameters()
    np.savez_compressed(path, **parameters, **compute(parameters))
    print(f"{path}: {path.stat().st_size} bytes")
