"""The formats of weights, one module each: what is in this folder is found, so a new format is one new file.

A module holds a `FORMAT`, which says what is particular to its files. Commands list the formats without torch: modules
import it, and whatever else is heavy, inside of their functions.

Formats are asked in the order of their rank, those of one rank by name. A new one has rank 0, so it is asked before
the formats of the package.
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
    """A file that was read.

    Attributes:
        word: What named it.
        state: What it holds.
        networks: Its dictionaries of tensors by name.
        names: Of all their tensors, under our names.
    """

    word: str
    state: Mapping[str, Any]
    networks: Mapping[str, Mapping[str, Tensor]]
    names: frozenset[str]


@dataclass(frozen=True, kw_only=True)
class Format:
    """What weights of one project look like; what a format has not, it leaves out.

    Attributes:
        rank: When it is asked; see above.
        prefix: Of the words that name such weights without a path, as `timm:`.
        detect: Whether a path is of this format. Files that only their content tells are of torch or safetensors.
        read: From a word that `prefix` or `detect` claims to what the file holds: tensors under `state_dict`, and what
            is known of the network under `args` and `normalisation`. Nothing in a file may be executed. Raises
            `CheckpointError` for a file that is missing or damaged, `WeightsError` for another network.
        rename: Tensors of one network under our names; None where they are not under this format's.
        split: The networks that lie in one dictionary of tensors; nothing where it is not of this format.
        keys: Under which names a file holds its network, besides `state_dict`.
        beside: A pattern of tensors that may lie beside a backbone: what only training needs.
        kind: What `dino inspect` calls a file; empty where it is none of this format.
        config: Settings of the conversion. Its docstring is what `dino convert --to NAME --help` says.
        write: Writes a network there. Formats with it are converted both ways: `OUT.pth` is ours.
        ending: Of the files that it writes; a folder has none.
        tells_images: Whether it says how images are normalized, and how large they are.
        tell: What the user is told besides: how the other project loads the file.
        run: The whole conversion, from its settings on, where it is none of a network and its tensors.
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
    """Every format of the folder by the name of its module, in the order in which they are asked."""
    names = [module.name for module in pkgutil.iter_modules(__path__)]
    found: dict[str, Format] = {
        name: importlib.import_module(f"{__name__}.{name}").FORMAT for name in names
    }
    return dict(sorted(found.items(), key=lambda pair: (pair[1].rank, pair[0])))


def list_converters() -> dict[str, Format]:
    """The formats that `dino convert` knows by name: first those that it writes and reads, then the others."""
    found = list_formats()
    both_ways = {name: each for name, each in found.items() if each.write}
    return both_ways | {name: each for name, each in found.items() if each.run}
