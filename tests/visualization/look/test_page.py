"""The page: names of any bytes are text, nothing is loaded, and its style is the one its policy
allows."""

from __future__ import annotations

import base64
import hashlib
import os
from pathlib import Path

import pytest

from dino.errors import OptionError
from dino.files import MARK
from dino.visualization.look.page import (
    PAGE,
    Section,
    as_data,
    build_page,
    escape,
    figure,
    rows,
    write_page,
)
from tests.pages import read_page

HOSTILE = "<script>alert('1')</script> \"&amp;\n\x00\u202e.png"


def test_hostile_names_are_text(tmp_path: Path) -> None:
    odd = os.fsdecode(b"caf\xe9.png")
    body = rows([[figure(as_data(b"1", "png"), HOSTILE, HOSTILE), figure("data:image/png,", odd)]])
    text = build_page(HOSTILE, {HOSTILE: HOSTILE}, [Section(HOSTILE, HOSTILE, body)])
    page = read_page(write_page(tmp_path, text))
    shown = "<script>alert('1')</script> \"&amp;\\n\\x00\\u202e.png"
    assert page.text.count(shown) == 9  # title, heading, link, fact (2), section (2), caption (2)
    assert page.values("img", "alt") == [shown, "caf\\xe9.png"]
    assert page.values("figure", "title") == [shown, "caf\\xe9.png"]
    assert page.values("img", "src")[0] == "data:image/png;base64,MQ=="


def test_text_that_can_be_shown_stays() -> None:
    assert escape("größe 東京 1.png") == "größe 東京 1.png"


def test_the_policy_allows_the_pages_style_and_no_other(tmp_path: Path) -> None:
    page = read_page(write_page(tmp_path, build_page("title", {}, [])))
    style = page.source.split("<style>")[1].split("</style>")[0]
    digest = base64.b64encode(hashlib.sha256(style.encode()).digest()).decode()
    assert f"style-src 'sha256-{digest}'" in page.source
    assert MARK in page.source


def test_links_lead_to_the_sections(tmp_path: Path) -> None:
    sections = [Section("One", "first", "<b>body</b>"), Section("Two", "left out")]
    page = read_page(write_page(tmp_path, build_page("title", {"images": 3}, sections)))
    assert page.values("a", "href") == [f"#{name}" for name in page.values("section", "id")]
    assert "images 3" in page.text.replace("images3", "images 3") and "left out" in page.text


def test_a_page_that_cannot_be_written_leaves_the_one_before(tmp_path: Path) -> None:
    write_page(tmp_path, "before")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / PAGE).mkdir()
    with pytest.raises(OptionError, match="index.html cannot be written"):
        write_page(tmp_path / "full", "after")
    with pytest.raises(UnicodeEncodeError):
        write_page(tmp_path, "after \udce9")
    assert (tmp_path / PAGE).read_text() == "before"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["full", PAGE]
