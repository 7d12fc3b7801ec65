"""The fast engine: every layer's faults in one sweep through the network.

The obvious loop runs the clean pass anew for each layer, runs the layers before the fault, whose values are known, and
runs rows on that have become identical to clean. The wave walks the model once per batch. At each chosen layer it forks
rows: a copy of the clean output, one flip per image. Forked rows of all earlier layers travel along in a pool and go
through each following step together, whatever layer they came from. A row whose only live value has become
bit-identical to clean can't differ any more, and leaves.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from torch import Tensor
from torch.utils._pytree import tree_map

from bitflip.data import inputs
from bitflip.data.inputs import Inputs
from bitflip.engines import memory
from bitflip.engines.exactness import Exactness
from bitflip.engines.graph import Entry, Program, Rows, Step, take
from bitflip.engines.injection import Injector
from bitflip.engines.passes import Passes, Results
from bitflip.engines.pool import Budget
from bitflip.engines.proofs import Proof, Prover
from bitflip.engines.reference import Reference
from bitflip.engines.striking import flip_rows, flippable_part, strike
from bitflip.engines.sweep import Clean, Fork, Sweep
from bitflip.engines.windows import Window, one_channel
from bitflip.faults.flips import Flips
from bitflip.network import formats
from bitflip.network.layers import Layer
from bitflip.network.quantised import memory_of
from bitflip.outcomes.batch import BatchOutcomes

OF_A_CHANNEL = ("weight", "weight.scale", "bias")  # one value of these changes one channel of a convolution's output

PROVED_PER_ROW = 8  # images that are best run together where bounds leave few rows of each layer to run


class Wave:
    """All layers in one sweep.

    Args:
        injector: of the model.
        program: its steps.
        budget: how much travels at once.
        windows: whether faults travel as windows as long as they are small.
        prover: what shows that rows need not be run; None to run them all.
        passes: the clean ones; None if no batch is run again.

    Attributes:
        alive: rows that left each step so far, by the step's place in the program.
    """

    name = "wave"

    def __init__(
        self,
        injector: Injector,
        program: Program,
        budget: Budget,
        *,
        windows: bool = True,
        prover: Prover | None = None,
        passes: Passes | None = None,
    ) -> None:
        self.injector = injector
        self.program = program
        self.budget = budget
        self.windows = windows
        self.prover = prover
        self._passes = Passes(injector, program, budget.bytes) if passes is None else passes
        self.alive: Counter[int] = Counter()
        self.most: int | None = None
        self.best: int | None = budget.images(injector.layers)
        if prover is not None:
            self.best = max(self.best, min(PROVED_PER_ROW * budget.rows, budget.bytes // (2 * self._passes.bytes)))
        self._exact = Exactness(program)
        self._step_of = {step.layer: i for i, step in enumerate(program.steps) if step.layer is not None}
        self._reference = Reference(injector)

    def run(self, images: Inputs, flips: Sequence[Flips], outcomes: BatchOutcomes) -> None:
        """See :class:`bitflip.engines.Engine`."""
        try:
            self._run(images, flips, outcomes)
        except Exception as error:
            if memory.ran_out(error):
                self._passes.let_go()
            raise

    def _run(self, images: Inputs, flips: Sequence[Flips], outcomes: BatchOutcomes) -> None:
        entries = {slot: self.entry(*one.where) for slot, one in enumerate(flips) if one.parameter}
        proof = None
        if self.prover is None:
            known = self._passes.known(images, outcomes.first)
        else:
            known = self._passes.of(images, outcomes.first)
            proof = self.prover.of_batch(known, outcomes)

        def fork(slot: int, step: Step, clean: Clean, image: Tensor) -> tuple[Any, Tensor, int]:
            way = self._fork_weight if slot in entries else self._fork_neurons
            return way(slot, step, clean, image, outcomes, proof)

        places = {slot: entry.step for slot, entry in entries.items() if isinstance(entry, Entry)}
        for slot, one in enumerate(flips):
            if slot not in entries and len(one):
                places[slot] = self._step_of[one.layer.path, one.layer.call]
        self._sweep(images, places, outcomes, fork, known, proof)
        for slot, found in entries.items():
            one = flips[slot]
            if found == "none" and not self.injector.reads(one.layer, one.parameter):
                with self.injector.injected(one) as injected:
                    outcomes.struck(slot, injected.original, injected.error)
                outcomes.masked(len(outcomes.labels))
            elif not isinstance(found, Entry):
                # What several steps read changes all of them, and a step that works in place can't be forked.
                self._reference.run_slot(images, slot, one, outcomes)

    def entry(self, layer: Layer, parameter: str) -> Entry | Literal["none", "several"]:
        """Where a parameter of a layer reaches the values of the images; see :meth:`Program.entry`."""
        if formats.is_of_output(parameter):
            return self.program.entry_of(layer.path)
        return self.program.entry(self.injector.tensor_of(layer, parameter))

    def _fork_neurons(
        self, slot: int, step: Step, clean: Clean, image: Tensor, outcomes: BatchOutcomes, proof: Proof | None
    ) -> tuple[Any, Tensor, int]:
        """The rows of a slot whose neurons flip: a copy of the clean output, with flips, mostly one for each image."""
        output, flips = clean[step.node], outcomes.flips[slot]
        struck = strike(
            flippable_part(self.program.module(step.node), output), flips, self.injector.stored(flips.layer)
        )
        outcomes.struck(slot, struck.original, struck.error)
        whole, count = flips.rows is None, len(image)
        if proof is not None:
            left = proof.left_at_fork(slot, step, struck, image)
            if len(left) < count:
                whole, count, left = False, len(left), self.budget.filled(left)
                struck, image = struck.only(left), image[left]
            if not count:
                return None, image, 0
        single = len(struck.original) == len(image)  # each image has one flip
        if self.windows and single and step.layout == Rows(0, 1) and output.dim() == 4 and output.shape[2:].numel() > 1:
            return Window.around(output, struck), image, count
        faulty = flip_rows(output, struck)
        return faulty if whole else take(faulty, step.layout, image), image, count

    def _fork_weight(
        self, slot: int, step: Step, clean: Clean, image: Tensor, outcomes: BatchOutcomes, proof: Proof | None
    ) -> tuple[Any, Tensor, int]:
        """The rows of a slot whose parameter flips: the step's output anew, or the one channel of it that changes."""
        flips = outcomes.flips[slot]
        entry = self.entry(*flips.where)
        assert isinstance(entry, Entry)
        own = step.layer == (flips.layer.path, flips.layer.call) and flips.parameter in OF_A_CHANNEL
        own = own and len(flips) == 1
        read, count = clean[step.inputs[0]], len(image)
        with self.injector.injected(flips) as injected:
            outcomes.struck(slot, injected.original, injected.error)
            if proof is not None and own:
                left = proof.left_at_parameter(slot, step, injected, read, image)
                if len(left) < count:
                    count, image = len(left), image[self.budget.filled(left)]
            whole = count == len(outcomes.labels)
            if not count:
                return None, image, 0
            if own and self.windows and self._exact.channel(step, read):
                channel = flips.coordinates(0)[0]
                some = read if whole else take(read, self.program.layouts[step.inputs[0]], image)
                return Window.of_channel(self._channel(step, some, channel), channel), image, count
            output = self.program.run_anew(entry, clean)
            # What only views the parameter, such as a class token for every image, must outlive the flip.
            if not formats.is_of_output(flips.parameter):
                place = memory_of(self.injector.tensor_of(*flips.where))
                output = tree_map(lambda leaf: _kept(leaf, place), output)
        return output if whole else take(output, step.layout, image), image, count

    def _channel(self, step: Step, read: Tensor, channel: int) -> Tensor:
        with self.program.mode:
            output = one_channel(self.program.module(step.node), read, channel)
        assert output is not None
        return output

    def _sweep(
        self,
        images: Inputs,
        places: Mapping[int, int],
        outcomes: BatchOutcomes,
        fork: Fork,
        known: Results,
        proof: Proof | None,
    ) -> None:
        """Run the slots that fork at the given places in the program, but for faults under which a step raises.

        Whether the model does so, too, the reference engine finds out.
        """
        forks: dict[int, list[int]] = {}
        for slot, place in places.items():
            forks.setdefault(place, []).append(slot)
        sweep = Sweep(self.program, self.budget, outcomes, forks, fork, self._exact, self.alive, known, proof)
        sweep.walk(0, {self.program.placeholder: self.program.model.pack(inputs.clone(images))}, [])
        for fault in sweep.raised:
            slot, image = divmod(fault, len(outcomes.labels))
            injected = self._reference.run_alone(images, slot, outcomes.flips[slot], image, outcomes)
            if outcomes.flips[slot].parameter:
                outcomes.struck(slot, injected.original, injected.error)


def _kept(leaf: Any, place: int) -> Any:
    """A copy of a tensor in the given memory, anything else as it is."""
    return leaf.clone() if isinstance(leaf, Tensor) and memory_of(leaf) == place else leaf
