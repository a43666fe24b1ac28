"""Choose the execution mode of a card, for runs and for the doctor. Needs no torch.

Lazy mode is the default if the software has it. It was the Gaudi reference's default, and it is the
only mode with public evidence of correct training of a student and teacher (docs/gaudi.md, Modes).
"""

from __future__ import annotations

from dataclasses import dataclass

from dino.devices.hpu.software import is_vendor_torch
from dino.errors import DeviceError, OptionError

VARIABLE = "PT_HPU_LAZY_MODE"
KEPT = "as in the checkpoint"


@dataclass(frozen=True, kw_only=True)
class Mode:
    """An execution mode and the reason for it.

    Attributes:
        lazy: Whether operators queue up and run as one graph.
        compiles: Whether eager mode uses `torch.compile`; never true with `lazy`.
        reason: The deciding setting or fact, for the log and the doctor.
        warning: One line to show the user, or None.
    """

    lazy: bool
    compiles: bool
    reason: str
    warning: str | None = None

    @property
    def name(self) -> str:
        """The mode's name: lazy, compiled or eager."""
        if self.lazy:
            return "lazy"
        return "compiled" if self.compiles else "eager"

    @property
    def caution(self) -> str | None:
        """One line to log before training in a mode not yet proven to train correctly, or None."""
        if self.lazy:
            return None
        return (
            f"{self.name} mode: nobody has yet shown that it trains a student and its teacher "
            "correctly; `python -m dino.verify` checks it on this machine"
        )


def choose_mode(
    *,
    lazy_mode: bool | None = None,
    compiles: bool | None = None,
    variable: str | None = None,
    imported_lazy: bool | None = None,
    torch_version: str | None = None,
    kept: str | None = None,
) -> Mode:
    """Choose a mode.

    The first of these that is set decides: settings, variable, imported bridge, checkpoint. Else
    the mode is lazy if torch has it.

    Args:
        lazy_mode: The setting, or None if it is not set.
        compiles: The setting `compile`, or None if it is not set.
        variable: PT_HPU_LAZY_MODE, or None if it is unset. All values but "0" mean lazy.
        imported_lazy: Whether an already imported bridge runs in lazy mode; None without one.
        torch_version: Version of the installed torch, or None if it is unknown.
        kept: Name of the mode in the checkpoint that the run continues; None for a new run.

    Raises:
        OptionError: Settings and variable contradict each other.
        DeviceError: The bridge is imported already, in a mode that the settings do not allow.
    """
    variable_lazy = None if variable is None else variable != "0"
    if lazy_mode and compiles:
        raise _contradiction("`lazy_mode` true")
    late = None
    if imported_lazy is None:
        _check_variable(lazy_mode, compiles, variable_lazy, variable)
    else:
        _check_imported(imported_lazy, lazy_mode, compiles)
        if variable_lazy is not None and variable_lazy != imported_lazy:
            variable_lazy, late = None, _describe_late(imported_lazy, variable)
    vendors = is_vendor_torch(torch_version)
    if (kept == "lazy" and not vendors) or (kept == "compiled" and compiles is False):
        kept = None
    deciding = (
        (lazy_mode, f"`lazy_mode` {str(lazy_mode).lower()}"),
        (False if compiles else None, "`compile`"),
        (variable_lazy, f"{VARIABLE}={variable}"),
        (imported_lazy, _describe(imported_lazy)),
        (None if kept is None else kept == "lazy", KEPT),
        (vendors, _describe_torch(torch_version)),
    )
    lazy, reason = next((lazy, reason) for lazy, reason in deciding if lazy is not None)
    if lazy:
        return Mode(lazy=True, compiles=False, reason=reason, warning=late)
    if compiles is not None or lazy_mode is not None:
        return Mode(lazy=False, compiles=bool(compiles), reason=reason, warning=late)
    if kept in ("eager", "compiled"):
        return Mode(lazy=False, compiles=kept == "compiled", reason=KEPT, warning=late)
    if variable_lazy is False:
        # The variable selects eager mode in the vendor's torch; in upstream's it changes nothing.
        return Mode(lazy=False, compiles=not vendors, reason=reason)
    if vendors and late is None:
        late = f"{reason}, so this run is compiled; for lazy mode import dino before torch"
    return Mode(lazy=False, compiles=True, reason=reason, warning=late)


def _check_variable(
    lazy_mode: bool | None,
    compiles: bool | None,
    variable_lazy: bool | None,
    variable: str | None,
) -> None:
    if lazy_mode is not None and variable_lazy is not None and lazy_mode != variable_lazy:
        raise OptionError(
            f"`lazy_mode` {str(lazy_mode).lower()} and {VARIABLE}={variable} contradict each other",
            value=str(lazy_mode).lower(),
            remedy="leave one out",
        )
    if variable_lazy and compiles:
        raise _contradiction(f"{VARIABLE}={variable}")


def _check_imported(imported_lazy: bool, lazy_mode: bool | None, compiles: bool | None) -> None:
    """Check the settings against an imported bridge; this process cannot change its mode."""
    wanted = False if compiles and lazy_mode is None else lazy_mode
    if wanted is not None and wanted != imported_lazy:
        setting = "`compile`" if lazy_mode is None else f"`lazy_mode` {str(lazy_mode).lower()}"
        raise DeviceError(
            f"{setting}: {_describe(imported_lazy)}",
            remedy="import dino before torch, "
            f"or set {VARIABLE}={int(wanted)} before Python starts",
        )


def _describe(imported_lazy: bool | None) -> str:
    return f"the Habana bridge is imported already, in {'lazy' if imported_lazy else 'eager'} mode"


def _describe_late(imported_lazy: bool, variable: str | None) -> str:
    return (
        f"{_describe(imported_lazy)}: {VARIABLE}={variable} was set too late, "
        "set it before Python starts"
    )


def _describe_torch(version: str | None) -> str:
    is_or_not = "is" if is_vendor_torch(version) else "is not"
    return f"torch {version} {is_or_not} the vendor's build, and only that build has lazy mode"


def _contradiction(lazy: str) -> OptionError:
    return OptionError(
        f"{lazy} and `compile` contradict each other: torch.compile is for eager mode",
        remedy="leave one out",
    )
