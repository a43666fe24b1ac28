"""Schedules are the original's, value for value, and the formula's."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dino.errors import OptionError
from dino.training.schedules import compute_cosine, compute_teacher_temperature


@pytest.mark.parametrize("case", range(5))
def test_every_value_is_that_of_the_original(case, golden, relative_error):
    arrays = golden("optim")
    base, final, epochs, iterations, warmup, start = arrays[f"sched_args/{case}"]
    ours = compute_cosine(
        base=base,
        final=final,
        iterations=int(epochs * iterations),
        warmup=int(warmup * iterations),
        warmup_start=start,
    )
    assert relative_error(ours, arrays[f"sched/{case}"]) <= 1e-12


def test_the_trajectorys_schedules_are_float64_values_of_the_original(golden):
    arrays = golden("trajectory")
    assert {len(arrays[name]) for name in ("lr", "wd", "momentum")} == {8}
    ours = compute_cosine(base=arrays["momentum"][0], final=1.0, iterations=8)
    np.testing.assert_allclose(ours, arrays["momentum"], rtol=1e-6)


def by_formula(iteration, base, final, total, warmup, start):
    if iteration < warmup:
        return start + (base - start) * (iteration / (warmup - 1) if warmup > 1 else 0.0)
    share = (iteration - warmup) / (total - warmup)
    return final + (base - final) * (1 + math.cos(math.pi * share)) / 2


@settings(max_examples=100)
@given(
    base=st.floats(0, 10),
    final=st.floats(0, 10),
    start=st.floats(0, 1),
    total=st.integers(0, 60),
    share=st.floats(0, 1),
)
def test_every_value_follows_the_formula(base, final, start, total, share):
    warmup = int(share * total)
    values = compute_cosine(
        base=base, final=final, iterations=total, warmup=warmup, warmup_start=start
    )
    assert values.shape == (total,) and values.dtype == np.float64
    expected = [by_formula(i, base, final, total, warmup, start) for i in range(total)]
    np.testing.assert_allclose(values, expected, rtol=1e-12, atol=1e-12)


def test_a_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(
        OptionError, match="a warm-up of 11 iterations does not fit into a run of 10"
    ):
        compute_cosine(base=1.0, final=0.0, iterations=10, warmup=11)


def test_a_warm_up_may_fill_the_run():
    np.testing.assert_allclose(
        compute_cosine(base=1.0, final=0.0, iterations=3, warmup=3), [0, 0.5, 1]
    )


@pytest.mark.parametrize(
    ("warmup", "epochs", "expected"),
    [
        (0, 3, [0.07, 0.07, 0.07]),
        (1, 2, [0.04, 0.07]),
        (3, 5, [0.04, 0.055, 0.07, 0.07, 0.07]),
        (2, 2, [0.04, 0.07]),
    ],
)
def test_the_temperature_rises_linearly_and_stays(warmup, epochs, expected):
    values = compute_teacher_temperature(
        start=0.04, final=0.07, warmup_epochs=warmup, epochs=epochs
    )
    np.testing.assert_allclose(values, expected, rtol=1e-12)


def test_a_temperature_warm_up_longer_than_the_run_is_refused():
    with pytest.raises(OptionError, match="30 epochs does not fit into a run of 10"):
        compute_teacher_temperature(start=0.04, final=0.07, warmup_epochs=30, epochs=10)
