"""Old and new flags mean one number format, or contradict each other and say so."""

import pytest

from dino.cli.options import parse
from dino.devices.precision import resolve_precision
from dino.errors import OptionError
from dino.training.config import TrainConfig


def resolve(device, *words):
    options = parse(TrainConfig, list(words))
    return resolve_precision(options.precision, device)


@pytest.mark.parametrize(
    ("device", "words", "precision"),
    [
        ("cpu", "", "fp32"),
        ("hpu", "", "fp32"),
        ("cuda", "", "fp16"),
        ("cuda", "--use_fp16 true", "fp16"),
        ("cuda", "--use_fp16 false", "fp32"),
        ("cpu", "--use_fp16 true", "fp32"),
        ("hpu", "--use_fp16 true", "fp32"),
        ("cpu", "--precision bf16", "bf16"),
        ("cpu", "--precision bf16 --use_fp16 true", "bf16"),
        ("cuda", "--precision bf16", "bf16"),
        ("cuda", "--precision fp32", "fp32"),
        ("cuda", "--precision fp16 --use_fp16 true", "fp16"),
        ("cuda", "--precision bf16 --use_fp16 false", "bf16"),
        ("cuda", "--precision fp16", "fp16"),
        ("cuda", "--precision float16", "fp16"),
        ("cpu", "--precision float32", "fp32"),
        ("ipu", "", "float32"),
        ("ipu", "--use_fp16 true", "float32"),
        ("ipu", "--precision fp16", "float16"),
        ("ipu", "--precision float16", "float16"),
        ("ipu", "--precision masterweight", "masterweight"),
    ],
)
def test_flags_mean_one_number_format(device, words, precision):
    assert resolve(device, *words.split()) == precision


@pytest.mark.parametrize(
    ("device", "words", "named"),
    [
        ("cpu", "--precision bf16 --hmp", ["`precision` bf16", "`hmp`"]),
        ("hpu", "--precision fp32 --hmp", ["`precision` fp32", "`hmp`"]),
        ("cuda", "--precision fp32 --use_fp16 true", ["`precision` fp32", "`use_fp16` true"]),
        ("cuda", "--hmp --use_fp16 true", ["`hmp`", "`use_fp16` true"]),
        ("cuda", "--precision fp16 --use_fp16 false", ["`precision` fp16", "`use_fp16` false"]),
    ],
)
def test_two_explicit_flags_that_contradict_each_other_are_named(device, words, named):
    with pytest.raises(OptionError, match="contradict each other") as caught:
        resolve(device, *words.split())
    assert all(word in str(caught.value) for word in named)


def test_a_recipe_contradicts_a_flag_as_well(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("hmp: true\n")
    with pytest.raises(OptionError, match="`precision` bf16 and `hmp` contradict"):
        resolve("cpu", "--config", str(recipe), "--precision", "bf16")


@pytest.mark.parametrize("device", ["cpu", "cuda", "hpu"])
@pytest.mark.parametrize("words", ["--hmp", "--precision ops", "--precision ops --hmp"])
def test_op_lists_decide_on_every_device(device, words):
    assert resolve(device, *words.split()) == "ops"
