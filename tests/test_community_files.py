"""What a host of repositories reads beside the code: it parses, and says of the package what is
so."""

import re
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
CI = ".github/workflows/ci.yml"


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def read_steps(job):
    return [step["run"] for step in job["steps"] if "run" in step]


@pytest.fixture(scope="module")
def jobs():
    return yaml.safe_load(read(CI))["jobs"]


@pytest.fixture(scope="module")
def version():
    return re.search(r'^__version__ = "(.+)"$', read("dino/__init__.py"), re.MULTILINE)[1]


@pytest.fixture(scope="module")
def oldest():
    """The oldest versions that the package promises to work with: Python's, torch's and
    torchvision's."""
    python = re.search(r'requires-python = ">=([\d.]+)"', read("pyproject.toml"))[1]
    torch, vision = (
        re.search(rf"^{name}>=([\d.]+)$", read("requirements-torch.txt"), re.MULTILINE)[1]
        for name in ("torch", "torchvision")
    )
    return python, torch, vision


def test_changelog_and_citation_are_of_the_packages_version(version):
    headings = re.findall(r"^## \[(.+?)\]", read("CHANGELOG.md"), re.MULTILINE)
    assert version in headings[:2], "the newest version, below changes that have none yet"
    assert yaml.safe_load(read("CITATION.cff"))["version"] == version


def test_citation_names_the_paper():
    [paper] = yaml.safe_load(read("CITATION.cff"))["references"]
    assert (paper["authors"][0]["family-names"], paper["year"]) == ("Caron", 2021)


@pytest.mark.parametrize("name", ["CONTRIBUTING.md", "CHANGELOG.md", "SECURITY.md"])
def test_files_and_links_that_are_named_exist(name):
    text = read(name)
    linked = re.findall(r"\]\(([^):#]+)(?:#[^)]*)?\)", text)
    named = re.findall(r"`((?:dino|tests|docs|tools|configs)/[\w./-]*)`", text)
    places = (ROOT, ROOT / "dino" / "presets")  # recipes are named as `--config` takes them
    found = {path for path in [*linked, *named] for place in places if (place / path).exists()}
    assert [path for path in [*linked, *named] if "NAME" not in path and path not in found] == []


def test_ci_calls_targets_that_make_has(jobs):
    called = {
        target
        for job in jobs.values()
        for step in read_steps(job)
        for target in re.findall(r"make (\S+)", step)
    }
    assert called == {"test", "test-ipu", "test-s3", "docs"}
    assert called <= set(re.findall(r"^([\w-]+):", read("Makefile"), re.MULTILINE))


def test_ci_tests_the_oldest_versions_that_are_promised(jobs, oldest):
    python, torch, vision = oldest
    [pythons] = [
        step["with"]["python-version"]
        for step in jobs["floor"]["steps"]
        if "setup-python" in str(step)
    ]
    assert pythons == python
    install = read_steps(jobs["floor"])[0]
    assert re.search(
        rf"torch=={re.escape(torch)}\.\d+ torchvision=={re.escape(vision)}\.\d+\b", install
    )


def test_ci_has_no_rights_and_keeps_no_credentials(jobs):
    assert yaml.safe_load(read(CI))["permissions"] == {"contents": "read"}
    checkouts = [
        step
        for job in jobs.values()
        for step in job["steps"]
        if "actions/checkout" in step.get("uses", "")
    ]
    assert len(checkouts) == len(jobs)
    assert all(step["with"]["persist-credentials"] is False for step in checkouts)


def test_pre_commit_formats_with_a_ruff_that_the_tests_accept():
    hooks = {
        repo["repo"].rpartition("/")[2]: repo
        for repo in yaml.safe_load(read(".pre-commit-config.yaml"))["repos"]
    }
    pinned = [int(part) for part in hooks["ruff-pre-commit"]["rev"].removeprefix("v").split(".")]
    bound = re.search(r"^ruff>=([\d.]+)", read("requirements-test.txt"), re.MULTILINE)[1]
    assert pinned >= [int(part) for part in bound.split(".")]
