"""Where a network's parts lie, and how many micro-batches the pipeline needs."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dino.devices.ipu.pipeline import place_blocks
from dino.errors import OptionError
from dino.models.head import DINOHead
from dino.models.multicrop import MultiCrop
from dino.models.registry import VITS, build_backbone

# blocks of each chip, depth, chip of each block, least accumulation: counted in the published code
PUBLISHED = {
    (1, 2, 2, 2, 2, 2, 1, 0): (12, (0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5, 6), 47),
    (4, 4, 4, 0): (12, (0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2), 23),
    (3, 0): (3, (0, 0, 0), 11),
}


def build_network(arch):
    backbone = build_backbone(arch, patch_size=8, img_size=16)
    return MultiCrop(backbone, DINOHead(in_dim=backbone.embed_dim, out_dim=16, hidden_dim=8))


def names_of(network):
    return [name for name, _ in network.named_parameters()]


@pytest.mark.parametrize(("pipeline", "wanted"), PUBLISHED.items(), ids=str)
def test_the_published_layouts(pipeline, wanted):
    depth, blocks, least = wanted
    network = build_network({12: "vit_tiny", 3: "vit_mini"}[depth])
    placement = place_blocks(pipeline, depth)
    assert placement.blocks == blocks
    assert (placement.hidden, placement.prototypes) == (len(pipeline) - 2, len(pipeline) - 1)
    assert placement.stages(names_of(network)) == least


def test_each_parameter_has_its_chip():
    placement = place_blocks((1, 2, 2, 2, 2, 2, 1, 0), 12)
    chips = {
        "backbone.cls_token": 0,
        "backbone.pos_embed": 0,
        "backbone.patch_embed.proj.weight": 0,
        "backbone.blocks.0.norm1.weight": 0,
        "backbone.blocks.10.mlp.fc1.bias": 5,
        "backbone.norm.weight": 6,
        "head.mlp.0.weight": 6,
        "head.last_layer.weight_v": 7,
    }
    assert {name: placement.chip_of(name) for name in chips} == chips


def test_without_a_layout_all_is_on_one_chip():
    placement = place_blocks(None, None)
    names = names_of(build_network("vit_mini"))
    assert {placement.chip_of(name) for name in names} == {0}
    assert placement.stages(names) == 1


@pytest.mark.parametrize(
    ("pipeline", "depth", "text"),
    [
        ((4, 4), 12, "`pipeline` 4 4 places 8 blocks, the backbone has 12"),
        ((1,), None, "places the blocks of a vision transformer; leave it out"),
    ],
)
def test_a_layout_of_another_network_is_refused(pipeline, depth, text):
    with pytest.raises(OptionError, match=text):
        place_blocks(pipeline, depth)


@given(st.lists(st.integers(0, 5), min_size=1, max_size=8))
def test_blocks_stay_in_order_on_as_many_chips(pipeline):
    placement = place_blocks(pipeline, sum(pipeline))
    assert list(placement.blocks) == sorted(placement.blocks)
    assert [placement.blocks.count(chip) for chip in range(len(pipeline))] == pipeline
    assert 0 <= placement.hidden <= placement.prototypes == placement.chips - 1


def test_annotations_name_each_change_of_chip():
    network = build_network("vit_tiny")
    found = place_blocks((4, 4, 4, 0), VITS["vit_tiny"].depth).annotations(network)
    blocks = list(network.backbone.blocks)
    wanted = [(network.backbone.patch_embed, 0), (blocks[4], 1), (blocks[8], 2)]
    assert found == [*wanted, (network.head.mlp, 2), (network.head.last_layer, 3)]
