"""The documents build as a site without a warning, and a link that leads nowhere is one."""

import importlib.util
import re
import runpy
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
MISSING = [
    name for name in ("sphinx", "furo", "myst_parser") if importlib.util.find_spec(name) is None
]

needs_generator = pytest.mark.skipif(
    bool(MISSING),
    reason=f"no site: {', '.join(MISSING)} missing; pip install -r requirements-docs.txt",
)


def build(docs, target):
    """Build as `make docs` does."""
    words = [
        "-W",
        "--keep-going",
        "-q",
        "-b",
        "html",
        "-d",
        str(target / "cache"),
        str(docs),
        str(target / "html"),
    ]
    return subprocess.run(
        [sys.executable, "-m", "sphinx", *words], capture_output=True, text=True, check=False
    )


@pytest.fixture
def configuration(monkeypatch):
    """The names of docs/conf.py; what it adds to the path of modules is taken back."""
    monkeypatch.setattr(sys, "path", [*sys.path])
    return runpy.run_path(str(DOCS / "conf.py"))


@needs_generator
def test_site_builds_without_warnings(tmp_path):
    done = build(DOCS, tmp_path)
    assert done.returncode == 0, done.stderr
    pages = {path.stem for path in (tmp_path / "html").glob("*.html")}
    assert {path.stem for path in DOCS.glob("*.md")} <= pages
    api = (tmp_path / "html" / "api.html").read_text(encoding="utf-8")
    assert 'id="dino.errors.OptionError"' in api
    front = (tmp_path / "html" / "index.html").read_text(encoding="utf-8")
    assert 'href="gaudi.html"' in front, "README.md is the front page, and its links are the site's"


@needs_generator
@pytest.mark.parametrize(
    ("link", "warning"),
    [
        ("(no_such_page.md)", "no_such_page.md"),
        ("(../no_such_file)", "no_such_file"),
        ("(index.md#no-such-heading)", "no-such-heading"),
    ],
)
def test_broken_link_fails_the_build(tmp_path, link, warning):
    docs = tmp_path / "docs"
    docs.mkdir()
    shutil.copy(DOCS / "conf.py", docs)
    (docs / "index.md").write_text(f"# Page\n\n[words]{link}\n", encoding="utf-8")
    done = build(docs, tmp_path / "site")
    assert done.returncode != 0
    assert warning in done.stderr


@pytest.mark.parametrize(
    ("folder", "written", "turned"),
    [
        (ROOT, "[Gaudi](docs/gaudi.md#modes)", "[Gaudi](gaudi.md#modes)"),
        (DOCS, "[Gaudi](gaudi.md)", "[Gaudi](gaudi.md)"),
        (DOCS, "[README](../README.md#on-gaudi)", "[README](index.md#on-gaudi)"),
        (ROOT, "[how to](CONTRIBUTING.md)", "[how to](contributing.md)"),
        (DOCS, "[this page](#modes)", "[this page](#modes)"),
        (
            DOCS,
            "[paper](https://arxiv.org/abs/2104.14294)",
            "[paper](https://arxiv.org/abs/2104.14294)",
        ),
        (DOCS, "all of [the tests](../tests).", "all of the tests."),
        (ROOT, "see [LICENSE](LICENSE)", "see LICENSE"),
        (ROOT, "![picture](docs/index.md)", "![picture](index.md)"),
        (DOCS, "[gone](../no_such_file)", "[gone](../no_such_file)"),
    ],
)
def test_links_of_the_repository_become_links_of_the_site(configuration, folder, written, turned):
    assert configuration["point_into_site"](written, folder) == turned


def test_pages_above_docs_are_included_where_links_to_them_lead(configuration):
    assert "README.md" in configuration["PAGES"]
    for above, page in configuration["PAGES"].items():
        text = (DOCS / page).read_text(encoding="utf-8")
        assert re.findall(r"\{include\} \.\./(\S+)", text) == [above]
