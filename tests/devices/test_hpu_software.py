"""What is known of a Gaudi machine's software before anything of it is imported."""

import importlib
import json
import sys

import pytest

from dino.devices.hpu import software

# Folders that the vendor's wheel of that name brings; none has a file of its own at the top.
MEDIA_LOADER = (
    "mediapipe",
    "mediapipe/backend",
    "mediapipe/operators",
    "medialoaders",
    "medialoaders/torch",
)


@pytest.fixture
def site(tmp_path, monkeypatch):
    """A folder that packages are found in; gives a function that puts some there."""
    monkeypatch.setattr(
        sys,
        "modules",
        {k: v for k, v in sys.modules.items() if not k.startswith("habana_frameworks")},
    )
    monkeypatch.syspath_prepend(str(tmp_path))

    def install(*packages, code="raise AssertionError('imported')"):
        for package in packages:
            folder = tmp_path / "habana_frameworks" / package
            folder.mkdir(parents=True)
            (folder / "__init__.py").write_text(code)
        importlib.invalidate_caches()
        return tmp_path / "habana_frameworks"

    return install


def test_the_media_loader_alone_is_no_bridge(site):
    site(*MEDIA_LOADER)
    assert software.is_bridge_installed() is False


def test_the_bridge_is_found_and_not_imported(site):
    site(*MEDIA_LOADER, "torch")
    assert software.is_bridge_installed() is True
    assert software.BRIDGE not in sys.modules


def test_what_an_uninstalled_bridge_leaves_behind_is_no_bridge(site):
    (site("mediapipe") / "torch" / "__pycache__").mkdir(parents=True)
    assert software.is_bridge_installed() is False


def test_without_any_of_it_there_is_no_bridge(site):
    site()
    assert software.is_bridge_installed() is False


@pytest.mark.parametrize(
    ("version", "release"),
    [
        ("1.24.1.482", (1, 24)),
        ("1.24.0-1007", (1, 24)),
        ("1.20.1-366eb9c", (1, 20)),
        ("", None),
        (None, None),
    ],
)
def test_a_release_is_two_numbers(version, release):
    assert software.read_release(version) == release


@pytest.mark.parametrize(
    ("version", "vendors"),
    [
        ("2.5.1a0+git354fc07", True),
        ("2.6.0+hpu_1.21.2-76.gitabf798b", True),
        ("2.7.1+hpu.1.22.2.32.git6dbe0a4", True),
        ("2.9.0+hpu_1.23.1-25.git8598e6d", True),
        ("2.10.0+cpu", False),
        ("2.14.1+cu130", False),
        ("2.11.0", False),
        ("2.11.0a0", False),
        (None, False),
    ],
)
def test_the_vendors_torch_is_known_by_its_local_version(version, vendors):
    assert software.is_vendor_torch(version) is vendors


def test_the_facts_know_the_same_torches(shared_facts):
    facts = json.loads((shared_facts / "software_releases.json").read_text())["releases"]
    for name, release in facts.items():
        torch = software.read_release(release.get("torch", {}).get("value") or "")
        assert torch is None or torch in software.TORCH_OF_RELEASE[software.read_release(name)], (
            name
        )
        local = release.get("torch_local", {}).get("value", [])
        assert all(
            software.is_vendor_torch(version.split()[0]) for version in local if "+" in version
        ), name
