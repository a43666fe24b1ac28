"""Attention written out equals torch's; the card's fused one is found by its name, or refused."""

import pytest
import torch
import torch.nn.functional as F

from dino.devices import open_device
from dino.devices.attention import attend_explicitly
from dino.devices.config import DeviceConfig, PrecisionConfig
from dino.devices.hpu import attention
from dino.errors import OptionError
from dino.models.registry import set_attention
from dino.models.vit import VisionTransformer


@pytest.mark.usefixtures("device")
@pytest.mark.parametrize("queries", [1, 37])
def test_attention_written_out_equals_torchs_and_so_do_its_gradients(queries, relative_error):
    torch.manual_seed(0)
    results = []
    drawn = [torch.randn(2, 3, tokens, 16) for tokens in (queries, 37, 37)]
    for attend in (attend_explicitly, F.scaled_dot_product_attention):
        leaves = [part.clone().requires_grad_() for part in drawn]
        mixed = attend(*leaves)
        mixed.square().sum().backward()
        results.append([mixed.detach(), *(leaf.grad for leaf in leaves)])
    for found, expected in zip(*results, strict=True):
        assert relative_error(found, expected) <= 1e-5


def test_a_network_attends_as_it_is_told():
    calls, backbone = (
        [],
        VisionTransformer(img_size=16, patch_size=8, embed_dim=8, depth=3, heads=2),
    )

    def attend(*parts):
        calls.append(len(parts))
        return attend_explicitly(*parts)

    set_attention(backbone, attend)
    images = torch.randn(2, 3, 16, 16)
    with torch.no_grad():
        found = backbone(images)
        set_attention(backbone, F.scaled_dot_product_attention)
        torch.testing.assert_close(found, backbone(images))
    assert calls == [3, 3, 3]


def test_other_networks_keep_their_attention():
    set_attention(torch.nn.Linear(1, 1), attend_explicitly)


@pytest.mark.parametrize("setting", [None, "explicit"])
def test_attention_on_the_card_is_written_out_unless_asked_otherwise(setting):
    assert attention.choose_attention(setting) is attend_explicitly


def test_fused_attention_is_looked_up_by_its_name(monkeypatch):
    asked = []

    def has_kernel(name, key):
        asked.append((name, key))
        return len(asked) > 1

    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", has_kernel)
    with pytest.raises(OptionError, match=r"`attention` fused needs a Habana bridge of 1.24"):
        attention.choose_attention("fused")
    assert attention.choose_attention("fused") is not attend_explicitly
    assert asked == [(attention.FUSED, "HPU")] * 2


@pytest.mark.parametrize(("setting", "chosen"), [(None, None), ("fused", None)])
def test_other_devices_attend_by_torchs_own(setting, chosen):
    device = open_device(DeviceConfig(device="cpu"), precision=PrecisionConfig(attention=setting))
    assert device.attention is chosen and device.find_fused_attention() is None


def test_attention_can_be_written_out_on_any_device():
    wanted = PrecisionConfig(attention="explicit")
    assert open_device(DeviceConfig(device="cpu"), precision=wanted).attention is attend_explicitly


def test_an_ipu_has_no_choice():
    with pytest.raises(OptionError, match="`attention` is not for `device` ipu; leave it out"):
        open_device(DeviceConfig(device="ipu"), precision=PrecisionConfig(attention="fused"))
