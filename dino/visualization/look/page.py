"""A page of sections: one HTML file that loads nothing, from the network or from disk.

There is no script. A content security policy allows only this page's style and pictures in it.
"""

from __future__ import annotations

import base64
import hashlib
import html
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from dino.files import MARK, atomic_write

PAGE = "index.html"
STYLE = """
:root{color-scheme:light}
*{box-sizing:border-box}
body{margin:0;background:#f6f6f3;color:#1d1f23;font:16px/1.5 system-ui,sans-serif}
main{max-width:1100px;margin:0 auto;padding:24px 16px 64px}
h1{font-size:30px;line-height:1.2;margin:8px 0;overflow-wrap:anywhere}
h2{font-size:20px;margin:0}
nav a{color:#2a5db0;margin-right:14px;display:inline-block}
dl{display:grid;grid-template-columns:max-content 1fr;gap:2px 16px;margin:14px 0 0;font-size:14px}
dt{color:#666}
dd{margin:0;overflow-wrap:anywhere}
section{background:#fff;border:1px solid #e3e3de;border-radius:10px;padding:18px;margin:18px 0 0}
section>p{color:#555;font-size:14px;margin:4px 0 12px;max-width:86ch}
.row{display:flex;gap:8px;overflow-x:auto;padding:8px 0}
.groups{display:flex;flex-wrap:wrap;gap:0 28px}
.groups .row{max-width:100%}
.wrap{display:grid;grid-template-columns:repeat(auto-fill,minmax(96px,1fr))}
.cards{display:grid;gap:4px 20px;
grid-template-columns:repeat(auto-fill,minmax(min(100%,500px),1fr))}
.cards figure{flex:1 1 0;width:0}
.charts{display:grid;grid-template-columns:repeat(auto-fill,minmax(220px,1fr));gap:14px}
figure{margin:0;flex:0 0 121px;width:121px}
.wrap figure,.charts figure{width:auto}
img,svg{display:block;width:100%;height:auto}
img{border-radius:5px;background:#eee}
.first img{outline:3px solid #2a5db0;outline-offset:-3px}
.patches img{image-rendering:pixelated}
figcaption{font-size:12px;line-height:1.35;color:#666}
figcaption,figcaption span{display:block;overflow:hidden;text-overflow:ellipsis;white-space:nowrap}
figcaption b{color:#1d1f23}
.map{overflow-x:auto}
.map svg{min-width:680px}
.key span{font-size:13px;margin-right:14px;display:inline-block}
.key svg{width:10px;display:inline}
pre{overflow-x:auto;font-size:12px;background:#f6f6f3;padding:12px;border-radius:6px}
"""


class Section(NamedTuple):
    """A part of the page: its title, a note on how to read it, both plain text, and its HTML."""

    title: str
    note: str
    body: str = ""


def escape(text: object) -> str:
    """Write any text, for example a file name of any bytes, as text of HTML, in one line."""
    known = str(text).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    shown = (letter if letter.isprintable() else ascii(letter)[1:-1] for letter in known)
    return html.escape("".join(shown))


def as_data(content: bytes, kind: str) -> str:
    """Write a picture as an address that holds its content; `kind` is jpeg or png."""
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"


def figure(picture: str, name: str, caption: str = "", *, css: str = "") -> str:
    """Draw a picture with a caption: a number or a word, then the image's name.

    Args:
        picture: Its data address.
        name: The image's name, or nothing if the picture before it shows the same image.
        caption: What comes before the name.
        css: Class of the figure.
    """
    bold = f"<b>{escape(caption)}</b>" if caption else ""
    plain = f"<span>{escape(name)}</span>" if name else ""
    shown = escape(name or caption)
    return (
        f'<figure class="{css}" title="{shown}"><img src="{picture}" alt="{shown}">'
        f"<figcaption>{bold}{plain}</figcaption></figure>"
    )


def rows(lines: Iterable[Iterable[str]], css: str = "") -> str:
    """Draw rows of figures; `css` is the class of a row."""
    return "".join(f'<div class="row {css}">{"".join(line)}</div>' for line in lines)


def build_page(title: str, facts: Mapping[str, object], sections: Sequence[Section]) -> str:
    """Write the page as text.

    Args:
        title: Its heading.
        facts: What was looked at, by name.
        sections: The parts, in order; a part without a body is left out, and its note says why.
    """
    style = base64.b64encode(hashlib.sha256(STYLE.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'sha256-{style}'"
    links = (f'<a href="#s{n}">{escape(s.title)}</a>' for n, s in enumerate(sections))
    parts = (
        f'<section id="s{n}"><h2>{escape(s.title)}</h2><p>{escape(s.note)}</p>{s.body}</section>'
        for n, s in enumerate(sections)
    )
    told = (f"<dt>{escape(name)}</dt><dd>{escape(fact)}</dd>" for name, fact in facts.items())
    return f"""<!DOCTYPE html>
<html lang="en">
<!-- {MARK} -->
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(title)}</title>
<style>{STYLE}</style>
</head>
<body><main>
<h1>{escape(title)}</h1>
<nav>{" ".join(links)}</nav>
<dl>{"".join(told)}</dl>
{"".join(parts)}
</main></body>
</html>
"""


def write_page(folder: Path, text: str) -> Path:
    """Write the page, whole or not at all; return its path.

    Raises:
        OptionError: It cannot be written.
    """
    with atomic_write(folder / PAGE, "") as temporary:
        temporary.write_text(text, encoding="utf-8")
    return folder / PAGE
