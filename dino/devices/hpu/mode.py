"""In which mode a card runs: decided here for the run and for the doctor alike. Needs no torch.

Lazy mode is the default wherever the software has it: it was the Gaudi reference's own default, and it is the only mode
with public evidence of right numbers for a student and its teacher (docs/gaudi.md, Modes).
"""

from __future__ import annotations

from dataclasses import dataclass

from dino.devices.hpu.software import is_vendor_torch
from dino.errors import DeviceError, OptionError

VARIABLE = "PT_HPU_LAZY_MODE"
KEPT = "as in the checkpoint"


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

    @property
    def caution(self) -> str | None:
        """One line for the start of a training run in a mode that nobody has shown to train right, or None."""
        if self.lazy:
            return None
        return (
            f"{self.name} mode: nobody has yet shown that it trains a student and its teacher to the right numbers; "
            "`python -m dino.verify` shows it for this machine"
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
    """Decide: settings, else the variable, else an imported bridge, else the checkpoint, else lazy where torch has it.

    Args:
        lazy_mode: The setting; None where it was not given.
        compiles: The setting `compile`; None where it was not given.
        variable: PT_HPU_LAZY_MODE; None where it is unset. All but "0" is lazy.
        imported_lazy: Whether a bridge that is imported already runs in lazy mode; None where none is.
        torch_version: Of the installed torch; None where it is unknown.
        kept: Name of the mode in the checkpoint that the run continues; None for a new run.

    Raises:
        OptionError: Settings and variable contradict each other.
        DeviceError: The bridge is imported already, in a mode that the settings do not allow.
    """
    told = None if variable is None else variable != "0"
    if lazy_mode and compiles:
        raise _contradiction("`lazy_mode` true")
    late = None
    if imported_lazy is None:
        _check_variable(lazy_mode, compiles, told, variable)
    else:
        _check_imported(imported_lazy, lazy_mode, compiles)
        if told is not None and told != imported_lazy:
            told, late = (
                None,
                f"{_describe(imported_lazy)}: {VARIABLE}={variable} came too late, set it before Python starts",
            )
    vendors = is_vendor_torch(torch_version)
    if (kept == "lazy" and not vendors) or (kept == "compiled" and compiles is False):
        kept = None
    deciding = (
        (lazy_mode, f"`lazy_mode` {str(lazy_mode).lower()}"),
        (False if compiles else None, "`compile`"),
        (told, f"{VARIABLE}={variable}"),
        (imported_lazy, _describe(imported_lazy)),
        (None if kept is None else kept == "lazy", KEPT),
        (
            vendors,
            f"torch {torch_version} is {'' if vendors else 'not '}the vendor's build, which alone has lazy mode",
        ),
    )
    lazy, reason = next((lazy, reason) for lazy, reason in deciding if lazy is not None)
    if lazy:
        return Mode(lazy=True, compiles=False, reason=reason, warning=late)
    if compiles is not None or lazy_mode is not None:
        return Mode(lazy=False, compiles=bool(compiles), reason=reason, warning=late)
    if kept in ("eager", "compiled"):
        return Mode(lazy=False, compiles=kept == "compiled", reason=KEPT, warning=late)
    if told is False:
        # On the vendor's torch the variable asks for eager mode; on upstream's it says what is so anyway.
        return Mode(lazy=False, compiles=not vendors, reason=reason)
    if vendors and late is None:
        late = f"{reason}, so this run is compiled and not lazy; for lazy mode import dino before torch"
    return Mode(lazy=False, compiles=True, reason=reason, warning=late)


def _check_variable(
    lazy_mode: bool | None, compiles: bool | None, told: bool | None, variable: str | None
) -> None:
    if lazy_mode is not None and told is not None and lazy_mode != told:
        raise OptionError(
            f"`lazy_mode` {str(lazy_mode).lower()} and {VARIABLE}={variable} contradict each other",
            value=str(lazy_mode).lower(),
            remedy="leave one out",
        )
    if told and compiles:
        raise _contradiction(f"{VARIABLE}={variable}")


def _check_imported(imported_lazy: bool, lazy_mode: bool | None, compiles: bool | None) -> None:
    """The mode of a bridge that is imported already cannot be changed in this process."""
    wanted = lazy_mode if lazy_mode is not None else False if compiles else None
    if wanted is not None and wanted != imported_lazy:
        setting = "`compile`" if lazy_mode is None else f"`lazy_mode` {str(lazy_mode).lower()}"
        raise DeviceError(
            f"{setting}: {_describe(imported_lazy)}",
            remedy=f"import dino before torch, or set {VARIABLE}={int(wanted)} before Python starts",
        )


def _describe(imported_lazy: bool | None) -> str:
    return f"the Habana bridge is imported already, in {'lazy' if imported_lazy else 'eager'} mode"


def _contradiction(lazy: str) -> OptionError:
    return OptionError(
        f"{lazy} and `compile` contradict each other: torch.compile is for eager mode",
        remedy="leave one out",
    )
