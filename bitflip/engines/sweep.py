"""One sweep of the wave: the rows of all faults of a batch on their way through the steps."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, fx, nn

from bitflip.engines import memory
from bitflip.engines.exactness import Exactness
from bitflip.engines.graph import Program, Rows, Step, by_image, bytes_of, copied, is_data, take
from bitflip.engines.passes import Results
from bitflip.engines.pool import Budget, Chunk, Packer
from bitflip.engines.proofs import Proof
from bitflip.engines.windows import (
    WIDEST,
    Kind,
    Spread,
    Window,
    one_channel_normalised,
    overlay,
    padded,
    unpadded,
)
from bitflip.network import bits
from bitflip.network.protections import Guard
from bitflip.outcomes.batch import BatchOutcomes

Clean = Mapping[fx.Node, Any]
Fork = Callable[[int, Step, Clean, Tensor], tuple[Any, Tensor, int]]
"""Given a slot, a step, clean values and the images that faults hit: rows, the image of each, how many are faulty."""

FEW = 20  # a check that frees less than one row in so many was not worth its time
MAX_PATIENCE = 7
TOO_LARGE, RAISED = object(), object()  # stand for the output of a step that did not fit the memory, or raised


class Sweep:
    """One batch's way through the steps.

    Args:
        program: the steps.
        budget: how much travels at once.
        outcomes: that take what is found.
        forks: the slots that fork behind each step.
        fork: makes their rows.
        exact: knows where windows are exact.
        alive: counts the rows that left each step.
        known: results of the clean pass, where it was made before.
        proof: what shows that rows need not be run; None to run them all.

    Attributes:
        raised: faults under which a step raises.
    """

    def __init__(
        self,
        program: Program,
        budget: Budget,
        outcomes: BatchOutcomes,
        forks: dict[int, list[int]],
        fork: Fork,
        exact: Exactness,
        alive: Counter[int],
        known: Results,
        proof: Proof | None,
    ) -> None:
        self.program = program
        self.known = known
        self.proof = proof
        self.packer = Packer(program.layouts, budget)
        self.budget = budget
        self.outcomes = outcomes
        self.forks = forks
        self.fork = fork
        self.exact = exact
        self.alive = alive
        self.padded: tuple[Step, Tensor] | None = None
        self.raised: list[int] = []
        self._costs = [_cost(program, step) for step in program.steps]
        self._left = list(accumulate(reversed(self._costs), initial=0.0))[::-1]  # from each step to the end
        self._work = sum(self._rows(slot) * self._left[i + 1] for i, slots in forks.items() for slot in slots)
        self._done = 0.0
        every = sum(self._rows(slot) for slot, one in enumerate(outcomes.flips) if len(one))
        self._share = sum(self._rows(slot) for slots in forks.values() for slot in slots) / max(1, every)

    def walk(self, start: int, clean: dict[fx.Node, Any], pool: list[Chunk], *, forking: bool = True) -> None:
        """Take the clean values and the pool from step ``start`` to the end, forking on the way."""
        for i, step in enumerate(self.program.steps[start:], start=start):
            pool, *others = self._affordable(step, pool, clean)
            for part in others:  # sweep them to the end on a clean pass of their own
                self.walk(i, {node: copied(value) for node, value in clean.items()}, part, forking=False)
            self.padded = None  # a walk before may have changed in place what it was made from
            # The pool goes first: a step that works in place changes the clean values that rows still have to read.
            # But windows that spread are held against the clean output.
            if step.kind is Kind.SPREAD:
                clean[step.node] = self._clean(step, clean)
            before = 0
            advanced: list[Chunk] = []
            for chunk in pool:
                rows = len(chunk)
                before += rows
                advanced += self._advance(step, chunk, clean)
                self._worked(rows * self._costs[i])
            pool = advanced
            if step.kind is not Kind.SPREAD:
                clean[step.node] = self._clean(step, clean)
            pool = self.packer.merged([left for chunk in pool for left in self._leave(step, chunk, clean[step.node])])
            after = sum(map(len, pool))
            self.alive[i] += after
            self._worked((before - after) * self._left[i + 1])
            if forking:
                for slot in self.forks.get(i, ()):
                    forked = self._forked(slot, step, clean)
                    new: list[Chunk] = []
                    if forked is not None:
                        new = self._gone(forked) if step.node in step.dead else self.packer.split(forked)
                    pool += new
                    self._worked((self._rows(slot) - sum(map(len, new))) * self._left[i + 1])
            for node in step.dead:
                del clean[node]
        self.outcomes.clean(clean[self.program.logits])
        for chunk in pool:
            self.outcomes.finished(chunk.fault, chunk.values[self.program.logits][: len(chunk)])

    def _rows(self, slot: int) -> int:
        rows = self.outcomes.flips[slot].hit
        return len(self.outcomes.labels) if rows is None else len(rows)

    def _worked(self, work: float) -> None:
        """Take note of work that is done, or that rows which leave need not do."""
        self._done += work
        if self._work and work:
            self.outcomes.under_way(min(1.0, self._done / self._work) * self._share)

    def _clean(self, step: Step, clean: dict[fx.Node, Any]) -> Any:
        if step.node in self.known:
            return self.known[step.node]
        return self.program.run(step.node, clean.__getitem__)

    def _affordable(self, step: Step, pool: list[Chunk], clean: dict[fx.Node, Any]) -> list[list[Chunk]]:
        """The pool in parts that stay within the budget in this step, also where windows become whole maps."""
        parts: list[list[Chunk]] = [[]]
        total = 0
        for chunk in pool:
            windowed = self._keeps_windows(step, chunk, clean)
            # More windows travel together than whole maps.
            for part in [chunk] if windowed else self.packer.split(chunk, self.budget.rows):
                size = self._bytes_after(step, part, clean, windowed=windowed)
                total += size
                if parts[-1] and total > self.budget.bytes:
                    parts.append([])
                    total = size
                parts[-1].append(part)
        return parts[::-1]  # the last part has room for more

    def _bytes_after(self, step: Step, chunk: Chunk, clean: dict[fx.Node, Any], *, windowed: bool) -> int:
        """Memory of a chunk after a step that keeps its windows, or does not."""
        read = [node for node in step.inputs if node in chunk.values]
        size = 0
        for node in chunk.values.keys() - set(step.dead):
            if node in read and not windowed and isinstance(chunk.values[node], Window):  # becomes a whole map
                size += bytes_of(clean[node]) // len(self.outcomes.labels) * len(chunk.image)
            else:
                size += chunk.bytes(node)
        if not read:
            return size
        if not windowed:
            return size + step.bytes * len(chunk.image)
        window: Window = chunk.values[read[0]]
        if step.kind is not Kind.SPREAD or window.channel is not None:
            return size + max(map(chunk.bytes, read))
        found, whole = self._spreading(step, window, clean)
        return size + step.bytes * len(chunk.image) * math.prod(found) // math.prod(whole)

    def _spreading(
        self, step: Step, window: Window, clean: dict[fx.Node, Any]
    ) -> tuple[tuple[int, int], tuple[int, int]]:
        """Size of the window that a convolution or pooling makes of a window, and of its whole map."""
        spread = Spread.of(self.program.module(step.node))
        assert spread is not None
        whole = spread.whole(clean[step.inputs[0]].shape)
        return spread.size(window.size, whole), whole

    def _forked(self, slot: int, step: Step, clean: dict[fx.Node, Any]) -> Chunk | None:
        """The rows of a slot; None if none is left, or if the step raises under a flip of its parameter."""
        count, device = len(self.outcomes.labels), self.outcomes.labels.device
        rows = self.outcomes.flips[slot].hit
        image = torch.arange(count, device=device) if rows is None else torch.from_numpy(rows).to(device)
        try:
            value, image, faulty = self.fork(slot, step, clean, image)
        except Exception as error:  # a module's own code can raise anything
            if not self.outcomes.flips[slot].parameter or not memory.may_be_due(error):
                raise
            fault = image + slot * count
            self.raised += fault[self.outcomes.effects.view(-1)[fault] == 0].tolist()  # not those that are proved
            return None
        if not faulty:
            return None
        chunk = Chunk(image[:faulty] + slot * count, image, {step.node: value})
        if self.proof is None or not self.outcomes.flips[slot].parameter:
            return chunk
        beside = self._beside(step, chunk, clean[step.node])
        if beside is None:
            return chunk
        left = self.proof.left(step, chunk, *beside, torch.arange(len(chunk), device=device))
        return None if not len(left) else chunk if len(left) == len(chunk) else self.packer.only(chunk, left)

    def _advance(self, step: Step, chunk: Chunk, clean: dict[fx.Node, Any]) -> list[Chunk]:
        """Carry out a step on a chunk, in parts where it does not fit the memory."""
        if any(node in chunk.values for node in step.inputs):
            output = self._output(step, chunk, clean)
            if output is RAISED and (len(chunk) == 1 or step.in_place):
                self.raised += chunk.fault.tolist()
                return []
            if output is TOO_LARGE:
                memory.let_go()
            if output is TOO_LARGE or output is RAISED:
                halves = self.packer.split(chunk, -(-len(chunk) // 2))
                return [done for half in halves for done in self._advance(step, half, clean)]
            if is_data(step.layout):
                chunk.values[step.node] = output
        for node in step.dead:
            chunk.values.pop(node, None)
        return [chunk] if chunk.values else self._gone(chunk)

    def _output(self, step: Step, chunk: Chunk, clean: dict[fx.Node, Any]) -> Any:
        """The step's output, or TOO_LARGE where the memory does not suffice for the chunk, but may for half of it.

        RAISED where it raises, as the model may under one of the faults.
        """
        try:
            if self._keeps_windows(step, chunk, clean):
                return self._on_windows(step, chunk, clean)
            return self.program.run(step.node, lambda node: self._load(node, chunk, clean))
        except Exception as error:  # a module's own code can raise anything
            if memory.may_be_due(error):
                return RAISED
            if len(chunk) == 1 or not memory.ran_out(error):
                raise
            return TOO_LARGE

    def _load(self, node: fx.Node, chunk: Chunk, clean: dict[fx.Node, Any]) -> Any:
        """What a step reads: the rows' own values, as whole maps, or the clean ones of their images."""
        value = chunk.values.get(node)
        if value is None or isinstance(value, Window):
            rows = take(clean[node], self.program.layouts[node], chunk.image)
            if value is None:
                return rows
            chunk.values[node] = value.paste(rows)
        return chunk.values[node]

    def _keeps_windows(self, step: Step, chunk: Chunk, clean: dict[fx.Node, Any]) -> bool:
        """Whether a step reads no whole map of the chunk, and makes none: only windows of windows, or nothing.

        And whether the windows get the bits that they would have in the whole map.
        """
        inputs = [chunk.values[node] for node in step.inputs if node in chunk.values]
        if not inputs:
            return True
        if step.kind is Kind.OTHER or not all(isinstance(value, Window) for value in inputs):
            return False
        channel = inputs[0].channel
        if step.kind is Kind.SUM:
            fits = all(value.channel == channel for value in inputs)
            if len(inputs) == 2:
                inner, outer = sorted(inputs, key=lambda window: window.size)
                fits = fits and inner.lies_within(outer)
            return fits and all(clean[node].shape == clean[step.inputs[0]].shape for node in step.inputs)
        if step.kind is Kind.SPREAD:
            found, whole = self._spreading(step, inputs[0], clean)
            if channel is None and math.prod(found) > WIDEST * math.prod(whole):
                return False
            if channel is not None and isinstance(self.program.module(step.node), nn.Conv2d):
                return False
        return self.exact.window(step, inputs[0].size, channel, clean[step.inputs[0]])

    def _on_windows(self, step: Step, chunk: Chunk, clean: dict[fx.Node, Any]) -> Window:
        """The step's output as a window."""
        if step.kind is Kind.POINTWISE:
            window: Window = chunk.values[step.inputs[0]]
            module = self.program.module(step.node) if step.node.op == "call_module" else None
            if window.channel is not None and isinstance(module, nn.BatchNorm2d):
                return window.having(one_channel_normalised(module, window.contents, window.channel))
            if window.channel is not None and isinstance(module, Guard):
                return window.having(module.of_channel(window.contents, window.channel))
            return window.having(self.program.run(step.node, lambda _: window.contents))
        if step.kind is Kind.SUM:
            return self._sum(step, chunk, clean)
        return self._spread(step, chunk, clean)

    def _sum(self, step: Step, chunk: Chunk, clean: dict[fx.Node, Any]) -> Window:
        windows = {node: chunk.values[node] for node in step.inputs if node in chunk.values}
        outer: Window = max(windows.values(), key=lambda window: window.size)
        operands = {}
        for node in step.inputs:
            if windows.get(node) is outer:
                operands[node] = outer.contents
                continue
            operands[node] = outer.crop(clean[node], chunk.image)
            if node in windows:  # of the two branches of a residual block, one spreads less
                operands[node] = overlay(operands[node], windows[node].seen_from(outer))
        return outer.having(self.program.run(step.node, operands.__getitem__))

    def _spread(self, step: Step, chunk: Chunk, clean: dict[fx.Node, Any]) -> Window:
        (node,) = step.inputs
        module, output = self.program.module(step.node), clean[step.node]
        spread = Spread.of(module)
        assert spread is not None
        if self.padded is None or self.padded[0] is not step:
            self.padded = step, padded(clean[node], spread)
        surroundings = self.padded[1]
        patch, found = spread.patches(chunk.values[node], surroundings, chunk.image, (output.shape[2], output.shape[3]))
        with self.program.mode:
            return found.having(unpadded(module, patch))

    def _leave(self, step: Step, chunk: Chunk, clean: Any) -> list[Chunk]:
        """Let rows go that have become bit-identical to clean."""
        if not step.masks or chunk.values.keys() != {step.node}:
            return [chunk]
        if chunk.checks_to_skip:
            chunk.checks_to_skip -= 1
            return [chunk]
        beside = self._beside(step, chunk, clean)
        assert beside is not None
        assert isinstance(step.layout, Rows)
        differs = torch.ne(*map(bits.exact, beside))
        rows = by_image(differs, step.layout)[: len(chunk)].any(dim=1).nonzero().squeeze(1)
        same = len(chunk) - len(rows)
        if self.proof is not None and len(rows):
            rows = self.proof.left(step, chunk, *beside, rows)
        gone = len(chunk) - len(rows)
        if gone * FEW < len(chunk):  # rows that have come so far rarely become identical later: look less often
            chunk.patience = min(2 * chunk.patience + 1, MAX_PATIENCE)
        chunk.checks_to_skip = chunk.patience
        if gone == 0:
            return [chunk]
        self.outcomes.masked(same)
        return [self.packer.only(chunk, rows)] if len(rows) else []

    def _beside(self, step: Step, chunk: Chunk, clean: Any) -> tuple[Tensor, Tensor] | None:
        """What rows have behind a step, or the part of it that may differ, and what their images have there without a
        fault; None where it is not one tensor.
        """
        value = chunk.values[step.node]
        if isinstance(value, Window):
            return value.contents, value.crop(clean, chunk.image)
        if isinstance(value, Tensor) and isinstance(step.layout, Rows):
            return value, take(clean, step.layout, chunk.image)
        return None

    def _gone(self, chunk: Chunk) -> list[Chunk]:
        self.outcomes.masked(len(chunk))
        return []


def _cost(program: Program, step: Step) -> float:
    """Work of a step on one row, roughly: the values that it makes, by the products that each is a sum of."""
    module = program.module(step.node) if step.node.op == "call_module" else None
    weight = getattr(module, "weight", None)
    products = weight.shape[1:].numel() if isinstance(weight, Tensor) and weight.dim() > 1 else 0
    return float((1 + step.bytes) * (1 + products))
