"""Settings that do not fit each other, or what they are of: one sentence each."""

from __future__ import annotations

from bitflip.settings.hyperparameters import Hyperparameters


def check_seeds(settings: Hyperparameters) -> list[str]:
    """One sentence if seeds are given with a margin, which a run of one seed reaches by further flips."""
    if settings.seeds is None or settings.margin is None:
        return []
    return [f"seeds (--seeds): expected one seed with margin, got seeds {settings.seeds}"]


def check_prove(settings: Hyperparameters) -> list[str]:
    """One sentence for each setting that has no meaning with ``prove``, or none without."""
    if not settings.prove:
        return ["audit (--audit): expected prove (--prove) with it: it audits what is proved"] if settings.audit else []
    others = {
        "engine (--engine): expected wave": settings.engine != "wave",
        "fault_table (--fault-table): expected none": settings.fault_table,
        "faults (--faults): expected no list": settings.faults is not None,
    }
    return [f"{words} with prove (--prove), which does not run every fault" for words, wrong in others.items() if wrong]


def check_fault(settings: Hyperparameters) -> list[str]:
    """One sentence for each setting that has no meaning with the kind of fault."""
    name = settings.fault.partition(":")[0]
    if name in ("flip", "stuck0", "stuck1"):
        return []
    problems = []
    if settings.bit is not None and name != "burst":
        reason = "whose bits are drawn" if name == "flips" else "which replaces the whole value"
        problems.append(f"bit_flip_pos (--bit-flip-pos): expected no bit with fault {settings.fault}, {reason}")
    if settings.bit_sampling != "uniform":
        problems.append(
            f"bit_sampling (--bit-sampling): expected uniform with fault {settings.fault}; importance draws single bits"
        )
    return problems


def check_bit(settings: Hyperparameters, width: int) -> list[str]:
    """One sentence if ``bit_flip_pos`` is no bit of a value ``width`` bits wide."""
    if settings.bit is None or settings.bit < width:
        return []
    return [
        f"bit_flip_pos (--bit-flip-pos): expected a bit from 0 to {width - 1} of a {width}-bit value, "
        f"or a negative number for random bits, got {settings.bit}"
    ]
