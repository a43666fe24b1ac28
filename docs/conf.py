"""Sphinx builds this folder as a site (`make docs`). Warnings are errors, such as broken links.

README.md, CONTRIBUTING.md and CHANGELOG.md are above this folder, where hosts look for them, and
are pages of the site too. Links to and from them are written as they work in the repository; here
they are rewritten for the site.
"""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from sphinx.application import Sphinx

DOCS = Path(__file__).resolve().parent
ROOT = DOCS.parent
PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
LINK = re.compile(
    r"!?\[([^\]]*)\]\(([^)#:\s]+)(#[^)\s]*)?\)"
)  # web addresses have a colon, and stay as they are

sys.path.insert(0, str(ROOT))  # the API pages describe this checkout, whatever is installed

project = "DINO"
html_title = "DINO"
html_theme = "furo"
extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]

myst_heading_anchors = 4  # the same names as the repository's host gives headings
default_role = "code"  # docstrings mark code by single backticks
napoleon_use_ivar = (
    True  # fields of a class have one entry, and the "Attributes" of its docstring another form
)
autodoc_default_options = {"members": True, "member-order": "bysource"}
autodoc_preserve_defaults = True
autodoc_typehints_format = "short"
python_use_unqualified_type_names = True


def find_in_site(target: Path, *, is_image: bool) -> str | None:
    """Return the site's path of a file of the repository, or None if the site has no such page."""
    if is_image or target.is_relative_to(DOCS):
        return Path(os.path.relpath(target, DOCS)).as_posix()
    return PAGES.get(target.relative_to(ROOT).as_posix()) if target.is_relative_to(ROOT) else None


def point_into_site(text: str, folder: Path) -> str:
    """Rewrite the links of a page in `folder`; a link that the site lacks becomes plain text."""

    def turn(link: re.Match[str]) -> str:
        words, path, anchor = link.groups(default="")
        target = (folder / path).resolve()
        if not target.exists():
            return link[0]  # for Sphinx to complain about
        is_image = link[0].startswith("!")
        place = find_in_site(target, is_image=is_image)
        return f"{'!' * is_image}[{words}]({place}{anchor})" if place else words

    return LINK.sub(turn, text)


def turn_page(app: Sphinx, name: str, source: list[str]) -> None:
    """A page of this folder was read."""
    source[0] = point_into_site(source[0], DOCS)


def turn_included(app: Sphinx, path: Path, parent: str, source: list[str]) -> None:
    """A page above this folder was read into one of it."""
    source[0] = point_into_site(source[0], (DOCS / path).parent)


def setup(app: Sphinx) -> None:
    """Called by Sphinx at the start of a build."""
    app.connect("source-read", turn_page)
    app.connect("include-read", turn_included)
