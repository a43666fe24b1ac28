"""The card's random numbers."""

from .._simulated import device as _device


def _default_generator():
    return _device.default_generator()


def manual_seed(seed):
    """Start anew."""
    return _default_generator().manual_seed(int(seed))


def manual_seed_all(seed):
    """Start anew."""
    manual_seed(seed)


def seed():
    """Start anew from a random seed."""
    return _default_generator().seed()


def seed_all():
    """Start anew from a random seed."""
    seed()


def initial_seed():
    """The seed in use."""
    return _default_generator().initial_seed()


def get_rng_state(device="hpu"):
    """State as bytes."""
    return _default_generator().get_state()


def get_rng_state_all():
    """States of all cards."""
    return [get_rng_state()]


def set_rng_state(new_state, device="hpu"):
    """Continue from a state."""
    _default_generator().set_state(new_state)


def set_rng_state_all(new_states):
    """Continue from states."""
    for state in new_states:
        set_rng_state(state)
