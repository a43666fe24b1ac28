"""Read a pickle of plain values without unpickling it.

Unpickling runs what a file asks for. Even an unpickler that looks up no names can be crashed:
hashing a tuple nested 200,000 levels deep overflows the C stack. This package interprets the
opcodes itself. It supports only those needed for plain values, never calls anything that a file
names, and bounds the resources a file can consume.

Accepted, in protocols 0 to 5, from Python 2 or 3 and from numpy 1 or 2:

- None, bool, int, float, str, bytes, list, tuple and dict. A `collections.OrderedDict` becomes a
  dict. A byte string of Python 2 becomes a str (by Latin-1, as with
  `pickle.loads(data, encoding="latin1")`).
- numpy arrays and scalars of booleans, integers, floats, complex numbers and text, in any byte and
  memory order; and arrays of objects that are accepted themselves.

Everything else is rejected, and so is anything beyond the limits in `limits.py`: levels of
containers, number of values (a shared value counts at each occurrence), bytes of array data, size
of integers and of keys. Memory and time are proportional to the size of the file, and so is the
cost of processing the result.
"""

from __future__ import annotations

from typing import Any

from dino.plain_pickle.limits import DAMAGE, PlainPickleError, check_result, shorten
from dino.plain_pickle.machine import Machine

__all__ = ["PlainPickleError", "loads"]


def loads(data: bytes) -> Any:
    """Read one pickled value; bytes after its end are ignored.

    Args:
        data: The content of the file.

    Returns:
        The result of `pickle.loads(data, encoding="latin1")`. Arrays own their memory and are
        writable.

    Raises:
        PlainPickleError: The bytes are not a complete pickle, or hold more than plain values within
            the limits. No other error is raised for any input.
    """
    machine = Machine(data)
    try:
        value = machine.run()
        check_result(value, len(data))
    except PlainPickleError:
        raise
    except DAMAGE as error:
        raise PlainPickleError(
            f"it is damaged near byte {machine.place}: {shorten(str(error))}"
        ) from error
    return value
