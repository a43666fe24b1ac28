"""Maps of features: a ViT's patch tokens, a convnet's last map; what has none is refused."""

import pytest
import torch
from torch import nn

from dino.errors import OptionError
from dino.models.dense import build_dense
from dino.models.registry import build_backbone


@torch.inference_mode()
def compute_map(module: nn.Module, height: int, width: int) -> torch.Tensor:
    torch.manual_seed(0)
    return build_dense(module.eval(), "any")(torch.rand(2, 3, height, width))


@pytest.mark.parametrize(("height", "width"), [(64, 64), (48, 96), (70, 50)])
def test_a_vits_map_is_its_patch_tokens_row_by_row(height: int, width: int) -> None:
    network = build_backbone("vit_mini", patch_size=16, img_size=64)
    found = compute_map(network, height, width)
    rows, columns = height // 16, width // 16
    assert found.shape == (2, 96, rows, columns)
    torch.manual_seed(0)
    with torch.inference_mode():
        tokens = network.get_intermediate_layers(torch.rand(2, 3, height, width), n=1)[0]
    for row in range(rows):
        for column in range(columns):
            torch.testing.assert_close(
                found[:, :, row, column], tokens[:, 1 + row * columns + column]
            )


@pytest.mark.parametrize("size", [(63, 64), (64, 63)])
def test_an_image_without_room_for_a_patch_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(
        OptionError,
        match=f"`patch_size` 64 must not exceed the image.s {size[0]} x {size[1]} pixels",
    ):
        compute_map(build_backbone("vit_mini", patch_size=64, img_size=64), *size)


def test_a_resnets_map_is_what_it_pools() -> None:
    network = build_backbone("resnet18")
    found = compute_map(network, 96, 160)
    assert found.shape == (2, 512, 3, 5)
    torch.manual_seed(0)
    with torch.inference_mode():
        torch.testing.assert_close(found.mean(dim=(2, 3)), network(torch.rand(2, 3, 96, 160)))


@pytest.mark.parametrize(
    ("arch", "shape"),
    [
        *[
            ("shufflenet_v2_x0_5", (1024, 3, 5)),
            ("mobilenet_v3_small", (576, 3, 5)),
            ("squeezenet1_1", (512, 5, 9)),
        ],
        *[
            ("regnet_y_400mf", (440, 3, 5)),
            ("mnasnet0_5", (1280, 3, 5)),
            ("densenet121", (1024, 3, 5)),
        ],
        *[
            ("swin_t", (768, 3, 5)),
            ("xcit_nano_12_p16", (128, 6, 10)),
            ("timm:convnext_atto", (320, 3, 5)),
        ],
    ],
)
def test_other_networks_have_one_too(arch: str, shape: tuple[int, ...]) -> None:
    assert compute_map(build_backbone(arch), 96, 160).shape == (2, *shape)


def test_a_network_without_a_map_is_refused_by_name() -> None:
    with pytest.raises(OptionError, match="`arch` odd has no feature map"):
        build_dense(nn.Linear(3, 3), "odd")
