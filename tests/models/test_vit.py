"""The vision transformer computes the original's numbers, on every size."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from dino.models.block import Attention
from dino.models.registry import set_recompute
from dino.models.vit import VisionTransformer

pytestmark = pytest.mark.usefixtures("device")

GOLDEN = [(patch, kind) for patch in (16, 8) for kind in ("cls", "last2", "attn")]


def small_vit(patch_size=16, **more):
    return VisionTransformer(patch_size=patch_size, embed_dim=48, depth=2, heads=3, **more).eval()


def load_golden(arrays, patch_size):
    model = small_vit(patch_size)
    model.load_state_dict(
        {name[2:]: torch.as_tensor(arrays[name]) for name in arrays if name.startswith("w/")}
    )
    return model


COMPUTE = {
    "cls": lambda model, images: model(images),
    "last2": lambda model, images: torch.stack(model.get_intermediate_layers(images, 2)),
    "attn": lambda model, images: model.get_last_selfattention(images),
}


@pytest.mark.parametrize(("patch_size", "kind"), [pair for pair in GOLDEN if pair != (8, "last2")])
def test_outputs_are_those_of_the_original_at_every_size(
    patch_size, kind, golden, draw, relative_error
):
    arrays = golden(f"vit_patch{patch_size}")
    model = load_golden(arrays, patch_size)
    keys = [key for key in arrays if key.startswith(f"{kind}/")]
    assert len(keys) == {(16, "cls"): 4, (16, "last2"): 4, (16, "attn"): 3}.get(
        (patch_size, kind), 1
    )
    for key in keys:
        _, number, shape = key.split("/")
        with torch.no_grad():
            result = COMPUTE[kind](model, draw(int(number), *map(int, shape.split("x"))))
        assert relative_error(result, arrays[key]) <= 1e-5, key


def original_position(embedding, height, width, patch):
    """interpolate_pos_encoding of the original, step by step, for an image of height x width
    pixels."""
    count, side = embedding.shape[1] - 1, int(math.sqrt(embedding.shape[1] - 1))
    if (height // patch) * (width // patch) == count and height == width:
        return embedding
    grid = embedding[:, 1:].reshape(1, side, side, -1).permute(0, 3, 1, 2)
    scale = ((height // patch + 0.1) / math.sqrt(count), (width // patch + 0.1) / math.sqrt(count))
    grid = F.interpolate(grid, scale_factor=scale, mode="bicubic")
    assert tuple(grid.shape[-2:]) == (height // patch, width // patch)
    return torch.cat(
        [embedding[:, :1], grid.permute(0, 2, 3, 1).reshape(1, -1, embedding.shape[-1])], dim=1
    )


@pytest.mark.parametrize(
    "size",
    [
        (224, 224),
        (96, 96),
        (16, 16),
        (480, 320),
        (32, 512),
        (112, 448),
        (230, 230),
        (230, 224),
        (1024, 16),
    ],
)
def test_positions_follow_the_original_rule(size, relative_error):
    torch.manual_seed(0)
    model, images = small_vit(), torch.randn(1, 3, *size)
    with torch.no_grad():
        patches = model.patch_embed(images)
        tokens = torch.cat([model.cls_token, patches], dim=1) + original_position(
            model.pos_embed, *size, 16
        )
        for block in model.blocks:
            tokens = block(tokens)
        assert relative_error(model(images), model.norm(tokens)[:, 0]) <= 1e-6


def test_parameter_names_are_those_of_the_original():
    names = {name for name in small_vit().state_dict() if not name.startswith("blocks.1.")}
    inside = [
        f"{part}.{kind}"
        for part in ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2")
        for kind in ("weight", "bias")
    ]
    assert names == {
        *{
            "cls_token",
            "pos_embed",
            "patch_embed.proj.weight",
            "patch_embed.proj.bias",
            "norm.weight",
            "norm.bias",
        },
        *(f"blocks.0.{name}" for name in inside),
    }


@pytest.mark.parametrize(("patch_size", "halvings"), [(8, 3), (6, 1), (7, 0), (4, 2)])
def test_a_convolutional_stem_gives_the_tokens_of_the_patches(patch_size, halvings):
    """As many as there are whole patches, each one seeing its own place, each image for itself."""
    torch.manual_seed(0)
    model = small_vit(patch_size, conv_stem=True)
    assert len(model.patch_embed.convs) == halvings
    images = torch.randn(2, 3, 50, 34)
    with torch.no_grad():
        tokens, whole = model.patch_embed(images), model(images)
        rows, columns = 50 // patch_size, 34 // patch_size
        assert tokens.shape == (2, rows * columns, 48) and whole.shape == (2, 48)
        assert torch.allclose(model(images[:1]), whole[:1], atol=1e-5)
        last = images.clone()
        last[
            ...,
            (rows - 1) * patch_size : rows * patch_size,
            (columns - 1) * patch_size : columns * patch_size,
        ] = 3
        moved = (model.patch_embed(last) - tokens).norm(dim=2)
        assert (moved.argmax(dim=1) == rows * columns - 1).all()


def explicit_attention(module, tokens):
    """softmax(Q K^T / sqrt(d)) V, a head at a time, in float64."""
    width = tokens.shape[-1] // module.heads
    query, key, value = F.linear(
        tokens.double(), module.qkv.weight.double(), module.qkv.bias.double()
    ).chunk(3, -1)
    heads = []
    for head in range(module.heads):
        part = slice(head * width, (head + 1) * width)
        scores = query[..., part] @ key[..., part].transpose(1, 2) / math.sqrt(width)
        heads.append(scores.softmax(-1) @ value[..., part])
    return F.linear(torch.cat(heads, -1), module.proj.weight.double(), module.proj.bias.double())


@pytest.fixture
def attention():
    torch.manual_seed(0)
    return Attention(24, 4), torch.randn(2, 11, 24)


def test_fused_attention_equals_the_formula(attention, relative_error):
    module, tokens = attention
    with torch.no_grad():
        assert relative_error(module(tokens), explicit_attention(module, tokens)) <= 1e-6


def test_attention_weights_are_those_the_output_is_mixed_with(attention, relative_error):
    module, tokens = attention
    with torch.no_grad():
        value = module.qkv(tokens).reshape(2, 11, 3, 4, 6).permute(2, 0, 3, 1, 4)[2]
        mixed = module.compute_weights(tokens, slice(None)) @ value
        assert relative_error(module.proj(mixed.transpose(1, 2).flatten(2)), module(tokens)) <= 1e-6


def test_rows_of_attention_sum_to_one():
    torch.manual_seed(0)
    with torch.no_grad():
        weights = small_vit().get_last_selfattention(torch.randn(2, 3, 64, 48))
    assert weights.shape == (2, 3, 13, 13)
    assert torch.all(weights >= 0)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 3, 13))


@pytest.mark.parametrize("queries", [slice(0, 1), slice(1, None), slice(3, 7)])
def test_a_slice_of_queries_gives_those_rows(queries):
    torch.manual_seed(0)
    model, images = small_vit(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        rows = model.get_last_selfattention(images, queries)
        torch.testing.assert_close(rows, model.get_last_selfattention(images)[:, :, queries])


def test_intermediate_layers_are_normed_and_the_last_one_is_last():
    torch.manual_seed(0)
    model, images = small_vit(), torch.randn(2, 3, 64, 64)
    with torch.no_grad():
        layers = model.get_intermediate_layers(images, 2)
        assert [tuple(layer.shape) for layer in layers] == [(2, 17, 48)] * 2
        torch.testing.assert_close(layers[-1][:, 0], model(images))
        torch.testing.assert_close(model.get_intermediate_layers(images)[0], layers[-1])
        assert not torch.allclose(layers[0], layers[1])
        assert abs(float(layers[0].mean())) < 1e-5 and abs(float(layers[0].std()) - 1) < 0.01


def test_stochastic_depth_grows_from_zero_at_the_first_block():
    model = VisionTransformer(embed_dim=12, depth=4, heads=2, drop_path_rate=0.3)
    assert [block.drop_path.rate for block in model.blocks] == pytest.approx([0.0, 0.1, 0.2, 0.3])


def test_two_forwards_differ_in_training_and_agree_in_eval():
    torch.manual_seed(0)
    model, images = small_vit(drop_path_rate=0.9), torch.randn(8, 3, 32, 32)
    with torch.no_grad():
        assert torch.equal(model(images), model(images))
        assert not torch.equal(model.train()(images), model(images))


def drop_by_hand(model, image, depth):
    """One image through the blocks, each branch times its factor."""
    tokens = torch.cat([model.cls_token, model.patch_embed(image[None])], dim=1) + model.pos_embed
    for block, (attended, fed) in zip(model.blocks, depth.view(-1, 2).tolist(), strict=True):
        tokens = tokens + attended * block.attn(block.norm1(tokens))
        tokens = tokens + fed * block.mlp(block.norm2(tokens))
    return model.norm(tokens)[0, 0]


def test_given_depth_scales_the_branches_of_each_image_in_training_only(relative_error):
    torch.manual_seed(0)
    model, images = small_vit(img_size=32, drop_path_rate=0.5), torch.randn(5, 3, 32, 32)
    depth = torch.tensor([[1.0] * 5, [1.0] * 5, [0, 2.0, 0, 2, 0], [2.0, 0, 0, 2, 2]])
    before = torch.get_rng_state()
    with torch.no_grad():
        plain = model(images)
        assert torch.equal(model(images, depth), plain)
        found = model.train()(images, depth)
        for place in range(5):
            assert (
                relative_error(found[place], drop_by_hand(model, images[place], depth[:, place]))
                <= 1e-6
            )
        with pytest.raises(ValueError, match="shorter"):
            model(images, depth[:2])
    assert torch.equal(torch.get_rng_state(), before)


class Count(TorchDispatchMode):
    """How often the linear layers run."""

    def __init__(self):
        super().__init__()
        self.products = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        self.products += func == torch.ops.aten.addmm.default
        return func(*args, **(kwargs or {}))


def train_once(recompute, depth=None):
    """Output, gradients, bytes that waited for the backward pass, and how often linear layers
    ran."""
    torch.manual_seed(0)
    model, kept = small_vit(drop_path_rate=0.5).train(), {}
    set_recompute(model, recompute)
    images = torch.randn(8, 3, 32, 32)
    torch.manual_seed(1)
    with Count() as count:
        with torch.autograd.graph.saved_tensors_hooks(
            lambda part: kept.setdefault(part.untyped_storage()._cdata, part) is None or part,
            lambda part: part,
        ):
            features = model(images, depth)
        features.square().sum().backward()
    size = sum(part.untyped_storage().nbytes() for part in kept.values())
    return [features.detach(), *(part.grad for part in model.parameters())], size, count.products


@pytest.mark.parametrize(
    "depth", [None, [[1.0] * 8] * 2 + [[0.0, 2.0] * 4, [2.0, 2.0, 0.0, 0.0] * 2]]
)
def test_computing_again_changes_no_bit_and_keeps_less(depth):
    given = None if depth is None else torch.tensor(depth)
    found = [train_once(what, given) for what in ("nothing", "activations", "mlp", "blocks")]
    tensors, sizes, products = zip(*found, strict=True)
    for other in tensors[1:]:
        assert all(torch.equal(one, two) for one, two in zip(tensors[0], other, strict=True))
    assert sizes[0] > sizes[1] > sizes[2] > sizes[3]
    # Of the two blocks' eight linear layers: none, fc1 of each, all but the one after which nothing
    # is needed.
    assert [count - products[0] for count in products] == [0, 0, 2, 7]


def train_packed(recompute, dtype, frozen=()):
    """Features and gradients of two resolutions in one pass."""
    torch.manual_seed(0)
    model = small_vit().train()
    set_recompute(model, recompute)
    for name, part in model.named_parameters():
        part.requires_grad_(name not in frozen)
    images = [torch.randn(2, 3, 32, 32), torch.randn(3, 3, 16, 16)]
    with torch.autocast("cpu", dtype=dtype or torch.bfloat16, enabled=dtype is not None):
        features = model(images)
    features.square().sum().backward()
    return [features.detach(), *(part.grad for part in model.parameters())]


@pytest.mark.parametrize("recompute", ["activations", "mlp", "blocks"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_computing_again_changes_no_bit_of_packed_resolutions(recompute, dtype):
    pairs = zip(train_packed("nothing", dtype), train_packed(recompute, dtype), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_a_frozen_part_gets_no_gradient_when_activations_are_computed_again():
    first = ("cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias")
    frozen = (*first, "blocks.0.norm1.weight", "blocks.0.norm1.bias", "blocks.1.mlp.fc1.weight")
    pairs = zip(
        train_packed("nothing", None, frozen),
        train_packed("activations", None, frozen),
        strict=True,
    )
    for one, other in pairs:
        assert other is None if one is None else torch.equal(one, other)


@pytest.mark.parametrize("recompute", ["activations", "mlp", "blocks"])
def test_without_gradients_nothing_is_wrapped(recompute, monkeypatch):
    model, images = small_vit(), torch.randn(2, 3, 32, 32)
    expected = model(images)
    set_recompute(model, recompute)
    monkeypatch.setattr("dino.models.block.run_again", None)
    monkeypatch.setattr("dino.models.block.run_linear", None)
    with torch.no_grad():
        assert torch.equal(model(images), expected)


@pytest.mark.parametrize(
    ("img_size", "patch_size", "tokens"), [(224, 16, 197), (32, 8, 17), (30, 8, 10), (96, 5, 362)]
)
def test_the_stored_grid_is_that_of_the_image_size(img_size, patch_size, tokens):
    assert small_vit(patch_size, img_size=img_size).pos_embed.shape == (1, tokens, 48)


def test_pixels_that_fill_no_patch_are_dropped():
    torch.manual_seed(0)
    model, images = small_vit(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model(F.pad(images, (0, 9, 0, 9), value=7.0)), model(images))


def test_weights_start_as_in_the_original():
    torch.manual_seed(0)
    model = VisionTransformer(embed_dim=192, depth=1, heads=3)
    for name, tensor in model.named_parameters():
        if name.endswith("bias") and "patch_embed" not in name:
            assert not tensor.any(), name
    for tensor in (
        model.pos_embed,
        model.blocks[0].attn.qkv.weight,
        model.blocks[0].mlp.fc2.weight,
    ):
        assert float(tensor.detach().std()) == pytest.approx(0.02, rel=0.05)
    assert all(
        module.eps == 1e-6 for module in model.modules() if isinstance(module, torch.nn.LayerNorm)
    )


def test_a_fixed_size_gives_the_same_and_stores_the_position_embedding() -> None:
    torch.manual_seed(0)
    module = VisionTransformer(img_size=32, patch_size=8, embed_dim=24, depth=2, heads=2).eval()
    images = torch.randn(2, 3, 24, 48)
    with torch.inference_mode():
        expected = module(images)
    module.fix_size(24, 48)
    assert module.pos_embed.shape == (1, 1 + 3 * 6, 24)
    with torch.inference_mode():
        assert torch.equal(module(images), expected)
