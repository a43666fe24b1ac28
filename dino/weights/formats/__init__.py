"""The formats of weights, one module each. Modules are discovered, so a new format is one new file.

A module holds a `FORMAT` that describes its files. Commands list the formats without torch, so
modules import torch and other heavy libraries inside their functions.

Formats are asked in the order of their rank, and by name within a rank. A new format has rank 0, so
it is asked before the formats of the package.
"""

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dino.weights.config import ConversionConfig

if TYPE_CHECKING:
    from torch import Tensor

    from dino.weights.network import Network


@dataclass(frozen=True, kw_only=True)
class Contents:
    """The contents of a file.

    Attributes:
        word: The name that the file was read from.
        state: The raw contents.
        networks: Its dictionaries of tensors by name.
        names: The names of all their tensors, translated to ours.
    """

    word: str
    state: Mapping[str, Any]
    networks: Mapping[str, Mapping[str, Tensor]]
    names: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Format:
    """The weights format of one project. A format sets only the fields that it needs.

    Attributes:
        rank: The order in which formats are asked; see above.
        prefix: Prefix of a name that is not a path, such as `timm:`.
        detect: Whether a path has this format. If only the content can tell, the file is read as
            torch or safetensors.
        read: Reads a word that `prefix` or `detect` claims. Returns tensors under `state_dict`, and
            facts about the network under `args` and `normalisation`. It must not execute anything
            in a file. It raises `CheckpointError` for a missing or damaged file, and `WeightsError`
            for another network.
        rename: Renames the tensors of one network to our names; None for names of other formats.
        split: Splits a dictionary that holds several networks; empty for other formats.
        keys: Keys under which a file holds its network, in addition to `state_dict`.
        beside: Pattern of the tensors next to a backbone that only training needs.
        kind: The description of a file in `dino inspect`; empty for other formats.
        config: Settings of the conversion. Its docstring is the help of `dino convert --to NAME`.
        write: Writes a network to a path. With it a format converts both ways: `OUT.pth` is ours.
        ending: Ending of the files that it writes; empty for a folder.
        tells_images: Whether it stores how images are normalized, and their size.
        tell: Returns a line for the user on how the other project loads the file.
        run: Runs the whole conversion, if it is more than a network and its tensors.
    """

    rank: int = 0
    prefix: str = ""
    detect: Callable[[Path], bool] = lambda _: False
    read: Callable[[str], dict[str, Any]] | None = None
    rename: Callable[[Mapping[str, Tensor]], dict[str, Tensor] | None] = lambda _: None
    split: Callable[[Mapping[str, Tensor]], dict[str, dict[str, Tensor]]] = lambda _: {}
    keys: tuple[str, ...] = ()
    beside: str = ""
    kind: Callable[[Contents], str] = lambda _: ""
    config: type = ConversionConfig
    write: Callable[[Network, Path], None] | None = None
    ending: str = ""
    tells_images: bool = False
    tell: Callable[[Network, Path], str] | None = None
    run: Callable[[Any], None] | None = None


def list_formats() -> dict[str, Format]:
    """List every format by the name of its module, in the order in which they are asked."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    formats: dict[str, Format] = {
        name: importlib.import_module(f"{__name__}.{name}").FORMAT for name in names
    }
    return dict(sorted(formats.items(), key=lambda pair: (pair[1].rank, pair[0])))


def list_converters() -> dict[str, Format]:
    """List the formats of `dino convert` by name: those that convert both ways come first."""
    formats = list_formats()
    both_ways = {name: form for name, form in formats.items() if form.write}
    return both_ways | {name: form for name, form in formats.items() if form.run}
