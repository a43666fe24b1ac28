"""`--preset auto` where images are few or small, or weights are given; and that nothing it chooses is
warned of."""

import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino.config import as_dict, change
from dino.training.checks import check_settings
from dino.training.config import TrainConfig
from dino.training.plan import build_plan
from dino.training.preset import CHOSEN, RATE, Scale, choose_values
from dino.training.small_data import FEW_IMAGES, Start, choose_crops

SIZES = ("patch_size", "global_crops_size", "local_crops_size")
VIT = Start(arch="vit_small", patch_size=16, image_size=224)
# side in pixels: patch, global and local crops of the small network
SMALL = {
    8: (4, 8, 4),
    32: (4, 32, 16),
    48: (4, 48, 24),
    64: (8, 64, 32),
    100: (8, 64, 32),
    500: (8, 64, 32),
}


def choose(images=400, batch=32, epochs=30, **more):
    scale = Scale(images=images, global_batch=batch, epochs=epochs, **more)
    return {name: choice.value for name, choice in choose_values(scale).items()}


@pytest.mark.parametrize(("side", "expected"), SMALL.items())
def test_few_images_get_a_small_network_and_crops_that_they_fill(side, expected):
    found = choose(side=side)
    assert tuple(found[name] for name in SIZES) == expected
    assert (found["arch"], found["drop_path_rate"]) == ("vit_micro", 0.0)
    assert (found["local_crops_number"], found["use_bn_in_head"]) == (2, True)


def test_a_device_without_batch_norm_gets_none_and_many_images_keep_the_originals_network():
    assert "use_bn_in_head" not in choose(side=224, batch_norm=False)
    many = choose(images=FEW_IMAGES + 1, side=500)
    assert not many.keys() & {*SIZES, "arch", "local_crops_number", "use_bn_in_head"}


def test_many_small_images_get_patches_and_crops_that_they_fill():
    found = choose(images=50_000, side=32)
    assert tuple(found[name] for name in SIZES) == (4, 32, 16)
    assert "arch" not in found
    given_patch = choose(images=50_000, side=100, patch_size=16)
    assert (given_patch["global_crops_size"], given_patch["local_crops_size"]) == (96, 48)
    assert "patch_size" not in given_patch


def test_a_given_network_keeps_the_originals_crops_where_images_fill_them():
    assert not choose(side=224, network="vit_tiny").keys() & {*SIZES, "arch"}
    assert choose(side=64, network="vit_tiny")["global_crops_size"] == 64


@given(st.integers(1, 3000), st.sampled_from([4, 8, 14, 16, 32]), st.integers(16, 600))
def test_crops_are_whole_patches_within_the_image(side, patch, wanted):
    large, small = (choice.value for choice in choose_crops(wanted, side, patch).values())
    assert large % patch == small % patch == 0
    assert patch <= small < large
    assert large <= max(2 * patch, min(wanted, side))


def test_given_weights_choose_their_network_and_a_slow_beginning():
    found = choose(side=500, start=VIT, epochs=40)
    assert (found["arch"], *(found[name] for name in SIZES)) == ("vit_small", 16, 224, 112)
    assert found["lr"] == RATE / 10
    assert found["freeze_last_layer"] == found["warmup_epochs"] == 4
    own = {"mean": (0.5,) * 3, "std": (0.5,) * 3}
    convnet = Start(arch="resnet18", patch_size=None, image_size=128, normalization=own)
    found = choose(side=100, start=convnet, epochs=1)
    assert "patch_size" not in found
    assert (found["global_crops_size"], found["mean"], found["std"]) == (96, *own.values())
    assert found["freeze_last_layer"] == found["warmup_epochs"] == 0


@pytest.mark.parametrize("images", [50, 400, 5_000, 20_000, 20_001, 100_000, 2_000_000])
def test_nothing_that_is_chosen_is_warned_of_when_the_run_begins(images, caplog):
    for batch in (4, 64, 1024):
        for epochs in (1, 30, 800):
            for more in ({"side": 32}, {"side": 75}, {"side": 500}, {"side": 224, "start": VIT}):
                found = choose(images, batch, epochs, **more)
                assert found.keys() <= set(CHOSEN)
                config = change(TrainConfig(), {"epochs": epochs, **found})
                check_settings(config)
                build_plan(config, iterations=2, world_size=1)
                assert as_dict(config)["lr"] == found["lr"]
    assert not [record for record in caplog.records if record.levelno >= logging.WARNING]
