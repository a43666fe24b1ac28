"""Recipes: nested keys and their meaning, words that change them, and the files of `configs/`."""

import os
import re
import shlex
from pathlib import Path

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from dino.cli.options import parse, parse_command
from dino.cli.passl_recipe import LINEAR_PROBE
from dino.cli.recipes import flatten, interpret, must_be, of_no_meaning, read_overrides, sets
from dino.cli.submission import SubmitConfig
from dino.config import as_dict, as_recipe
from dino.errors import OptionError
from dino.evaluation.config import LinearConfig
from dino.training.config import TrainConfig

ROOT = Path(__file__).resolve().parents[2]
PRESETS = ROOT / "dino" / "presets"
CONFIGS = PRESETS / "configs"
RECIPES = sorted(CONFIGS.rglob("*.yaml"))
PUBLISHED = [path for path in RECIPES if path.stem not in {"demo", "cifar10", "imagenette"}]
SCRIPTS = {
    "main_dino.py": TrainConfig,
    "eval_linear.py": LinearConfig,
    "run_with_submitit.py": SubmitConfig,
}

# The keys and values of PASSL's linear probe of ViT-S/16, in YAML's words.
PASSL = yaml.safe_load("""
Global: {task_type: Classification, train_loop: ClassificationTrainingEpochLoop, checkpoint: null, accum_steps: 1,
  validate_loop: ClassificationEvaluationLoop, pretrained_model: ./pretrained/dino/dino_deitsmall16_pretrain,
  output_dir: ./output/, device: gpu, save_interval: 2, max_num_latest_checkpoint: 0, eval_during_train: True,
  eval_interval: 2, eval_unit: epoch, epochs: 100, print_batch_step: 100, use_visualdl: False, seed: 2023}
FP16: {level: O1}
DistributedStrategy: {data_parallel: True}
Model: {name: dino_deit_small16_linearprobe, class_num: 1000, backbone: {type: dino_deit_small16, patch_size: 16,
  output_dim: 0, n_last_blocks: 4, avgpool_patchtokens: False}}
Loss: {Train: [{CELoss: {weight: 1.0}}], Eval: [{CELoss: {weight: 1.0}}]}
LRScheduler: {name: TimmCosine, learning_rate: 1e-3, decay_unit: epoch, last_epoch: 0, warmup_epoch: 0}
Optimizer: {name: Momentum, momentum: 0.9, weight_decay: 0.0}
DataLoader:
  Train:
    dataset: {name: ImageFolder, root: ./dataset/ILSVRC2012/train, transform: [{RandomResizedCrop: {size: 224}},
      {RandomHorizontalFlip: null}, {ToTensor: null},
      {Normalize: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}]}
    sampler: {name: DistributedBatchSampler, batch_size: 32, shuffle: True, drop_last: False}
    loader: {num_workers: 8, use_shared_memory: True}
  Eval:
    dataset: {name: ImageFolder, root: ./dataset/ILSVRC2012/val, transform: [{Resize: {size: 256,
      interpolation: bicubic}}, {CenterCrop: {size: 224}}, {ToTensor: null},
      {Normalize: {mean: [0.485, 0.456, 0.406], std: [0.229, 0.224, 0.225]}}]}
    sampler: {name: DistributedBatchSampler, batch_size: 32, shuffle: False, drop_last: False}
    loader: {num_workers: 8, use_shared_memory: True}
Metric: {Train: [{TopkAcc: {topk: [1, 5]}}], Eval: [{TopkAcc: {topk: [1, 5]}}]}
Export: {export_type: paddle, input_shape: [None, 3, 224, 224]}
""")


def write(folder, recipe):
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe), encoding="utf-8")
    return ["-c", str(path)]


def refusal(words, command=LinearConfig):
    with pytest.raises(OptionError) as caught:
        parse(command, words)
    return str(caught.value)


def test_a_recipe_of_passl_becomes_flags(tmp_path, caplog):
    options, given, _ = parse_command(LinearConfig, write(tmp_path, PASSL))
    found = {name: value for name, value in as_dict(options).items() if name in given}
    assert found == {
        **{
            "arch": "vit_small",
            "patch_size": 16,
            "n_last_blocks": 4,
            "avgpool_patchtokens": False,
            "num_labels": 1000,
        },
        **{
            "lr": 0.001,
            "scale_lr": False,
            "epochs": 100,
            "val_freq": 2,
            "val_first": 2,
            "seed": 2023,
        },
        **{
            "batch_size_per_device": 32,
            "num_workers": 8,
            "output_dir": "./output/",
            "data_path": "dataset/ILSVRC2012",
        },
        "pretrained_weights": "./pretrained/dino/dino_deitsmall16_pretrain.pdparams",
    }
    assert (
        "these keys have no effect here: " in caplog.text
        and "FP16.level" in caplog.text
        and "Optimizer" not in caplog.text
    )


@pytest.mark.parametrize(
    ("changed", "field", "value"),
    [
        ("Optimizer.lr=0.01", "lr", 0.01),
        ("LRScheduler.learning_rate=1e-2", "lr", 0.01),
        ("lr=0.01", "lr", 0.01),
        ("Global.epochs=3", "epochs", 3),
        ("Global.pretrained_model=a=b.pth", "pretrained_weights", "a=b.pth"),
        ("Global.pretrained_model=best.pdparams", "pretrained_weights", "best.pdparams"),
        ("Global.device=cpu", "device", "cpu"),
        ("Model.backbone.avgpool_patchtokens=true", "avgpool_patchtokens", True),
        ("Model.backbone={type: dino_vit_base8, patch_size: 8}", "patch_size", 8),
        ("Model.backbone.type=vit_tiny", "arch", "vit_tiny"),
        ("DataLoader.Train.sampler.batch_size=96", "batch_size_per_device", 96),
    ],
)
def test_an_override_wins_over_the_recipe(changed, field, value, tmp_path):
    options, given, _ = parse_command(LinearConfig, [*write(tmp_path, PASSL), "-o", changed])
    assert as_dict(options)[field] == value and field in given


def test_a_flag_wins_over_an_override_and_the_last_of_two_counts():
    assert parse(LinearConfig, ["-o", "Optimizer.lr=1", "-o", "Optimizer.lr=2"]).rate.lr == 2
    assert parse(LinearConfig, ["--lr", "3", "-o", "Optimizer.lr=1"]).rate.lr == 3
    assert parse(
        TrainConfig, ["--override", "local_crops_scale=[0.1, 0.2]"]
    ).crops.local_crops_scale == (0.1, 0.2)


@pytest.mark.parametrize(
    ("word", "named"),
    [
        ("Optimizer.rl=0.01", "-o has the unknown key 'Optimizer.rl': did you mean Optimizer.lr?"),
        ("Optimiser.lr=0.01", "did you mean Optimizer.lr?"),
        ("Model.backbone={typ: x}", "'Model.backbone.typ': did you mean Model.backbone.type?"),
        ("epoch=3", "did you mean epochs?"),
        ("Global.epochs=many", "--epochs must be a whole number (got 'many')"),
        ("Optimizer.momentum=0.8", "-o: Optimizer.momentum must be 0.9 (got 0.8)"),
        (
            "Global.checkpoint=./out/latest",
            "Global.checkpoint must be None or 'None' (got './out/latest')",
        ),
        ("Metric.Eval.0.TopkAcc.topk=[1]", "must be [1, 5] (got [1])"),
        (
            "DataLoader.Train.dataset.transform.0.RandomResizedCrop.size=96",
            "must be 224 or [224, 224] (got 96)",
        ),
        ("DataLoader.Train.dataset.root=pictures", "must be a folder called train"),
        ("Global.pretrained_model=5", "must be the path of a weights file (got 5)"),
        ("Model.backbone.type=[1]", "must be a name such as dino_deit_small16"),
        ("Optimizer.lr", "-o Optimizer.lr changes nothing; write KEY=VALUE"),
        ("=3", "-o =3 changes nothing"),
        ("Optimizer.lr=[1", "-o Optimizer.lr=[1: the value is not YAML"),
        (
            "Optimizer.lr=__import__('os').getpid()",
            "--lr must be a number (got \"__import__('os').getpid()\")",
        ),
        ("Optimizer.lr=!!python/object/apply:os.getpid []", "the value is not YAML"),
    ],
)
def test_an_override_that_cannot_be_meant_is_one_line(word, named):
    text = refusal(["-o", word])
    assert named in text


def test_two_keys_that_contradict_each_other_are_refused(tmp_path):
    words = write(tmp_path, {"Optimizer": {"lr": 0.1}, "LRScheduler": {"learning_rate": 0.2}})
    # sorted by the writer
    named = "LRScheduler.learning_rate and Optimizer.lr set --lr to 0.2 and 0.1; remove one"
    assert named in refusal(words)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (
            "Optimizer: &loop {inner: *loop}",
            "the recipe is nested too deeply at Optimizer.inner.inner",
        ),
        ("lr: 1\ndefaults: lr", "defaults must be the list that --print_config writes (got 'lr')"),
        ("lr: 1\nseed: 2\nlr: 1", "cannot be read: duplicate key 'lr', again in line 3"),
        ("Optimizer: {lr: 0.1, lr: 0.2}", "duplicate key 'lr'"),
        ("Optimizer.lr: 0.1\nOptimizer: {lr: 0.2}", "set --lr to 0.1 and 0.2; remove one"),
        ("lr: 2024-13-45", "cannot be read: month must be in 1..12"),
        ("[" * 3000, "is nested too deeply"),
        ("lr: " + "[" * 200_000, "is nested too deeply"),
        ("lr: 1\n" + "#" * (1 << 20), "cannot be read: it has more than 1048576 bytes"),
    ],
)
def test_odd_recipes_are_one_line(text, named, tmp_path):
    (tmp_path / "odd.yaml").write_text(text)
    assert named in refusal(["--config", str(tmp_path / "odd.yaml")])


def test_recipes_that_never_end_are_one_line(tmp_path):
    os.mkfifo(tmp_path / "pipe.yaml")
    for path in (tmp_path / "pipe.yaml", "/dev/zero", "x" * 5000):
        assert "cannot be read: " in refusal(["--config", str(path)])


LAUGHS = "".join(
    f"a{level + 1}: &a{level + 1} [{', '.join([f'*a{level}'] * 9)}]\n" for level in range(40)
)
MERGES = "".join(
    f"a{level + 1}: &a{level + 1} {{<<: [{', '.join([f'*a{level}'] * 9)}]}}\n"
    for level in range(40)
)


@pytest.mark.parametrize(
    "text", [f"a0: &a0 [lr]\n{LAUGHS}", f"a0: &a0 {{lr: 1}}\n{MERGES}"], ids=["lists", "merges"]
)
def test_aliases_that_stand_for_billions_of_values_are_one_line(text, tmp_path):
    (tmp_path / "bomb.yaml").write_text(text)
    named = (
        "cannot be read: its aliases expand to more than 5000 values; write out the values you need"
    )
    assert named in refusal(["--config", str(tmp_path / "bomb.yaml")])


def test_aliases_that_stand_for_few_values_are_read(tmp_path):
    (tmp_path / "alias.yaml").write_text(
        "Optimizer: {lr: &rate 0.1}\nLRScheduler: {learning_rate: *rate}"
    )
    assert as_dict(parse(LinearConfig, ["-c", str(tmp_path / "alias.yaml")]))["lr"] == 0.1


def test_a_long_recipe_without_aliases_is_no_bomb():
    assert len(read_overrides([f"many=[{', '.join(['1'] * 6000)}]"])["many"]) == 6000


@pytest.mark.parametrize(
    "value",
    ["2024-13-45", "0x_", "[" * 3000, "!!bool x", "!!int ''", "!!timestamp x", "{a: 1, a: 2}"],
)
def test_odd_values_of_overrides_are_one_line(value):
    with pytest.raises(OptionError, match="the value is not YAML"):
        read_overrides([f"Optimizer.lr={value}"])


def test_a_key_beside_a_merged_mapping_that_has_it_wins(tmp_path):
    (tmp_path / "merged.yaml").write_text("Optimizer: {<<: &base {lr: 0.1}, lr: 0.2}")
    options = parse(LinearConfig, ["-c", str(tmp_path / "merged.yaml")])
    assert as_dict(options)["lr"] == 0.2


def test_nested_keys_belong_to_their_command(tmp_path):
    assert "unknown key 'Optimizer.lr'" in refusal(
        write(tmp_path, {"Optimizer": {"lr": 0.1}}), TrainConfig
    )


TREES = st.recursive(
    st.integers(),
    lambda inner: st.dictionaries(st.sampled_from("abcd"), inner, min_size=1, max_size=3),
    max_leaves=8,
).filter(lambda tree: isinstance(tree, dict))


@settings(max_examples=60)
@given(tree=TREES)
def test_every_leaf_of_a_tree_has_its_path(tree):
    for path, value in flatten(tree, ()):
        found = tree
        for part in path.split("."):
            found = found[part]
        assert found == value
    assert len(dict(flatten(tree, ()))) == len(re.findall(r"-?\d+", str(tree)))


@settings(max_examples=60)
@given(
    value=st.integers()
    | st.text("ab=:.", min_size=1)
    | st.booleans()
    | st.none()
    | st.lists(st.integers())
)
def test_values_of_overrides_come_back_as_yaml_writes_them(value):
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("...\n").strip()
    assert read_overrides([f"some.key={text}"]) == {"some.key": value}


def test_meanings_set_check_and_pass_over():
    meanings = {
        "a.b": sets("one", "two"),
        "c": must_be(1, None),
        "d": of_no_meaning,
        "e": sets("three"),
    }
    tree = {"a": {"b": 5}, "c": None, "d": {"x": 1}, "e": [1, 2]}
    assert interpret("here", tree, meanings) == {"one": 5, "two": 5, "three": [1, 2]}


def test_printed_options_are_a_recipe_that_gives_them_again(tmp_path, capsys):
    words = [
        "-c",
        str(CONFIGS / "linear" / "vits16_passl.yaml"),
        "-o",
        "Optimizer.lr=0.01",
        "--data_path",
        "a: # é",
    ]
    with pytest.raises(SystemExit) as end:
        parse(LinearConfig, [*words, "--print_config"])
    text = capsys.readouterr().out
    assert end.value.code == 0
    (tmp_path / "printed.yaml").write_text(text, encoding="utf-8")
    again, given, _ = parse_command(LinearConfig, ["--config", str(tmp_path / "printed.yaml")])
    assert again == parse(LinearConfig, words)
    printed = yaml.safe_load(text)
    assert (printed["lr"], printed["scale_lr"], printed["batch_size_per_device"]) == (
        0.01,
        False,
        32,
    )
    assert set(printed) == {*as_dict(again), "defaults"} and not set(printed["defaults"]) & given


def test_only_the_first_process_prints(monkeypatch, capsys):
    monkeypatch.setenv("PMI_RANK", "1")
    monkeypatch.setenv("PMI_SIZE", "2")
    with pytest.raises(SystemExit):
        parse(LinearConfig, ["--print_config"])
    assert capsys.readouterr().out == ""


def test_a_default_that_was_edited_in_a_printed_recipe_counts_as_given(tmp_path):
    text = as_recipe(*parse_command(LinearConfig, ["--epochs", "7"])).replace(
        "arch: vit_small", "arch: vit_tiny"
    )
    (tmp_path / "edited.yaml").write_text(text)
    options, given, _ = parse_command(LinearConfig, ["--config", str(tmp_path / "edited.yaml")])
    assert options.backbone.arch == "vit_tiny" and given == {"epochs", "arch"}


def command_of(path):
    """The words of the command in a recipe's header."""
    header = [
        line.lstrip("# ")
        for line in path.read_text(encoding="utf-8").splitlines()
        if line.startswith("#")
    ]
    line = next(
        line for line in header if re.match(r"(python|torchrun|poprun) .*--config configs/", line)
    )
    return shlex.split(line)


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_recipe_says_its_command_and_the_command_reads_it(path, monkeypatch):
    words = command_of(path)
    place = next(place for place, word in enumerate(words) if word in SCRIPTS)
    monkeypatch.chdir(ROOT)
    _, given, _ = parse_command(SCRIPTS[words[place]], words[place + 1 :])
    assert words[words.index("--config") + 1] == str(path.relative_to(PRESETS))
    assert given


@pytest.mark.parametrize("path", PUBLISHED, ids=lambda path: str(path.relative_to(CONFIGS)))
def test_a_recipe_of_a_long_run_says_its_source_and_what_to_expect(path):
    text = path.read_text(encoding="utf-8")
    assert "\n# Source: " in text and "\n# Expected" in text


# the flags of the original's README, whose defaults are those of its main_dino.py with 64 images a
# card
README = {
    "vits16_vanilla": "--arch vit_small",
    "vits16_boosted": "--arch vit_small --epochs 300 --teacher_temp 0.07 --warmup_teacher_temp_epochs 30 "
    "--norm_last_layer false",
    "resnet50": "--arch resnet50 --optimizer sgd --lr 0.03 --weight_decay 1e-4 --weight_decay_end 1e-4 "
    "--global_crops_scale 0.14 1 --local_crops_scale 0.05 0.14",
}


@pytest.mark.parametrize("name", README)
def test_recipes_of_the_readme_are_its_commands(name):
    ours = parse(TrainConfig, ["--config", str(CONFIGS / f"{name}.yaml")])
    theirs = parse(TrainConfig, ["--batch_size_per_gpu", "64", *README[name].split()])
    assert as_dict(ours) == as_dict(theirs)


@pytest.mark.parametrize(
    ("name", "arch", "patch", "rate", "batch"),
    [
        ("vits16", "vit_small", 16, 0.001, 32),
        ("vits8", "vit_small", 8, 0.001, 32),
        ("vitb16", "vit_base", 16, 0.003, 96),
        ("vitb8", "vit_base", 8, 0.003, 96),
    ],
)
def test_passls_probes_differ_from_the_originals_as_they_do(name, arch, patch, rate, batch):
    passl, original = (
        as_dict(parse(LinearConfig, ["--config", str(CONFIGS / "linear" / f"{file}.yaml")]))
        for file in (f"{name}_passl", name)
    )
    assert (passl.pop("lr"), original.pop("lr")) == (rate, 0.001)
    assert (passl["arch"], passl["patch_size"], passl["epochs"]) == (arch, patch, 100)
    assert {key: value for key, value in passl.items() if original[key] != value} == {
        **{"scale_lr": False, "batch_size_per_device": batch, "val_freq": 2, "val_first": 2},
        **{"seed": 2023, "num_workers": 8},
    }


def test_the_documents_name_every_recipe_and_every_section():
    text = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    names = [path.relative_to(CONFIGS).with_suffix("").as_posix() for path in RECIPES]
    assert [name for name in names if f"`{name}`" not in text] == []
    last = {
        part
        for key in LINEAR_PROBE
        for part in [key.rpartition(".")[2]]
        if ".transform." not in key
    }
    swallowed = {
        "weight",
        "topk",
        "export_type",
        "input_shape",
        "drop_last",
        "use_shared_memory",
        "name",
        "shuffle",
    }
    assert [part for part in sorted(last - swallowed) if part not in text] == []
