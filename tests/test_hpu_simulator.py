"""The simulated Gaudi behaves as the bridge's sources say; every check runs in a process of its own
mode."""

import importlib.util
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.hpu_simulator import PACKAGE, why_unavailable
from tests.running import find_port

SCRIPTS = Path(__file__).parent / "hpu_simulator" / "scripts"
ROOT = Path(__file__).parents[1]
FALLBACKS = {
    "_foreach_norm",
    "_upsample_bicubic2d_aa",
    "_upsample_bicubic2d_aa_backward",
    "histc",
}  # of 1.19
REASON = why_unavailable()
pytestmark = pytest.mark.skipif(REASON is not None, reason=REASON or "")


def start(*words, **environment):
    """A process of the simulator's scripts."""
    kept = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("PT_HPU", "HLS_", "RANK", "HPU_"))
    }
    environment = {**kept, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT), **environment}
    return subprocess.Popen(
        [sys.executable, *words],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(process):
    """What it printed, once it ended well."""
    output, errors = process.communicate(timeout=120)
    assert process.returncode == 0, output + errors
    return output


def test_lazy_mode():
    facts = ROOT.parent / "shared" / "facts" / "habana_api.json"
    words = [
        "-m",
        "pytest",
        "-q",
        "--noconftest",
        "-p",
        "no:cacheprovider",
        str(SCRIPTS / "lazy.py"),
    ]
    finish(start(*words, HPU_SIMULATOR_RELEASE="1.19", HABANA_API=str(facts)))


def test_the_facts_are_there(shared_facts):
    assert (shared_facts / "habana_api.json").is_file()


def test_the_bridge_has_every_name_that_the_product_asks_it_for(shared_facts):
    facts = json.loads((shared_facts / "habana_api.json").read_text())
    source = "".join(
        path.read_text() for path in sorted((ROOT / "dino" / "devices" / "hpu").glob("*.py"))
    )
    asked = [("hpu", name) for name in re.findall(r"self\.hpu\.(\w+)", source)]
    asked += [("core", name) for name in re.findall(r"\bcore\.(\w+)", source)]
    asked += re.findall(r'\{BRIDGE\}\.([\w.]+)"\)\.(\w+)', source)
    assert {name for _, name in asked} == {
        *("mark_step", "metric_global", "synchronize", "device_count"),
        *("max_memory_allocated", "memory_stats"),
    }
    for module, name in asked:
        pattern = rf"habana_frameworks\.torch\.{module}\.(\w+\.)?{name}"
        assert any(re.fullmatch(pattern, fact) for fact in facts), (module, name)


def test_eager_mode_and_the_compiler():
    finish(start(str(SCRIPTS / "eager.py"), PT_HPU_FORCE_TANH_FOR_GELU="0"))


def read_table(release):
    """What the simulated bridge of a release is told; loaded from its file, since its package would
    be the bridge."""
    path = PACKAGE / "habana_frameworks" / "torch" / "_release.py"
    spec = importlib.util.spec_from_file_location("release_of_the_simulator", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.read_table(release)


def read_json(path):
    return json.loads(path.read_text())


def base_names(names):
    return {name.split(".")[0] for name in names}


def test_the_native_operators_are_those_of_the_facts(shared_facts):
    first, later = (
        read_json(shared_facts / "hpu_ops_bridge119.json"),
        read_json(shared_facts / "bridge_later_ops.json"),
    )
    assert read_table("1.19")["native"] == base_names(first)
    kept = base_names(first.keys() - set(later["removed"]))
    assert read_table("1.24")["native"] == kept | base_names(later["added_aten"])


def test_forms_that_are_not_native_are_those_of_the_facts(shared_facts):
    named = read_json(shared_facts / "bridge_later_ops.json")["named"]
    lerp, copy = named["aten::_foreach_lerp_"]["not_native"], named["aten::_foreach_copy"]["not"]
    fused = [
        name.removeprefix("aten::")
        for name in named
        if not named[name].get("native", True) and "tensor_lr" in name
    ]
    assert set(read_table("1.19")["not_native"]) == set(lerp)
    assert set(read_table("1.24")["not_native"]) == {*lerp, *copy, *fused}
    fallbacks = {
        name: [set(read_table(release)["always_fallback"]) for release in ("1.19", "1.24")]
        for name in named
    }
    for name, (first, later) in fallbacks.items():
        base = name.removeprefix("aten::")
        assert (base in first, base in later) == (
            base in FALLBACKS,
            base in FALLBACKS and not named[name]["native"],
        )
    assert (
        "fallback" in str(named["aten::sort.stable"]["1.19"])
        and read_table("1.19")["stable_sort_may_fall_back"]
    )
    assert not read_table("1.24")["stable_sort_may_fall_back"]


def test_the_defaults_are_those_of_the_facts(shared_facts):
    changed = read_json(shared_facts / "bridge_later_env_flags.json")["changed_since_1_19"]
    for place, release in enumerate(("1.19", "1.24")):
        assert read_table(release)["defaults"] == {
            name: values[place] for name, values in changed.items()
        }


def test_autocasts_lists_and_their_rules_are_those_of_the_facts(shared_facts):
    facts = read_json(shared_facts / "bridge_later_autocast.json")
    lists = read_json(SCRIPTS.parent / "autocast.json")
    assert lists == {name: facts[name] for name in lists}
    assert not any(
        change for change in facts["difference_to_1_19"].values() for change in change.values()
    )
    banned = facts["list_file_rules_bcc5172c"]["banned_top_level_directories"]
    assert {f"/{name}" for name in read_table("1.24")["op_lists"]["refused_folders"]} == set(banned)


def test_faults_can_be_put_into_the_card():
    finish(start(str(SCRIPTS / "faults.py"), PT_HPU_LAZY_MODE="0"))


def test_two_processes_reduce_and_train():
    address = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(find_port())}
    place = {"WORLD_SIZE": "2", **address, "HPU_SIMULATOR_RELEASE": "1.19"}
    ranks = [
        start(str(SCRIPTS / "collectives.py"), **place, RANK=str(rank), LOCAL_RANK=str(rank))
        for rank in range(2)
    ]
    for process in ranks:
        finish(process)


@pytest.fixture(scope="module")
def losses_on_the_cpu():
    return json.loads(finish(start(str(SCRIPTS / "training.py"), "cpu")))["loss"]


@pytest.mark.parametrize(
    ("release", "words", "graphs"),
    [("1.19", (), 3), ("1.24", (), 0), ("1.24", ("hpu_backend",), 0)],
)
def test_the_training_step_equals_the_cpus_and_settles(release, words, graphs, losses_on_the_cpu):
    environment = {
        "HPU_SIMULATOR_RELEASE": release,
        "PT_HPU_FORCE_TANH_FOR_GELU": "0",
    }  # its own mode
    report = json.loads(finish(start(str(SCRIPTS / "training.py"), "hpu", *words, **environment)))
    # A loss is a difference of numbers between 8 and 16, whose last place is 2^-20; here the last
    # ones have vanished.
    assert report["loss"] == pytest.approx(losses_on_the_cpu, rel=1e-4, abs=2 * 2**-20)
    settled = {
        "host_reads": [],
        "fallbacks": {},
        "graphs": graphs,
        "new_graphs": [],
        "new_ops": 0,
        "float64": {},
    }
    settled |= {"blocking_uploads": 0, "scalar_uploads": []}
    assert report["steps"][2:] == [settled, settled]
