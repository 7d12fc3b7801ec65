"""What is measured and what comes out: values that travel between processes as JSON. Imports nothing slow."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

Engine: TypeAlias = Literal["pytorchfi", "reference", "wave", "prove", "as_they_come"]
TargetKind: TypeAlias = Literal["neuron", "weight"]

ENGINES: tuple[Engine, ...] = get_args(Engine)
DEFAULT_ENGINES = ENGINES[:4]
FAMILIES = {
    "vgg": ("vgg11_bn", "vgg13_bn", "vgg16_bn", "vgg19_bn"),
    "resnet": ("resnet20", "resnet32", "resnet44"),
}
TRAINED = tuple(name for family in FAMILIES.values() for name in family)
MODELS = (*TRAINED, "resnet50")


@dataclass(frozen=True)
class Task:
    """One measurement.

    Attributes:
        engine: what runs the faults.
        model: name of the network.
        target: where bits flip.
        images: how many; the test part of digits, again from its start when it is used up.
        layers: how many of the layers, evenly spaced over them; None for all.
        batch_size: images per batch.
        seed: of the faults.
        device: auto, cpu, cuda or cuda:N.
        profile: also measure what the time goes into, which makes it longer.
    """

    engine: Engine
    model: str
    target: TargetKind
    images: int
    layers: int | None
    batch_size: int
    seed: int
    device: str
    profile: bool = False


@dataclass(frozen=True)
class Measured:
    """What came out of one measurement.

    Attributes:
        task: what was measured.
        ran: name of the engine that ran; the wave hands what it can't trace to the reference.
        seconds: of the campaign, without loading and warming up.
        cpu_seconds: of the process meanwhile, all threads together; on a CPU that others use, it falls behind.
        together: images that were run together; the wave runs more than a batch where that changes no fault.
        layers: the layers that faults were put into, as ``path`` or, from the second call on, ``path#call``.
        all_layers: number of layers that the engine could have put faults into.
        changed: faulty images with another top-1 than clean, per layer.
        peak_mib: the most memory in use: of the process on a CPU, of tensors on a GPU.
        start_mib: the same before the campaign: the program, the model and the images.
        alive: of the wave, by depth: rows that went through a step, and their share of the rows forked before it.
        profile: seconds by category, if asked for.
        machine: what it ran on.
    """

    task: Task
    ran: str
    seconds: float
    cpu_seconds: float
    together: int
    layers: list[str]
    all_layers: int
    changed: list[int]
    peak_mib: float
    start_mib: float
    alive: list[dict[str, Any]]
    profile: dict[str, Any]
    machine: dict[str, Any]

    @property
    def faults(self) -> int:
        """Faulty images that were run."""
        return self.task.images * len(self.layers)

    def scaled(self, images: int, layers: int) -> float:
        """Seconds for so many images and layers, from those measured and the number of whole passes.

        Raises:
            ValueError: of the wave, which makes no whole passes.
        """
        if (images, layers) == (self.task.images, len(self.layers)):
            return self.seconds
        if self.ran in ("wave", "prove"):
            raise ValueError("the wave's time can't be scaled to other images or layers")
        clean = 1 if self.ran == "reference" else 0  # its clean pass serves all layers; PyTorchFI's serves one
        return self.seconds * (layers + clean) / (len(self.layers) + clean) * images / self.task.images

    def save(self, path: Path) -> None:
        """Write it as JSON."""
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def load(cls, path: Path) -> Measured:
        """Read what :meth:`save` wrote."""
        values = json.loads(path.read_text())
        return cls(**{**values, "task": Task(**values["task"])})
