"""Which mode a card runs in: flags, variable, imported bridge, checkpoint and torch's build, in
this order."""

import subprocess
import sys
from pathlib import Path

import pytest

from dino.devices.hpu.mode import Mode, choose_mode
from dino.errors import DeviceError, OptionError

ROOT = Path(__file__).resolve().parents[2]
VENDORS = (
    "2.5.1a0+git354fc07",
    "2.6.0+hpu_1.20.0-543.git4952fce",
    "2.9.0+hpu.1.23.0.695",
    "2.10.0a0+gitc1e5ed4",
)
UPSTREAM = ("2.10.0+cpu", "2.11.0", "2.14.1+cu130", None)
VENDOR, PLAIN = VENDORS[-1], UPSTREAM[0]


@pytest.mark.parametrize("version", VENDORS)
def test_nothing_said_is_lazy_on_the_vendors_torch(version):
    mode = choose_mode(torch_version=version)
    assert mode.name == "lazy" and version in mode.reason and mode.warning is None


@pytest.mark.parametrize("version", UPSTREAM)
def test_nothing_said_is_compiled_on_upstreams_torch(version):
    mode = choose_mode(torch_version=version)
    assert (
        mode.name == "compiled" and "not the vendor's build" in mode.reason and mode.warning is None
    )


# lazy_mode, compiles, variable -> on the vendor's torch, on upstream's
WITHOUT_A_BRIDGE = [
    ((True, None, None), "lazy", "lazy"),
    ((False, None, None), "eager", "eager"),
    ((False, True, None), "compiled", "compiled"),
    ((None, True, None), "compiled", "compiled"),
    ((None, False, None), "lazy", "eager"),
    ((None, None, "1"), "lazy", "lazy"),
    ((None, None, "2"), "lazy", "lazy"),
    (
        (None, None, "0"),
        "eager",
        "compiled",
    ),  # asked for; on upstream's torch it says what is so anyway
    ((None, True, "0"), "compiled", "compiled"),
    ((None, False, "0"), "eager", "eager"),
    ((True, None, "1"), "lazy", "lazy"),
    ((False, None, "0"), "eager", "eager"),
    ((False, True, "0"), "compiled", "compiled"),
]


@pytest.mark.parametrize(("said", "vendors", "upstreams"), WITHOUT_A_BRIDGE)
def test_flags_decide_then_the_variable_then_torch(said, vendors, upstreams):
    words = dict(zip(("lazy_mode", "compiles", "variable"), said, strict=True))
    assert choose_mode(**words, torch_version=VENDOR).name == vendors
    assert choose_mode(**words, torch_version=PLAIN).name == upstreams


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (
            {"lazy_mode": True, "variable": "0"},
            "`lazy_mode` true and PT_HPU_LAZY_MODE=0 contradict each other",
        ),
        (
            {"lazy_mode": False, "variable": "1"},
            "`lazy_mode` false and PT_HPU_LAZY_MODE=1 contradict each other",
        ),
        (
            {"lazy_mode": True, "compiles": True},
            "`lazy_mode` true and `compile` contradict each other",
        ),
        (
            {"compiles": True, "variable": "1"},
            "PT_HPU_LAZY_MODE=1 and `compile` contradict each other",
        ),
        (
            {"lazy_mode": True, "compiles": True, "imported_lazy": True},
            "`lazy_mode` true and `compile` contradict",
        ),
    ],
)
def test_contradictions_are_named(words, named):
    with pytest.raises(OptionError, match=f"^{named}.*; leave one out$"):
        choose_mode(**words, torch_version=VENDOR)


# imported_lazy, lazy_mode, compiles, variable -> mode on the vendor's torch, words of its warning
IMPORTED = [
    (
        (False, None, None, None),
        "compiled",
        "so this run is compiled; for lazy mode import dino before",
    ),
    ((False, None, True, None), "compiled", None),
    ((False, None, False, None), "eager", None),
    ((False, False, None, None), "eager", None),
    ((False, None, None, "0"), "eager", None),
    ((False, None, None, "1"), "compiled", "PT_HPU_LAZY_MODE=1 was set too late"),
    ((True, None, None, None), "lazy", None),
    ((True, True, None, None), "lazy", None),
    ((True, True, None, "1"), "lazy", None),
    ((True, None, None, "0"), "lazy", "PT_HPU_LAZY_MODE=0 was set too late"),
]


@pytest.mark.parametrize(("said", "name", "warning"), IMPORTED)
def test_a_bridge_that_is_imported_keeps_its_mode(said, name, warning):
    words = dict(zip(("imported_lazy", "lazy_mode", "compiles", "variable"), said, strict=True))
    mode = choose_mode(**words, torch_version=VENDOR)
    assert mode.name == name
    assert mode.warning is None if warning is None else warning in mode.warning


def test_upstreams_torch_in_a_notebook_is_compiled_without_a_word():
    assert choose_mode(imported_lazy=False, torch_version=PLAIN) == Mode(
        lazy=False, compiles=True, reason="the Habana bridge is imported already, in eager mode"
    )


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (
            {"imported_lazy": False, "lazy_mode": True},
            r"`lazy_mode` true: .* in eager mode; .*PT_HPU_LAZY_MODE=1 before",
        ),
        (
            {"imported_lazy": True, "lazy_mode": False},
            r"`lazy_mode` false: .* in lazy mode; .*PT_HPU_LAZY_MODE=0 before",
        ),
        (
            {"imported_lazy": True, "compiles": True},
            r"`compile`: .* in lazy mode; import dino before torch",
        ),
    ],
)
def test_a_flag_that_an_imported_bridge_cannot_follow_is_one_line(words, named):
    with pytest.raises(DeviceError, match=f"^{named}"):
        choose_mode(**words, torch_version=VENDOR)


# kept in the checkpoint, what is said now -> mode on the vendor's torch, on upstream's
RESUMED = [
    ("lazy", {}, "lazy", "compiled"),
    ("eager", {}, "eager", "eager"),
    ("compiled", {}, "compiled", "compiled"),
    ("lazy", {"lazy_mode": False}, "eager", "eager"),
    ("eager", {"lazy_mode": True}, "lazy", "lazy"),
    ("eager", {"compiles": True}, "compiled", "compiled"),
    ("compiled", {"lazy_mode": False}, "eager", "eager"),
    ("compiled", {"compiles": False}, "lazy", "eager"),
    ("lazy", {"variable": "0"}, "eager", "compiled"),
    ("eager", {"variable": "0"}, "eager", "eager"),
    ("compiled", {"variable": "0"}, "compiled", "compiled"),
    ("compiled", {"variable": "1"}, "lazy", "lazy"),
    ("lazy", {"imported_lazy": False}, "compiled", "compiled"),
    ("eager", {"imported_lazy": False}, "eager", "eager"),
    ("compiled", {"imported_lazy": True}, "lazy", "lazy"),
]


@pytest.mark.parametrize(("kept", "words", "vendors", "upstreams"), RESUMED)
def test_a_resumed_run_keeps_its_mode_unless_something_says_otherwise(
    kept, words, vendors, upstreams
):
    assert choose_mode(**words, kept=kept, torch_version=VENDOR).name == vendors
    assert choose_mode(**words, kept=kept, torch_version=PLAIN).name == upstreams


def test_a_kept_mode_gives_the_checkpoint_as_its_reason():
    for kept in ("lazy", "eager", "compiled"):
        mode = choose_mode(kept=kept, torch_version=VENDOR)
        assert (mode.reason, mode.warning) == ("as in the checkpoint", None)


def test_a_mode_without_evidence_names_the_command_that_gives_it():
    assert choose_mode(torch_version=VENDOR).caution is None
    for words in ({"lazy_mode": False}, {"compiles": True}):
        mode = choose_mode(**words, torch_version=VENDOR)
        assert (
            mode.caution.startswith(f"{mode.name} mode: ")
            and "python -m dino.verify" in mode.caution
        )


def test_the_mode_is_decided_where_torch_cannot_be_imported():
    code = "import sys; sys.modules['torch'] = None; from dino.devices.hpu.mode import choose_mode as c; print(c().name)"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60
    )
    assert (ended.stdout, ended.returncode) == ("compiled\n", 0), ended.stderr
