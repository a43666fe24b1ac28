"""Packing images into webdataset-compatible tar shards, atomically and reproducibly."""

from __future__ import annotations

import io
import json
import logging
import os
import tarfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from PIL import ExifTags, Image

from dino.data.decode import open_picture, read_file
from dino.data.image_source import ImageSource
from dino.data.shard_names import ENDING
from dino.data.shards import LABEL, sample_of
from dino.errors import DataError
from dino.files import atomic_write, read_bounded

logger = logging.getLogger(__name__)

VERSION = 1  # raise it whenever equal images would yield other shards
LARGEST_NOTE = 1 << 20  # bytes
QUALITY = 95  # of a scaled JPEG; Pillow's documentation advises against more
SMOOTH = {"P": "RGB", "PA": "RGBA", "1": "L"}
ORIENTATION = ExifTags.Base.Orientation


@dataclass(frozen=True)
class Packing:
    """How images are packed.

    Attributes:
        shard_size: Images per shard; the last shard may hold fewer.
        shorter_side: Pictures with a longer shorter side are scaled down to this many pixels; None
            keeps all unchanged.
    """

    shard_size: int
    shorter_side: int | None = None


def pack_images(
    source: ImageSource, folder: Path, packing: Packing, *, workers: int
) -> Iterator[tuple[Path, int]]:
    """Write the shards that do not exist yet.

    A sample is an image under its own name and, with labels, a .cls member with its class number.

    Args:
        source: The images; their order is kept.
        folder: Where to write `NAME-000000.tar` and so on; NAME is that of the source's folder.
        packing: How to pack.
        workers: Threads that read and scale.

    Yields:
        Each shard, and the number of images packed up to its end.

    Raises:
        DataError: An image cannot be read, a shard cannot be written, or `folder` contains shards
            of other images.
    """
    name, size = source.root.resolve().name, packing.shard_size
    try:
        _claim(folder / f"{name}.json", source, packing)
        with ThreadPoolExecutor(max(workers, 1)) as pool:
            for number, start in enumerate(range(0, len(source), size)):
                shard = folder / f"{name}-{number:06}{ENDING}"
                indices = range(start, min(start + size, len(source)))
                if not shard.exists():
                    _write_shard(shard, source, indices, packing, pool)
                yield shard, indices.stop
    except (OSError, ValueError) as error:
        raise DataError(
            f"packing {source.root} into {folder}: {error}",
            remedy="run the same command again to continue",
        ) from error


def _claim(note: Path, source: ImageSource, packing: Packing) -> None:
    """Note next to the shards what they contain; refuse to add to shards of other images."""
    ours = {
        "version": VERSION,
        "images": len(source),
        "names": source.fingerprint(),
        **asdict(packing),
    }
    if note.exists():
        try:
            theirs = dict(json.loads(read_bounded(note, LARGEST_NOTE)))
        except (OSError, ValueError, TypeError, RecursionError) as error:
            raise DataError(
                f"{note} is damaged: {error}", remedy="pack into an empty folder"
            ) from error
        differing = [
            f"{key} was {theirs.get(key)} and is now {value}"
            for key, value in ours.items()
            if theirs.get(key) != value
        ]
        if differing:
            raise DataError(
                f"{note.parent} holds shards packed differently ({', '.join(differing)})",
                remedy="choose another folder",
            )
    elif next(note.parent.glob(f"{note.stem}-*{ENDING}"), None):
        raise DataError(
            f"{note.parent} holds shards of unknown origin", remedy="choose another folder"
        )
    with atomic_write(note, alone=True) as temporary:
        temporary.write_bytes(json.dumps(ours).encode())


def _write_shard(
    shard: Path, source: ImageSource, indices: range, packing: Packing, pool: ThreadPoolExecutor
) -> None:
    labeled, read = set[str](), partial(_read, source, shorter_side=packing.shorter_side)
    with atomic_write(shard, alone=True) as temporary, temporary.open("wb") as file:
        with tarfile.open(
            fileobj=file, mode="w", format=tarfile.GNU_FORMAT, encoding="utf-8"
        ) as tar:
            for index, content in zip(indices, pool.map(read, indices), strict=True):
                name, sample = source.names[index], sample_of(source.names[index])
                _add(tar, name, content)
                if source.labels is not None and sample not in labeled:
                    _add(tar, f"{sample}{LABEL}", str(source.labels[index]).encode())
                    labeled.add(sample)
        file.flush()
        os.fsync(file.fileno())


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """Add a member without owner and time, so that equal content yields equal bytes."""
    member = tarfile.TarInfo(name)
    member.size = len(content)
    tar.addfile(member, io.BytesIO(content))


def _read(source: ImageSource, index: int, *, shorter_side: int | None) -> bytes:
    """The bytes of an image, scaled down if required; unchanged if it cannot be decoded."""
    content = read_file(source.file(index))
    if shorter_side is None:
        return content
    try:
        return scale_picture(content, shorter_side)
    except Exception as error:  # noqa: BLE001 - decoders raise anything on damaged files
        logger.warning("%s cannot be scaled and is packed unchanged: %s", source.file(index), error)
        return content


def scale_picture(content: bytes, shorter_side: int) -> bytes:
    """Scale a picture file down (antialiased bicubic) to a shorter side in pixels, same format.

    Smaller pictures are returned unchanged. Of the EXIF data, only the orientation is kept.

    Raises:
        Exception: Any error of the decoder on a damaged file, or on a format it cannot write.
    """
    with open_picture(content) as picture:
        shorter = min(picture.size)
        if shorter <= shorter_side:
            return content
        size = [max(1, round(side * shorter_side / shorter)) for side in picture.size]
        # Other modes have no levels to average.
        smooth = picture.convert(SMOOTH.get(picture.mode, picture.mode))
        exif = Image.Exif()
        if ORIENTATION in picture.getexif():
            exif[ORIENTATION] = picture.getexif()[ORIENTATION]
        scaled, out = smooth.resize((size[0], size[1]), Image.Resampling.BICUBIC), io.BytesIO()
        scaled.save(out, picture.format, quality=QUALITY, exif=exif)
    return out.getvalue()
