"""The published weights are the recorded ones, and found in the user's mirror folder."""

import json
import logging
from pathlib import Path

import pytest

from dino.errors import CheckpointError, WeightsError
from dino.models.config import BackboneConfig, WeightsConfig
from dino.models.registry import is_vit
from dino.weights.hub import (
    HUB,
    PUBLISHED,
    PUBLISHED_FOR_RETRIEVAL,
    PUBLISHED_LINEAR,
    PUBLISHED_ROOT,
    find_mirrored,
    find_published,
    load_published,
    read_hub_name,
)
from dino.weights.load import load_backbone
from dino.weights.read import read_weights


def test_the_published_table_is_the_recorded_one(shared_facts: Path) -> None:
    facts = json.loads((shared_facts / "published_weights.json").read_text())
    recorded = facts["weights"]
    expected = {
        (entry["arch"], entry["patch_size"] if is_vit(entry["arch"]) else None): entry["backbone"]
        for entry in recorded
    }
    assert {key: PUBLISHED_ROOT + path for key, path in PUBLISHED.items()} == expected
    expected["vit_small", 16] = next(
        url for name, url in facts["other"].items() if "retrieval default" in name
    )
    assert {key: PUBLISHED_ROOT + path for key, path in PUBLISHED_FOR_RETRIEVAL.items()} == expected


def test_the_published_linear_layers_are_the_recorded_ones(
    shared_facts: Path,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.setenv("DINO_WEIGHTS_DIR", str(tmp_path))
    for entry in json.loads((shared_facts / "published_weights.json").read_text())["weights"]:
        path = tmp_path / entry["linear_head"].rsplit("/", 1)[1]
        path.touch()
        flags = BackboneConfig(arch=entry["arch"], patch_size=entry["patch_size"] or 16)
        with caplog.at_level(logging.INFO):
            assert find_published(flags, PUBLISHED_LINEAR) == path
        assert f"the published {entry['linear_head']}" in caplog.text


def test_the_names_of_the_hub_are_the_recorded_ones(shared_facts: Path) -> None:
    recorded = {
        name: (entry["arch"], entry["patch_size"])
        for entry in json.loads((shared_facts / "published_weights.json").read_text())["weights"]
        for name in entry["hub_names"]
    }
    assert HUB.keys() == recorded.keys()
    for name, (arch, patch_size) in recorded.items():
        flags = read_hub_name(name)
        assert flags.arch == arch
        assert not is_vit(arch) or flags.patch_size == patch_size


def test_an_unknown_name_of_the_hub_is_answered_with_the_nearest() -> None:
    with pytest.raises(
        WeightsError, match=r"hub:dino_vits15 is not published: did you mean dino_vits16\?"
    ):
        read_hub_name("dino_vits15")


def test_the_mirror_folder_gives_the_first_of_the_names_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("DINO_WEIGHTS_DIR", raising=False)
    assert find_mirrored("a", "b") is None
    monkeypatch.setenv("DINO_WEIGHTS_DIR", str(tmp_path))
    assert find_mirrored("a", "b") is None
    (tmp_path / "b").touch()
    (tmp_path / "a").mkdir()
    assert find_mirrored("a", "b") == tmp_path / "b"


def test_a_damaged_published_file_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.delenv("DINO_WEIGHTS_DIR", raising=False)
    path = tmp_path / "hub" / "checkpoints" / PUBLISHED["vit_small", 16].rsplit("/", 1)[1]
    path.parent.mkdir(parents=True)
    path.write_bytes(b"half a file")
    flags, weights = BackboneConfig(), WeightsConfig()
    for read in (
        lambda: read_weights("hub:dino_vits16"),
        lambda: load_published("dino_vits16"),
        lambda: load_backbone(flags, weights),
    ):
        with pytest.raises(
            CheckpointError,
            match=r"is damaged .*; remove it, and the published file is downloaded again",
        ):
            read()
