"""What of an architecture faults can reach, and whether both engines agree on a fault in each place."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from bitflip import engines
from bitflip.engines.agreement import differing, record
from bitflip.engines.injection import Injector, WithInput
from bitflip.engines.reference import Reference
from bitflip.engines.wave import Wave
from bitflip.errors import BadInput, first_line
from bitflip.faults.flips import Flips, TargetKind, neuron_flips, parameter_flip
from bitflip.network import bits, forms, programs
from bitflip.network.devices import Placement
from bitflip.network.layers import Layer, Target, targets

SIZES = (32, 64, 75, 96, 128, 224, 256, 299, 384)  # pixels a side that are tried, smallest first
IMAGES = 2
SEED = 5


@dataclass(frozen=True)
class Coverage:
    """What faults reach in one architecture.

    Attributes:
        name: of the model.
        size: height and width of the image in pixels.
        layers: calls of leaf modules, the input image among them.
        neuron_layers: those of them whose output can be flipped.
        tensors: parameter tensors that can be flipped; one that is shared counts once.
        unread: those of them that a forward pass never reads.
        scalars: their values.
        parameters: values of all parameters of the model.
        engine: ``wave``, or ``reference`` and why.
        alone: tensors whose faults the wave hands to the reference engine.
        faults: faults that both engines ran.
        differing: those of them that ended otherwise; None if none was run.
    """

    name: str
    size: int
    layers: int
    neuron_layers: int
    tensors: int
    unread: int
    scalars: int
    parameters: int
    engine: str
    alone: int = 0
    faults: int = 0
    differing: int | None = None

    @property
    def share(self) -> float:
        """Of all parameters, those that can be flipped, in percent."""
        return 100.0 * self.scalars / self.parameters

    def row(self) -> str:
        """A line of the table, in Markdown."""
        engine = f"{self.engine}, {self.alone} tensors on reference" if self.alone else self.engine
        agrees = {None: "", 0: f"on all {self.faults}"}.get(self.differing, f"not on {self.differing} of {self.faults}")
        cells = [self.name, self.size, self.layers, self.neuron_layers, self.tensors, self.unread, f"{self.scalars:,}"]
        share = "100 %" if self.scalars == self.parameters else f"{math.floor(100 * self.share) / 100:.2f} %"
        return f"| {' | '.join(map(str, [*cells, share, engine, agrees]))} |"


HEADER = """\
| model | side | layers | neuron layers | tensors | never read | scalars | share | engine | engines agree |
|---|--:|--:|--:|--:|--:|--:|--:|---|---|"""


def of(name: str, model: nn.Module, sizes: Iterable[int] = SIZES, *, check: int | None = None) -> Coverage:
    """Look at one model, on random weights and the smallest of some image sizes that it takes.

    Args:
        name: of the model, for the table.
        model: any classifier of images of 3 channels; its constant parameters are made random.
        sizes: pixels a side to try, in that order.
        check: in how many layers' outputs, and parameter tensors, to run a fault through both engines; 0 for all.

    Raises:
        BadInput: if it takes none of the sizes, or is no classifier.
    """
    sizes = tuple(sizes)
    _initialise(model, sizes)
    placement = Placement(torch.device("cpu"), bits.dtype_of(model))
    model = placement.model(enlivened(model).eval().requires_grad_(False))
    size, injector = _fitting(model, sizes)
    injector.require_logits(1)
    images = placement.inputs(torch.randn(IMAGES, 3, size, size, generator=torch.Generator().manual_seed(SEED)))
    engine, note = engines.build("wave", injector, images)
    outputs = targets(_numbered(injector.layers), "neuron", None)
    tensors = targets(_numbered(injector.everything), "weight", None)
    alone = 0
    if isinstance(engine, Wave):
        entries = [engine.entry(item.layer, item.parameter) for item in tensors]
        alone = entries.count("several")
    ran = differ = 0
    if check is not None:
        neurons = [neuron_flips(SEED, item.layer, 0, IMAGES) for item in _spread(outputs, check)]
        weights = [parameter_flip(SEED, item.layer, 0, parameter=item.parameter) for item in _spread(tensors, check)]
        for target, flips in (("neuron", neurons), ("weight", weights)):
            found = _differing(injector, engine, target, images, flips)  # type: ignore[arg-type]
            ran, differ = ran + found.numel(), differ + int(found.sum())
    return Coverage(
        name,
        size,
        len(injector.layers),
        len(outputs),
        len(tensors),
        sum(not injector.reads(item.layer, item.parameter) for item in tensors),
        sum(math.prod(item.shape) for item in tensors),
        sum(parameter.numel() for parameter in model.parameters()),
        "wave" if note is None else f"reference: {note}",
        alone,
        ran,
        None if check is None else differ,
    )


def enlivened(model: nn.Module) -> nn.Module:
    """The model with small random numbers added to every constant parameter and to BatchNorm's statistics.

    A fresh model has heads of zeros and scales of 1e-6, behind which no fault would show.
    """
    generator = torch.Generator().manual_seed(SEED)
    with torch.no_grad():
        for name, value in [*model.named_parameters(), *model.named_buffers()]:
            if not value.is_floating_point() or value.numel() == 0:
                continue
            noise = torch.rand(value.shape, generator=generator).to(value.dtype)
            if name.endswith("running_var"):
                value.copy_(0.5 + noise)
            elif name.endswith("running_mean") or (isinstance(value, nn.Parameter) and value.min() == value.max()):
                value.add_(0.2 * noise - 0.1)
    return model


def _spread(items: Sequence[Target], count: int) -> list[Target]:
    """So many of the items, the first and the last among them; all for 0."""
    if not count or count >= len(items):
        return list(items)
    return [items[i * (len(items) - 1) // max(1, count - 1)] for i in range(count)]


def _numbered(layers: Iterable[Layer]) -> list[Target]:
    return [Target(number, layer) for number, layer in enumerate(layers)]


def _initialise(model: nn.Module, sizes: Sequence[int]) -> None:
    """Let lazy modules find out their sizes on the smallest image that the model takes."""
    problem: BadInput | None = None
    for size in sizes:
        try:
            return forms.initialise(model, torch.zeros(1, 3, size, size, dtype=bits.dtype_of(model)))
        except BadInput as error:
            problem = problem or error
    if problem is not None:
        raise problem


def _fitting(model: nn.Module, sizes: Iterable[int]) -> tuple[int, Injector]:
    reason = ""
    for size in sizes:
        try:
            return size, Injector(WithInput(model), IMAGES, torch.zeros(1, 3, size, size), programs.storage(model))
        except BadInput as error:
            reason = first_line(error)
    raise BadInput(reason or "no image size to try")


def _differing(
    injector: Injector, engine: engines.Engine, target: TargetKind, images: Tensor, flips: list[Flips]
) -> Tensor:
    expected, _ = record(Reference(injector), images, flips)
    got, _ = record(engine, images, flips)
    if not expected.clean_logits.isfinite().all():
        raise BadInput("the model's output on random weights is not finite: no fault can be told from none")
    return differing(expected, got)
