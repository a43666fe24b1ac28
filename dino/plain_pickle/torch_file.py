"""Checks of a `torch.save` file before torch reads it: checksums, claimed sizes, nesting."""

from __future__ import annotations

import zipfile
import zlib
from pathlib import Path
from typing import IO

from dino.plain_pickle.limits import DAMAGE, PlainPickleError, shorten
from dino.plain_pickle.nesting import check_tuples

# Number of pickles at the start of a file from before torch 1.6: magic number, protocol, system,
# content, keys.
LEGACY_PICKLES = 5
ARCHIVE = b"PK\x03\x04"
PIECE = 2**20  # bytes read at a time
START = 512  # bytes that show what a file is
TAR, TAR_AT = b"ustar", 257
LONGEST_QUOTE = 40  # characters of a text file
OTHER_FILES = {
    b"version https://git-lfs": "it is a Git LFS pointer, not the file: run git lfs pull",
    b"<!doctype html": "it is a web page: download the file itself",
    b"<html": "it is a web page: download the file itself",
    b"\x1f\x8b": "it is compressed by gzip: unpack it first",
    b"BZh": "it is compressed by bzip2: unpack it first",
    b"\xfd7zXZ": "it is compressed by xz: unpack it first",
    b"\x28\xb5\x2f\xfd": "it is compressed by Zstandard: unpack it first",
    b"7z\xbc\xaf": "it is a 7-Zip archive: unpack it first",
    b"\x89HDF": "it is an HDF5 file, as Keras writes them: convert it to torch first",
}
BROKEN = (*DAMAGE, zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, zlib.error)


def check_torch_file(path: Path | str, *, mapped: bool = False) -> None:
    """Reject a file that `torch.load` would misread, or that could crash it.

    Each record of a zip archive must have its checksum. Tuples may not nest or repeat beyond the
    limits of plain pickles.

    Args:
        path: The file.
        mapped: Leave out the checksums of the tensors, which would be read from disk for that.

    Raises:
        OSError: The file cannot be read.
        PlainPickleError: The file is damaged, of another kind, or exceeds the limits.
    """
    with Path(path).open("rb") as file:
        start, size = file.read(START), file.seek(0, 2)
        file.seek(0)
        kind = _name_kind(start)
        if _begins_as_safetensors(start, size):
            kind = "it begins as a safetensors file, not as one of torch.save"
        if kind:
            raise PlainPickleError(kind)
        try:
            if start.startswith(ARCHIVE):  # as torch decides
                _check_archive(file, mapped=mapped)
            else:
                for _ in range(LEGACY_PICKLES):
                    check_tuples(file)
        except PlainPickleError:
            raise
        except BROKEN as error:
            reason = _quote_text(start) or f"it is not a complete torch.save file: {error}"
            raise PlainPickleError(reason) from error


def is_safetensors(path: Path) -> bool:
    """Whether a file begins as safetensors do: the length of a JSON text, then its first brace."""
    try:
        with path.open("rb") as file:
            start = file.read(START)
            return _begins_as_safetensors(start, file.seek(0, 2))
    except OSError:
        return False


def name_other_kind(path: Path) -> str:
    """Say what a file is by its first bytes; empty for an unknown kind."""
    try:
        with path.open("rb") as file:
            return _name_kind(file.read(START))
    except OSError:
        return ""


def _begins_as_safetensors(start: bytes, size: int) -> bool:
    return start[8:9] == b"{" and int.from_bytes(start[:8], "little") <= size


def _name_kind(start: bytes) -> str:
    if not start:
        return "it is empty"
    opening = start.lstrip().lower()
    named = (
        reason
        for mark, reason in OTHER_FILES.items()
        if start.startswith(mark) or opening.startswith(mark)
    )
    is_tar = start[TAR_AT:].startswith(TAR)
    return next(named, "it is a tar archive: unpack it first" if is_tar else "")


def _quote_text(start: bytes) -> str:
    """Say that a file is a text; empty for other bytes."""
    text = start.decode("latin1").strip()
    if not text.replace("\n", "").replace("\r", "").replace("\t", "").isascii():
        return ""
    first = text.splitlines()[0][:LONGEST_QUOTE] if text else ""
    return f"it is a text that begins with {shorten(first)!r}" if first.isprintable() else ""


def _check_archive(file: IO[bytes], *, mapped: bool) -> None:
    size = file.seek(0, 2)
    with zipfile.ZipFile(file) as archive:
        entries = archive.infolist()
        if sum(entry.file_size for entry in entries) > size:  # torch does not compress
            raise PlainPickleError("its records claim to be larger than the file")
        if not any(entry.filename.rsplit("/", 1)[-1] == "data.pkl" for entry in entries):
            raise PlainPickleError("it is a zip archive without tensors of torch")
        has_sums = any(entry.CRC for entry in entries)  # torch can leave them out
        for entry in entries:
            if not has_sums:
                entry.CRC = None  # type: ignore[assignment]  # zipfile then compares nothing
            is_tensor = entry.filename.rsplit("/", 2)[-2:-1] == ["data"]
            if not (mapped and is_tensor):
                _check_record(archive, entry)


def _check_record(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> None:
    """Read a record to its end, where zipfile compares the checksum; follow a pickle."""
    if entry.filename.endswith("data.pkl"):
        with archive.open(entry) as content:
            check_tuples(content)
    with archive.open(entry) as content:
        while content.read(PIECE):
            pass
