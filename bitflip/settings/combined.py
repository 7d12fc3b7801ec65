"""Settings that do not fit each other, or what they are of: one sentence each."""

from __future__ import annotations

from typing import Literal

from bitflip.settings.hyperparameters import NARROW, Hyperparameters

SINGLE = ("flip", "stuck0", "stuck1")  # kinds of fault of a single bit
IDLE = {"bit_sampling", "bit_flip_pos", "parameters", "pool_mib", "engine", "dataset", "model_name", "faults", "limit"}
IDLE |= {"hub_path", "input_path", "seed", "fault"}


def check_idle(settings: Hyperparameters, target: Literal["neuron", "weight"]) -> list[str]:
    """One sentence for each setting that can have no effect beside the others."""
    s, fields = settings, Hyperparameters.model_fields
    elsewhere = ":" in str(s.model_name) or s.dataset not in ("cifar10", "cifar100")
    idle = [
        ("parameters", target == "neuron", "weight with faults of neurons"),
        ("pool_mib", s.engine == "reference", "no value with engine (--engine) reference"),
        ("input_path", s.dataset == "digits", "no value with dataset (--dataset) digits, which come with the package"),
        ("hub_path", elsewhere, f"no value with {s.model_name} on {s.dataset}, which does not come from there"),
    ]
    found = [
        f"{name} (--{name.replace('_', '-')}): expected {words}, got {getattr(s, name)}"
        for name, is_idle, words in idle
        if is_idle and getattr(s, name) != fields[name].default
    ]
    if s.faults is not None and s.limit is None and s.seed > 0:
        found.append(f"seed (--seed): expected no value with faults (--faults) without limit (--limit), got {s.seed}")
    return [*found, *check_sampling(s)]


def check_sampling(settings: Hyperparameters) -> list[str]:
    """One sentence if it is said how bits are drawn where none is."""
    if settings.bit is None or settings.bit_sampling == "uniform" or _name(settings) not in SINGLE:
        return []
    return [
        "bit_sampling (--bit-sampling): expected uniform with one bit (bit_flip_pos), which is not drawn, got "
        f"{settings.bit_sampling}"
    ]


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
    }
    found = [
        f"{words} with prove (--prove), which does not run every fault" for words, wrong in others.items() if wrong
    ]
    if settings.number_format in NO_BOUNDS:
        found.append(
            "number_format (--number-format): expected float32 or float64 with prove (--prove), whose bounds do not "
            f"cover the rounding of others, got {settings.number_format}"
        )
    return found


NO_BOUNDS = ("int8", "float8_e4m3fn", "float8_e5m2", "float16", "bfloat16")  # which round more than bounds allow for


def _name(settings: Hyperparameters) -> str:
    return settings.fault.partition(":")[0]


def check_fault(settings: Hyperparameters) -> list[str]:
    """One sentence for each setting that has no meaning with the kind of fault."""
    name = _name(settings)
    if name in SINGLE:
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


def check_error_rate(settings: Hyperparameters) -> list[str]:
    """One sentence for each setting that has no meaning with ``bit_error_rate``, or none without."""
    if settings.bit_error_rate is None:
        alone = "by_layer (--by-layer): expected bit_error_rate (--bit-error-rate) with it"
        return [alone] if settings.by_layer else []
    others = {
        "bit_flip_pos (--bit-flip-pos): expected no bit": settings.bit is not None,
        "fault (--fault): expected flip": settings.fault != "flip",
        "bit_sampling (--bit-sampling): expected uniform": settings.bit_sampling != "uniform",
        "margin (--margin): expected none": settings.margin is not None,
        "prove (--prove): expected none": settings.prove,
        "detailed_log (--detailed-log): expected none": settings.detailed_log,
        "fault_table (--fault-table): expected none": settings.fault_table,
        "save_faults (--save-faults): expected none": settings.save_faults is not None,
    }
    reason = "with bit_error_rate (--bit-error-rate), whose patterns have all bits of the chosen layers"
    return [f"{words} {reason}" for words, wrong in others.items() if wrong]


def check_protect(settings: Hyperparameters) -> list[str]:
    """One sentence for each setting that means nothing to the protection, or to none."""
    found, narrow = settings.protection, settings.number_format in NARROW
    if found is not None and not found.guards and settings.protect_layers != "default":
        return ["protect_layers (--protect-layers): expected a protection of layers' outputs, which ecc is not"]
    given = {} if found else {"protect_layers": settings.protect_layers != "default"}
    measured = {
        "calibration_images": settings.calibration_images is not None,
        "percentile": settings.percentile != 100,
    }
    if found is None:
        needs = "protect (--protect) with it"
        given |= {"bounds": settings.bounds is not None}
    elif not found.calibrated:
        needs = "a protection whose bounds are measured, such as ranger, with it"
        given |= {"bounds": settings.bounds is not None}
    else:
        needs = "no bounds (--bounds) with it, which were measured on other images"
    unmeasured = found is None or not found.calibrated or settings.bounds is not None
    if unmeasured and not narrow:
        given |= measured
        if found is None and any(measured.values()):
            needs += ", or a number_format (--number-format) of 8 bits"
    return [f"{name} (--{name.replace('_', '-')}): expected {needs}" for name, wrong in given.items() if wrong]


def check_ecc(settings: Hyperparameters, target: Literal["neuron", "weight"]) -> list[str]:
    """One sentence for each setting that a code over stored weights does not fit."""
    found = settings.protection
    if found is None or not found.ecc:
        return []
    wrong = {
        "faults of weights, which are stored; values of neurons are not": target == "neuron",
        "fault (--fault) flip, stuck0 or stuck1, for it corrects one bit": _name(settings) not in SINGLE,
        "no bit_error_rate (--bit-error-rate), which flips many bits at a time": settings.bit_error_rate is not None,
    }
    return [f"protect (--protect): expected with ecc {words}" for words, true in wrong.items() if true]


def check_bit(settings: Hyperparameters, width: int) -> list[str]:
    """One sentence if ``bit_flip_pos`` is no bit of a value ``width`` bits wide."""
    if settings.bit is None or settings.bit < width:
        return []
    return [
        f"bit_flip_pos (--bit-flip-pos): expected a bit from 0 to {width - 1} of a value of {width} bits, "
        f"or a negative number for random bits, got {settings.bit}"
    ]
