"""Every backbone by its name: features of the stated width, no classifier, any number of
channels."""

import pytest
import timm
import torch
from torch import nn

from dino.errors import OptionError
from dino.models.registry import VITS, build_backbone, check_arch, is_vit, set_recompute

# Architecture, feature width, and the start of its classifier's names.
SOME = [
    ("vit_mini", 96, "head"),
    ("resnet18", 512, "fc"),
    ("mobilenet_v3_small", 1024, "classifier.3"),
    ("squeezenet1_0", 512, "classifier"),
    ("xcit_nano_12_p16", 128, "head"),
    ("timm:resnet18", 512, "fc"),
    ("timm:mobilenetv3_small_050", 1024, "classifier"),  # wider than its last feature map
    ("timm:vgg11", 4096, "head.fc"),  # without stochastic depth
]


@pytest.mark.parametrize("in_chans", [3, 1])
@pytest.mark.parametrize(("arch", "width", "classifier"), SOME)
def test_a_backbone_gives_features_and_has_no_classifier(arch, width, classifier, in_chans):
    torch.manual_seed(0)
    backbone = build_backbone(arch, in_chans=in_chans, img_size=64).eval()
    assert backbone.embed_dim == width
    with torch.no_grad():
        features = backbone(torch.randn(2, in_chans, 64, 64))
    assert features.shape == (2, width)
    assert torch.isfinite(features).all() and features.std() > 0
    assert not [name for name in backbone.state_dict() if name.startswith(classifier)]


@pytest.mark.parametrize("in_chans", [3, 1])
def test_resnet50_keeps_torchvisions_names_and_published_shapes(in_chans):
    state = build_backbone("resnet50", in_chans=in_chans).state_dict()
    assert len(state) == 318
    assert state["conv1.weight"].shape == (64, in_chans, 7, 7)
    assert "layer4.2.bn3.running_var" in state
    assert not [name for name in state if name.startswith("fc")]


def test_another_number_of_channels_changes_the_first_convolution_only():
    color, gray = build_backbone("resnet18"), build_backbone("resnet18", in_chans=1)
    shapes = [
        {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
        for net in (color, gray)
    ]
    assert {name for name in shapes[0] if shapes[0][name] != shapes[1][name]} == {"conv1.weight"}
    assert (gray.conv1.stride, gray.conv1.padding, gray.conv1.bias) == ((2, 2), (3, 3), None)


def test_a_backbone_can_be_trained_through():
    torch.manual_seed(0)
    backbone = build_backbone("resnet18").train()
    backbone(torch.randn(2, 3, 64, 64)).square().sum().backward()
    assert all(parameter.grad is not None for parameter in backbone.parameters())


@pytest.mark.parametrize(
    ("arch", "shape"),
    [
        ("vit_mini", (96, 3, 3, 192)),
        ("vit_tiny", (192, 12, 3, 768)),
        ("vit_small", (384, 12, 6, 1536)),
        ("vit_base", (768, 12, 12, 3072)),
        ("deit_tiny", (192, 12, 3, 768)),
        ("deit_small", (384, 12, 6, 1536)),
    ],
)
def test_vision_transformers_have_the_published_shapes(arch, shape):
    backbone = build_backbone(arch)
    first = backbone.blocks[0]
    assert (
        backbone.embed_dim,
        len(backbone.blocks),
        first.attn.heads,
        first.mlp.fc1.out_features,
    ) == shape


def test_the_small_one_has_the_papers_number_of_parameters():
    assert (
        sum(parameter.numel() for parameter in build_backbone("vit_small").parameters())
        == 21_665_664
    )


def test_options_reach_the_vision_transformer():
    backbone = build_backbone("vit_mini", patch_size=8, in_chans=1, img_size=40, drop_path_rate=0.4)
    assert backbone.patch_embed.proj.weight.shape == (96, 1, 8, 8)
    assert backbone.pos_embed.shape == (1, 26, 96)
    assert backbone.blocks[-1].drop_path.rate == pytest.approx(0.4)


def test_stochastic_depth_reaches_timm():
    rates = [
        part.drop_prob
        for part in build_backbone("xcit_nano_12_p16", drop_path_rate=0.2).modules()
        if type(part).__name__ == "DropPath"
    ]
    assert rates and max(rates) == pytest.approx(0.2)


@pytest.mark.parametrize("arch", ["swin_t", "efficientnet_b0"])
def test_stochastic_depth_reaches_torchvision(arch):
    rates = [
        part.p
        for part in build_backbone(arch, drop_path_rate=0.3).modules()
        if type(part).__name__ == "StochasticDepth"
    ]
    assert rates == sorted(rates) and (rates[0], rates[-1]) == pytest.approx((0, 0.3))
    still = build_backbone(arch, drop_path_rate=0.0)
    assert not any(getattr(part, "p", 0) for part in still.features.modules())


@pytest.mark.parametrize(
    "name", ["test_vit", "vit_tiny_patch16_224", "swin_tiny_patch4_window7_224"]
)
def test_a_network_of_timm_that_takes_any_size_is_timms_at_its_own(name):
    theirs = timm.create_model(name, num_classes=0).eval()
    ours = build_backbone(f"timm:{name}").eval()
    ours.load_state_dict(theirs.state_dict())
    images = torch.randn(1, *theirs.pretrained_cfg["input_size"])
    with torch.no_grad():
        assert torch.equal(ours(images), theirs(images))
        assert ours(images[..., :96, :96]).shape == (1, ours.embed_dim)


def test_blocks_of_timms_networks_are_computed_again_too():
    torch.manual_seed(0)
    backbone, images = (
        build_backbone("timm:vit_tiny_patch16_224").train(),
        torch.randn(2, 3, 224, 224),
    )
    calls, gradients = [], []
    backbone.blocks[0].mlp.register_forward_pre_hook(lambda *_: calls.append(1))
    for what in ("nothing", "blocks"):
        set_recompute(backbone, what)
        backbone.zero_grad()
        backbone(images).square().sum().backward()
        gradients.append([part.grad for part in backbone.parameters()])
    assert len(calls) == 3  # once without, and again in the second backward pass
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize(
    ("arch", "what"),
    [
        ("resnet50", "activations"),
        ("resnet50", "blocks"),
        ("timm:vit_tiny_patch16_224", "activations"),
        ("timm:resnet18", "blocks"),  # its batch norm would see each batch twice
        ("timm:convit_tiny", "blocks"),  # refuses by an assertion
    ],
)
def test_what_cannot_be_computed_again_is_refused(arch, what):
    backbone = build_backbone(arch)
    set_recompute(backbone, "nothing")
    with pytest.raises(OptionError, match=f"^`recompute` {what} needs a vision transformer"):
        set_recompute(backbone, what)


@pytest.mark.parametrize(
    "arch", [*VITS, "resnet50", "xcit_small_12_p16", "xcit_nano_12_p16_224", "timm:resnet18"]
)
def test_known_names_pass(arch):
    check_arch(arch)


@pytest.mark.parametrize(
    ("arch", "near"),
    [
        ("vit_smal", "vit_small"),
        ("resnet5", "resnet50"),
        ("xcit_smal_12_p16_224", "xcit_small_12_p16_224"),
    ],
)
def test_an_unknown_name_is_refused_and_the_nearest_named(arch, near):
    for call in (check_arch, build_backbone):
        with pytest.raises(OptionError, match=rf"^`arch` {arch} is unknown: did you mean {near}\?"):
            call(arch)


@pytest.mark.parametrize(
    "arch", ["", "timm:", "timm:no_such_model", "xcit_", "fasterrcnn_resnet50_fpn"]
)
def test_names_that_are_no_classification_backbone_are_refused(arch):
    with pytest.raises(OptionError, match="is unknown"):
        check_arch(arch)


def test_a_name_that_is_near_to_none_gets_the_families_on_one_short_line():
    with pytest.raises(
        OptionError, match=r"^`arch` qqq is unknown: known are vit_small and .* timm:NAME"
    ) as refusal:
        check_arch("qqq")
    assert len(str(refusal.value)) < 150


def test_only_our_own_transformers_have_patches_to_look_at():
    assert is_vit("deit_small") and not is_vit("xcit_nano_12_p16") and not is_vit("resnet50")


def test_batch_norm_backbones_can_be_given_synchronized_batch_norm():
    backbone = build_backbone("resnet18")
    assert any(isinstance(part, nn.modules.batchnorm._BatchNorm) for part in backbone.modules())
