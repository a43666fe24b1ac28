"""A page as a reader of HTML sees it: tags, texts, and whether it loads anything."""

from __future__ import annotations

from html.parser import HTMLParser
from pathlib import Path

LINKS = {"src", "href", "xlink:href", "srcset", "action", "data", "poster", "background", "cite"}
WITHOUT_END = {"meta", "img", "circle", "rect", "image", "polyline"}


class Page(HTMLParser):
    """Tags with their attributes, and the texts between them."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.source = text
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.open: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in WITHOUT_END:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in WITHOUT_END:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.texts.append(data)

    @property
    def text(self) -> str:
        return " ".join("".join(self.texts).split())

    def values(self, tag: str, name: str) -> list[str]:
        return [attrs[name] or "" for held, attrs in self.tags if held == tag and name in attrs]


def read_page(path: Path) -> Page:
    """Read a page and check that it loads nothing and is closed."""
    page = Page(path.read_text(encoding="utf-8"))
    assert page.open == []
    ids = page.values("section", "id")
    for tag, attrs in page.tags:
        assert tag not in {"script", "iframe", "link", "object", "base", "form"}
        assert not any(name.startswith("on") or name == "style" for name in attrs)
        for name in LINKS & attrs.keys():
            value = attrs[name] or ""
            assert value.startswith("data:image/") or value.removeprefix("#") in ids, value[:80]
    assert "url(" not in page.source and "@import" not in page.source
    [policy] = [
        attrs["content"]
        for tag, attrs in page.tags
        if tag == "meta" and attrs.get("http-equiv") == "Content-Security-Policy"
    ]
    assert policy and policy.startswith("default-src 'none'; img-src data:; style-src 'sha256-")
    return page
