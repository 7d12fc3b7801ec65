"""What the method assumes of a model, tried on the user's own images: a sentence instead of a wrong number.

The output for an image must depend on that image alone, and on nothing that changes. Every pass here is one of those
that the engines make: batch invariant, and from the state in which the model was given.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch._ops import OpOverload
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary

from bitflip.data import inputs
from bitflip.data.inputs import Inputs
from bitflip.engines import memory, strides
from bitflip.engines.injection import Injector
from bitflip.engines.invariance import Invariant, close
from bitflip.engines.kernels import aten, is_tensor
from bitflip.engines.modes import Mode
from bitflip.errors import BadInput, first_line
from bitflip.network import bits

SETTING = "model_name (--model-name)"
IMAGES = 3  # of the user's own that are tried
SPREADS = "NaN or large values of one image reach another one"
LARGE = 1e6  # times an image: what becomes of it must not reach another one


@dataclass
class Pass:
    """What was seen of one forward pass.

    Attributes:
        outputs: of all leaf modules, with their paths, and last of the model, whose path is empty.
        drawn: modules that drew random numbers, with the operation that did.
        read: modules in which Python was handed a value made from the images, by which it may choose its way.
    """

    outputs: list[tuple[str, Tensor]] = field(default_factory=list)
    drawn: list[tuple[str, str]] = field(default_factory=list)
    read: list[str] = field(default_factory=list)

    @property
    def calls(self) -> Counter[str]:
        """How often each leaf module was called."""
        return Counter(path for path, _ in self.outputs)


def check(injector: Injector, images: Inputs) -> str | None:
    """Try the assumptions on a model.

    Args:
        injector: of the model.
        images: a few, (B, ...) with B > 1, best of those that will be run.

    Returns:
        Why images must be run one at a time; None if they need not.

    Raises:
        BadInput: if a result would mean nothing, with the module that shows it.
    """
    expected = f"{SETTING}: expected a model whose output for an image depends on this image alone"
    try:
        together = watched(injector, images)
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError) as error:
        if memory.ran_out(error):
            raise
        raise BadInput(f"{SETTING}: the model can't take the first images: {first_line(error)}") from error
    if bool(together.outputs[-1][1].isnan().any()):
        raise BadInput(
            f"{SETTING}: expected a model whose output is numbers, got NaN for the first images, without a fault"
        )
    again = watched(injector, images)
    if (where := _reached(together, again, whole=True)) is not None:
        why = [f"{path or 'the model'} draws random numbers ({operation})" for path, operation in again.drawn]
        why.append(f"{where} gives another output for the same images in another pass")
        raise BadInput(f"{expected}, and on nothing that changes; {why[0]}")
    one, other = (watched(injector, inputs.rows(images, slice(i, i + 1))) for i in (0, 1))
    if differ := (one.calls - other.calls) + (other.calls - one.calls):
        where = next(iter(differ))
        raise BadInput(f"{SETTING}: expected a model that calls the same layers for all images, not {where}")
    if read := [*together.read, *one.read]:
        return f"{read[0] or 'the model'} lets Python choose a way by the values of images"
    turned = inputs.rows(images, torch.arange(inputs.count(images), device=inputs.device(images)).flip(0))
    replaced = watched(injector, _with_others(images, inputs.random(inputs.count(images), turned, strides.random)))
    for seen, what in ((replaced, "the images of a batch are mixed"), (_spoilt(injector, images), SPREADS)):
        if seen is not None and (where := _reached(together, seen)) is not None:
            raise BadInput(f"{expected}; as the output of {where} shows, {what}")
    if not close(one.outputs[-1][1], together.outputs[-1][1][:1]):
        raise BadInput(f"{expected}; it changes with the number of images in the batch")
    return None


def watched(injector: Injector, images: Inputs) -> Pass:
    """A pass over a batch, and what was seen of it."""
    seen, inside = Pass(), [""]

    def enter(path: str) -> Callable[..., None]:
        return lambda module, args: inside.append(path)

    def leave(path: str, leaf: bool) -> Callable[..., None]:
        def note(module: nn.Module, args: object, output: Any) -> None:
            inside.pop()
            if leaf:
                seen.outputs.extend((path, part.clone()) for part in tree_leaves(output) if is_tensor(part))

        return note

    handles = []
    paths = injector.paths
    for module in injector.original_model.modules():
        path = paths.get(module, "")
        handles.append(module.register_forward_pre_hook(enter(path)))
        handles.append(module.register_forward_hook(leave(path, path in injector.modules)))
    try:
        images = inputs.clone(images)
        with torch.no_grad(), Invariant(), _Notes(seen, inside, inputs.parts(images)):
            output = injector.logits(images)
    finally:
        for handle in handles:
            handle.remove()
    seen.outputs.extend(("", part.clone()) for part in tree_leaves(output) if is_tensor(part))
    return seen


class _Notes(Mode):
    """Takes note of random numbers, and of values made from the images that leave the tensors."""

    def __init__(self, seen: Pass, inside: list[str], images: list[Tensor]) -> None:
        super().__init__()
        self._seen, self._inside = seen, inside
        self._of_images = WeakIdKeyDictionary(dict.fromkeys(images, True))

    def __torch_dispatch__(
        self, op: OpOverload, types: object, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        done = op(*args, **(kwargs or {}))
        if any(leaf in self._of_images for leaf in tree_leaves((args, kwargs)) if is_tensor(leaf)):
            for leaf in tree_leaves(done):
                if is_tensor(leaf):
                    self._of_images[leaf] = True
            if op is aten._local_scalar_dense.default:
                self._seen.read.append(self._inside[-1])
        if torch.Tag.nondeterministic_seeded in op.tags:
            self._seen.drawn.append((self._inside[-1], op.overloadpacket.__name__))
        return done


def _with_others(images: Inputs, others: Inputs) -> Inputs:
    """The first image with others than its own."""
    return inputs.join([inputs.rows(images, slice(1)), inputs.rows(others, slice(1, None))])


def _spoilt(injector: Injector, images: Inputs) -> Pass | None:
    """A pass in which the other images are NaN and large; None if it raises, which is an outcome like others."""
    nan = inputs.random(1, images, lambda count, form, generator: torch.full_like(form[:count], torch.nan))
    large = inputs.random(1, images, lambda count, form, generator: form[:count] * LARGE)
    try:
        return watched(injector, inputs.join([inputs.rows(images, slice(1)), nan, large]))
    except (RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError) as error:
        if memory.ran_out(error):
            raise
        return None


def _reached(before: Pass, after: Pass, *, whole: bool = False) -> str | None:
    """The first module whose output for the first image differs in a bit between two passes; None if no logit does.

    Args:
        before, after: passes that have the first image in common.
        whole: whether they have all images in common.
    """
    count = len(before.outputs[-1][1])
    if not _differs(before.outputs[-1][1], after.outputs[-1][1], 1, None if whole else count):
        return None
    for (path, a), (_, b) in zip(before.outputs, after.outputs, strict=False):
        if _differs(a, b, 1, None if whole else count):
            return path or "the model"
    return "the model"


def _differs(a: Tensor, b: Tensor, kept: int, count: int | None) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype:
        return True
    if count is not None:
        fold, rest = divmod(len(a), count) if a.dim() else (0, 1)
        if rest:
            return False  # its first dimension is not that of the images
        a, b = a[: fold * kept], b[: fold * kept]
    return not torch.equal(bits.exact(a), bits.exact(b))


def uneven(injector: Injector, images: Inputs) -> str | None:
    """The first module whose rows are rounded otherwise in other company even so, or None if there is none.

    Args:
        injector: of the model.
        images: at least three, (B, ...), of random values.

    Returns:
        Its path, or "the model" if it is in no leaf module.
    """
    count, together = inputs.count(images), watched(injector, images).outputs
    for start, stop in ((0, 1), (1, 2), (1, count)):
        found = watched(injector, inputs.rows(images, slice(start, stop))).outputs
        for (path, whole), (_, some) in zip(together, found, strict=False):
            fold, rest = divmod(len(whole), count) if whole.dim() else (0, 1)
            if rest or len(some) != fold * (stop - start):
                continue  # its first dimension is not that of the images
            expected = whole[fold * start : fold * stop]
            if not close(some, expected):
                return None  # no question of rounding
            if not torch.equal(bits.exact(some), bits.exact(expected)):
                return path or "the model"
    return None
