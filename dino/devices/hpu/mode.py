"""In which mode a card runs: decided here for the run and for the doctor alike. Needs no torch.

Lazy mode is the default wherever the software has it: it was the Gaudi reference's own default, and it is the only mode
with public evidence of right numbers for a student and its teacher (docs/gaudi.md, Modes).
"""

from __future__ import annotations

from dataclasses import dataclass

from dino.devices.hpu.software import is_vendor_torch
from dino.errors import DeviceError, OptionError

VARIABLE = "PT_HPU_LAZY_MODE"


@dataclass(frozen=True, kw_only=True)
class Mode:
    """An execution mode and why it was taken.

    Attributes:
        lazy: Operators queue up and run as one graph.
        compiles: Eager mode with `torch.compile`; never with `lazy`.
        reason: What decided, for the log and the doctor.
        warning: One line to show the user, or None.
    """

    lazy: bool
    compiles: bool
    reason: str
    warning: str | None = None

    @property
    def name(self) -> str:
        """The words lazy, compiled or eager."""
        return "lazy" if self.lazy else "compiled" if self.compiles else "eager"


def choose_mode(
    *,
    lazy_mode: bool | None = None,
    compiles: bool | None = None,
    variable: str | None = None,
    imported_lazy: bool | None = None,
    torch_version: str | None = None,
    kept: str | None = None,
) -> Mode:
    """Decide: the flags, else the variable, else an imported bridge, else the checkpoint, else lazy where torch has it.

    Args:
        lazy_mode: The flag --lazy_mode; None where it was not given.
        compiles: The flag --compile; None where it was not given.
        variable: PT_HPU_LAZY_MODE; None where it is unset. All but "0" is lazy.
        imported_lazy: Whether a bridge that is imported already runs in lazy mode; None where none is.
        torch_version: Of the installed torch; None where it is unknown.
        kept: Name of the mode in the checkpoint that the run continues; None for a new run.

    Raises:
        OptionError: Flags and variable contradict each other.
        DeviceError: The bridge is imported already in the other mode.
    """
    told = None if variable is None else variable != "0"
    if lazy_mode is not None and told is not None and lazy_mode != told:
        raise OptionError(
            f"--lazy_mode {str(lazy_mode).lower()} and {VARIABLE}={variable} contradict each other; leave one out"
        )
    if (told if lazy_mode is None else lazy_mode) and compiles:
        raise OptionError(
            "lazy mode and --compile contradict each other: torch.compile is for eager mode; leave one out"
        )
    if imported_lazy is not None:
        return _take_imported(imported_lazy, lazy_mode, compiles)
    if lazy_mode is not None:
        return Mode(lazy=lazy_mode, compiles=bool(compiles), reason=f"--lazy_mode {str(lazy_mode).lower()}")
    if told:
        return Mode(lazy=True, compiles=False, reason=f"{VARIABLE}={variable}")
    if compiles:
        return Mode(lazy=False, compiles=True, reason="--compile")
    return _derive(told, compiles, torch_version, kept)


def _take_imported(imported_lazy: bool, lazy_mode: bool | None, compiles: bool | None) -> Mode:
    """The mode of a bridge that is imported already cannot be changed in this process."""
    name = "lazy" if imported_lazy else "eager"
    wanted = lazy_mode if lazy_mode is not None else False if compiles else None
    if wanted is not None and wanted != imported_lazy:
        flag = "--compile" if lazy_mode is None else f"--lazy_mode {str(lazy_mode).lower()}"
        raise DeviceError(
            f"{flag}: the Habana bridge is imported already, in {name} mode; import dino before torch, "
            f"or set {VARIABLE}={int(wanted)} before Python starts"
        )
    reason = f"the bridge is imported already in {name} mode"
    if imported_lazy or lazy_mode is not None or compiles is not None:
        return Mode(lazy=imported_lazy, compiles=bool(compiles), reason=reason)
    warning = f"{reason}, so this run is compiled and not lazy; for lazy mode import dino before torch"
    return Mode(lazy=False, compiles=True, reason=reason, warning=warning)


def _derive(told: bool | None, compiles: bool | None, torch_version: str | None, kept: str | None) -> Mode:
    """Nothing decides it outright: as the run before, else by the build of torch."""
    vendors = is_vendor_torch(torch_version)
    if told is False:
        # On the vendor's torch the variable asks for eager mode; on upstream's it says what is so anyway.
        return Mode(lazy=False, compiles=not vendors and compiles is None, reason=f"{VARIABLE}=0")
    impossible = (kept == "lazy" and not vendors) or (kept == "compiled" and compiles is False)
    if kept is not None and not impossible:
        return Mode(lazy=kept == "lazy", compiles=kept == "compiled", reason="as in the checkpoint")
    if vendors:
        return Mode(lazy=True, compiles=False, reason=f"torch {torch_version} is the vendor's build")
    reason = f"torch {torch_version} is not the vendor's build, which alone has lazy mode"
    return Mode(lazy=False, compiles=compiles is None, reason=reason)
