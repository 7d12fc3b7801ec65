"""Random small networks, each run by both engines and by a plain loop, sampled and as a list: all must agree.

    python tests/fuzz.py --minutes 30 --seed 0

The loop is written down as a user would: a fresh copy of the model for each image and fault, its own XOR, one image at
a time. The networks mix ordinary layers with what is awkward; those that break an assumption of the method must be
refused. Ends with the counts, and with code 1 at the first network on which anything differs.
"""

from __future__ import annotations

import argparse
import copy
import csv
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # started as a script, Python looks in tests/ only

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import TensorDataset

import bitflip
from bitflip import engines
from bitflip.engines.injection import Injector, WithInput
from bitflip.engines.invariance import Invariant
from bitflip.engines.pool import Budget
from bitflip.engines.wave import Wave
from bitflip.errors import BadInput
from bitflip.faults import faultlist, kinds
from bitflip.faults.flips import Flips, TargetKind, neuron_flips, parameter_flip
from bitflip.network import devices
from bitflip.network.devices import Placement
from bitflip.network.layers import Target, targets
from bitflip.outcomes.batch import BatchOutcomes, Effect

PLACEMENT = Placement(torch.device("cpu"), torch.float32)
CHANNELS, SIZE, CLASSES = 4, 8, 6
FAULTS = 24  # of one network, of either kind
Outcome = tuple[str, int | None]  # what became of a faulty inference, and the top-1


# --- networks ---


class Part(nn.Module):
    """Maps (B, 4, 8, 8) to the same."""


class Residual(Part):
    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.inner, self.act = layer(rng), nn.ReLU(inplace=rng.random() < 0.5)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.act(self.inner(x) + x)
        return out


class Twice(Part):
    """A module that is called twice."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.inner = layer(rng)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.inner(torch.tanh(self.inner(x)))
        return out


class Gate(Part):
    """Scales channels by their means, as squeeze and excitation does."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(CHANNELS, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        scale: Tensor = self.linear(x.mean((2, 3))).sigmoid()
        return x * scale[:, :, None, None]


class Attention(Part):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.attention = nn.LayerNorm(CHANNELS), nn.MultiheadAttention(CHANNELS, 2, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        tokens: Tensor = self.norm(x.flatten(2).transpose(1, 2))
        tokens, _ = self.attention(tokens, tokens, tokens, need_weights=False)
        return x + tokens.transpose(1, 2).reshape(x.shape)


class Shuffles(Part):
    """Channels shuffled, one half changed in place."""

    def forward(self, x: Tensor) -> Tensor:
        x = x.view(len(x), 2, 2, SIZE, SIZE).transpose(1, 2).reshape(x.shape)
        return torch.cat([x[:, :2].relu_(), x[:, 2:] * 0.5], 1)


class Biases(Part):
    """Keeps what its first pass made of a parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(CHANNELS + 2))
        self.register_buffer("index", torch.arange(CHANNELS).flip(0))
        self.kept: dict[str, Tensor] = {}

    def forward(self, x: Tensor) -> Tensor:
        key = str(x.device)
        if key not in self.kept:
            self.kept[key] = self.table[self.get_buffer("index")].view(1, CHANNELS, 1, 1)
        return x + self.kept[key]


class Spikes(Part):
    """Keeps the potential of its neurons over the passes; as a layer, or around one."""

    def __init__(self, rng: random.Random) -> None:
        super().__init__()
        self.potential: Tensor | None = None
        self.inner = nn.Identity() if rng.random() < 0.5 else None

    def forward(self, x: Tensor) -> Tensor:
        x = x if self.inner is None else self.inner(x)
        self.potential = x if self.potential is None else 0.9 * self.potential + x
        fired = (self.potential > 0.2).float()
        self.potential = self.potential - fired
        return fired


class Looks(Part):
    """Adds a row that the mean of an image chooses; out of range, it raises."""

    def __init__(self) -> None:
        super().__init__()
        self.rows = nn.Embedding(12, CHANNELS)

    def forward(self, x: Tensor) -> Tensor:
        row: Tensor = self.rows((4 * x.mean((1, 2, 3))).abs().long())
        return x + row[:, :, None, None]


class Guards(Part):
    """Lets Python choose by the values."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.zeros_like(x) if x.isnan().any() or x.abs().max() > 1e6 else x


class Signs(Part):
    """Gives its input other values, as binarised networks do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = x * 1.0
        x.data = x.data.sign()
        out: Tensor = self.conv(x)
        return out


class Normalises(Part):
    """Refused: by the batch."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = nn.BatchNorm2d(CHANNELS, track_running_stats=False)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(x)
        return out


class Drops(Part):
    """Refused: at random."""

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5)


def layer(rng: random.Random) -> nn.Module:
    """An ordinary one."""
    size, groups = rng.choice([1, 3, 3, 5]), rng.choice([1, 1, 2, CHANNELS])
    dilation = rng.choice([1, 1, 2])
    conv = nn.Conv2d(CHANNELS, CHANNELS, size, padding=size // 2 * dilation, dilation=dilation, groups=groups)
    return rng.choice(
        [
            conv,
            nn.Sequential(conv, nn.BatchNorm2d(CHANNELS)),
            nn.MaxPool2d(3, 1, 1),
            nn.AvgPool2d(3, 1, 1),
            nn.ReLU(inplace=rng.random() < 0.5),
            rng.choice([nn.GELU(), nn.SiLU(), nn.Hardswish(), nn.Tanh(), nn.PReLU(), nn.GroupNorm(2, CHANNELS)]),
            nn.Sequential(nn.ConvTranspose2d(CHANNELS, CHANNELS, 2, 2), nn.MaxPool2d(2)),
            nn.Sequential(nn.Upsample(scale_factor=2), nn.Conv2d(CHANNELS, CHANNELS, 3, 2, 1)),
        ]
    )


AWKWARD: dict[str, Callable[[random.Random], nn.Module]] = {
    "twice": Twice,
    "gate": lambda rng: Gate(),
    "attention": lambda rng: Attention(),
    "shuffle": lambda rng: Shuffles(),
    "biases kept": lambda rng: Biases(),
    "spikes": Spikes,
    "index": lambda rng: Looks(),
    "guard": lambda rng: Guards(),
    "signs": lambda rng: Signs(),
    "dropout in eval mode": lambda rng: nn.Dropout(0.5),
}
REFUSED: dict[str, Callable[[random.Random], nn.Module]] = {
    "batch statistics": lambda rng: Normalises(),
    "dropout": lambda rng: Drops(),
}


def network(rng: random.Random) -> tuple[nn.Module, list[str]]:
    """A random network, and the names of what is awkward in it."""
    parts: list[nn.Module] = [nn.Conv2d(3, CHANNELS, 3, padding=1)]
    names: list[str] = []
    for _ in range(rng.randint(2, 6)):
        kind = rng.random()
        if kind < 0.45:
            parts.append(layer(rng))
        elif kind < 0.6:
            parts.append(Residual(rng))
        else:
            some = REFUSED if rng.random() < 0.06 else AWKWARD
            names.append(rng.choice(list(some)))
            parts.append(some[names[-1]](rng))
    head: list[nn.Module] = [nn.AdaptiveAvgPool2d(rng.choice([1, 2])), nn.Flatten(), nn.LazyLinear(CLASSES)]
    model = nn.Sequential(*parts, *head).eval()
    with torch.no_grad():
        fresh = copy.deepcopy(parts)
        model(torch.zeros(1, 3, SIZE, SIZE))  # initialises the last layer
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d) and module.running_var is not None:
                module.running_var.uniform_(0.5, 1.5)
    model = nn.Sequential(*fresh, *head)  # without what the pass left in it
    return PLACEMENT.model(model.eval().requires_grad_(False)), names


KINDS = ["stuck0", "stuck1", "flips:2", "flips:5", "burst:3", "random", "zero", "value:-1.5", "value:0x7fc00000"]

# --- the plain loop ---


def struck(values: Tensor, element: int, kind: str, struck: Sequence[int]) -> Tensor:
    """A copy with one float32 changed, in its memory format: of a kind that a list names, in the bits that it names."""
    inside = values.flatten().clone()
    stored = inside.view(torch.int32)
    if kind == "zero":
        inside[element] = 0.0
    elif kind.startswith("value:0x"):
        inside[element] = torch.frombuffer(bytearray.fromhex(kind.removeprefix("value:0x"))[::-1], dtype=torch.float32)
    elif kind.startswith("value:"):
        inside[element] = float(kind.removeprefix("value:"))
    for bit in struck:
        mask = -(1 << 31) if bit == 0 else 1 << (31 - bit)
        if kind == "flip" or bool(stored[element] & mask) != (kind == "stuck1"):
            stored[element] ^= mask
    return values.clone().copy_(inside.view(values.shape))


def run(model: nn.Module, image: Tensor) -> Tensor | None:
    """The logits of one image; None if the model raises an exception."""
    try:
        with torch.no_grad(), Invariant():  # a product of one row may be rounded otherwise than one of many
            logits: Tensor = model(image)
    except (IndexError, RuntimeError):
        return None
    return logits


def plainly(model: nn.Module, image: Tensor, clean: Tensor, flips: Flips, place: int) -> Outcome:
    """What becomes of one image under its flip."""
    model, image = copy.deepcopy(model), image.clone()
    chosen = 0 if flips.parameter else place
    element, (kind, named) = int(flips.element[chosen]), flips.written(chosen)
    fault = element, kind, () if kind.startswith(("zero", "value")) else named
    calls = 0

    def strike(module: nn.Module, args: object, output: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls - 1 != flips.layer.call:
            return None
        if isinstance(output, tuple):
            return struck(output[0], *fault), *output[1:]
        return struck(output, *fault)

    if flips.parameter:
        tensor = model.get_submodule(flips.layer.path).get_parameter(flips.parameter)
        tensor.data = struck(tensor.data, *fault)
    elif flips.layer.path == "input":
        image = struck(image, *fault)
    else:
        model.get_submodule(flips.layer.path).register_forward_hook(strike)
    logits = run(model, image)
    if logits is None:
        return "due", None
    if torch.equal(logits.view(torch.int32), clean.view(torch.int32)):
        return "masked", int(clean.argmax(1))
    return ("benign" if logits.argmax(1) == clean.argmax(1) else "sdc1"), int(logits.argmax(1))


# --- all ways ---


class Differs(Exception):
    """A network on which two ways do not agree; says where."""


def outcome(found: BatchOutcomes, slot: int, image: int) -> Outcome:
    """What an engine says became of one faulty inference."""
    effect = int(found.effects[slot, image])
    if effect & Effect.DUE:
        return "due", None
    kind = "sdc1" if effect & Effect.SDC1 else "benign" if effect & Effect.CHANGED else "masked"
    return kind, int(found.top1[slot, image])


def try_network(seed: int) -> Counter[str]:
    """Run one network all ways; the counts of what was compared.

    Raises:
        Differs: if two do not agree.
    """
    rng = random.Random(seed)
    torch.manual_seed(seed)
    model, names = network(rng)
    count = rng.choice([2, 3, 5])
    images = PLACEMENT.inputs(torch.randn(count, 3, SIZE, SIZE))
    counted: Counter[str] = Counter()
    for target in ("neuron", "weight"):
        counted += _try_target(model, names, images, target, rng)
    return counted


def _try_target(
    model: nn.Module, names: Sequence[str], images: Tensor, target: TargetKind, rng: random.Random
) -> Counter[str]:
    must_be_refused = [name for name in names if name in REFUSED]
    struck = copy.deepcopy(model)
    injector = Injector(WithInput(struck) if target == "neuron" else struck, len(images), images)
    try:
        wave, note = engines.build("wave", injector, images)
        reference, _ = engines.build("reference", injector, images)
    except BadInput as error:
        if not must_be_refused:
            raise Differs(f"{target}: refused without need: {error}") from error
        return Counter(refused=1)
    if reference.most == 1:  # each image is alone, as in the loop, so that nothing reaches it from another one
        must_be_refused = [name for name in must_be_refused if name != "batch statistics"]
    if must_be_refused:
        raise Differs(f"{target}: not refused in spite of {must_be_refused[0]}")
    items = targets([Target(i, one) for i, one in enumerate(injector.everything)], target, None)
    items = [item for item in items if not item.parameter or not injector.overwrites(item.layer, item.parameter)]
    flips = [_flip(rng.choice(items), target, len(images), repeat, rng) for repeat in range(FAULTS)]
    clean = [logits for image in images if (logits := run(copy.deepcopy(model), image[None])) is not None]
    assert len(clean) == len(images)
    alone = list(zip(torch.split(images, 1), clean, strict=True))
    expected = [[plainly(model, image, logits, one, i) for i, (image, logits) in enumerate(alone)] for one in flips]
    budgets = [Budget(16, 1 << 28), rng.choice([Budget(1, 1), Budget(3, 1 << 12), Budget(7, 1 << 16)])]
    for engine, budget in [(reference, None), *((wave, budget) for budget in budgets)]:
        if isinstance(engine, Wave) and budget is not None:
            engine.budget = budget
        found = _run(engine, images, flips)
        for slot, row in enumerate(expected):
            for image, there in enumerate(row):
                here = outcome(found, slot, image)
                if here != there:
                    where = f"{target}, {engine.name}, {budget}: {flips[slot]}, image {image}"
                    raise Differs(f"{where}: {here}, not {there}")
    _replay(model, images, [int(logits.argmax(1)) for logits in clean], flips, expected)
    counted = Counter(kind for row in expected for kind, _ in row)
    counted.update({"inferences": len(flips) * len(images), "on the wave" if note is None else "on the reference": 1})
    return counted


def _flip(item: Target, target: TargetKind, count: int, repeat: int, rng: random.Random) -> Flips:
    kind = kinds.of(rng.choice(["flip"] * len(KINDS) + KINDS))
    bit = rng.choice([None, None, 1]) if kind.of_one_bit else None
    if target == "neuron":
        return neuron_flips(7, item.layer, 0, count, bit, repeat, kind=kind)
    return parameter_flip(7, item.layer, 0, bit, repeat, kind=kind, parameter=item.parameter)


def _run(engine: engines.Engine, images: Tensor, flips: list[Flips]) -> BatchOutcomes:
    from bitflip.campaign.executor import portions

    labels = torch.zeros(len(images), dtype=torch.int64)
    with torch.no_grad():
        return portions(engine, PLACEMENT).run(images, labels, flips, 0, lambda counted: None)


def _replay(
    model: nn.Module, images: Tensor, labels: list[int], flips: list[Flips], expected: list[list[Outcome]]
) -> None:
    """The same faults as a list, through the library."""
    rows: list[list[object]] = []
    wanted = []
    for repeat, (one, row) in enumerate(zip(flips, expected, strict=True)):
        places: list[str | int] = ["all"] if one.parameter else list(range(len(images)))
        for place in places:
            at = ";".join(map(str, one.coordinates(0 if one.parameter else int(place))))
            kind, named = one.written(0 if one.parameter else int(place))
            bit = "" if kind.startswith(("zero", "value")) else ";".join(map(str, named))
            rows.append([one.parameter or "neuron", one.layer.path, one.layer.call, at, bit, place, kind, repeat])
            wanted.append(Counter(kind for kind, _ in (row if one.parameter else [row[int(place)]])))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "faults.csv"
        lines = [",".join(map(str, row)) for row in [(*faultlist.HEADER, faultlist.FAULT, faultlist.REPEAT), *rows]]
        path.write_text("\n".join(lines) + "\n")
        campaign = bitflip.Campaign(model, TensorDataset(images, torch.tensor(labels)), device="cpu")
        result = campaign.run(bitflip.read_faults(path))
        with next(file for file in result.files.all if file.name.endswith("_faults.csv")).open() as file:
            found = [{name: int(row[column]) for name, column in NAMES.items()} for row in csv.DictReader(file)]
    for line, there, here in zip(rows, wanted, found, strict=True):
        if {name: there[name] for name in NAMES} != here:
            raise Differs(f"a list, {line}: {here}, not {dict(there)}")


NAMES = {"masked": "masked", "benign": "benign", "sdc1": "critical", "due": "due"}


def main() -> int:
    """Try networks until the time is over; the exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first network")
    options = parser.parse_args()
    torch.set_num_threads(1)
    devices.pin_arithmetic("ieee")
    until, seed, counted = time.monotonic() + 60 * options.minutes, options.seed, Counter[str]()
    while time.monotonic() < until:
        try:
            counted += try_network(seed)
        except Exception as error:  # whatever it is, the seed shows it again
            print(f"network {seed}: {type(error).__name__}: {error}")
            return 1
        seed += 1
    print(
        f"{seed - options.seed} networks, from seed {options.seed}: "
        + ", ".join(f"{n} {k}" for k, n in counted.items())
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
