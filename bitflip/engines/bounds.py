"""A proof instead of a run: how far a fault can move the logits, at most.

From a value to the logits, a network is Lipschitz in the L2 norm: a layer's output moves by at most a constant times
what its input moves. Along a path the constants multiply, and paths that meet add up. So a row whose distance to clean
is d moves the value before the classifier's last layer by at most L * d; if that is less than it takes to change the
class of the image, the class is as it is without the fault, and the row need not be run.

Constants of convolutions and linear layers are operator norms, see :mod:`bitflip.engines.norms`; a batch normalisation
behind a convolution is part of it. Activations have the largest slope that they have anywhere, pooling the root of the
number of windows that share a pixel. Steps that multiply or divide values of the images, such as attention and layer
normalisation, have none: there, only what comes behind them is decided.

The theorem is about real numbers, runs are about floating-point ones: see :data:`SLACK` and :data:`STRETCH`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx, nn

from bitflip.data import inputs
from bitflip.data.inputs import Inputs
from bitflip.engines import constants, narrow, norms
from bitflip.engines.capture import Untraceable
from bitflip.engines.constants import ADDS, FUNCTION_SLOPES, MOVES, SCALE
from bitflip.engines.graph import Program, Rows, Step, by_image, is_data
from bitflip.engines.narrow import Constants
from bitflip.engines.windows import function_name, is_plain
from bitflip.network.protections import Guard

SLACK = 64  # times the largest difference of a logit between passes in float64 and in the model's own arithmetic
STRETCH = 1 + 2**-8  # of every bound, for the rounding of what a fault adds
_ONE, _NOTHING = Constants.everywhere(1.0), Constants.everywhere(0.0)


@dataclass(frozen=True)
class Reach:
    """How far the value before the last layer, and the logits themselves, may move without another class, (B,) each."""

    before_last: Tensor
    logits: Tensor


class Bounds:
    """The constants of a program.

    Args:
        program: in eval mode.
        images: any batch, for its form.

    Attributes:
        shapes: of the values that are one tensor, with two images.
    """

    def __init__(self, program: Program, images: Inputs) -> None:
        self._program = program
        self._steps = program.steps
        self._last = self._last_linear()
        self._onward: dict[fx.Node, Constants] = {}  # along all ways
        self.shapes: dict[fx.Node, torch.Size] = {}
        self._constants: dict[fx.Node, Any] = {}
        self._inside: dict[fx.Node, float] = {}  # of layers of the user's own
        if self._last is not None:
            weight = self._last.weight.detach().double()
            self._apart = torch.cdist(weight, weight, compute_mode="donot_use_mm_for_euclid_dist")  # (classes, classes)
        self._look(images)
        self._find()
        nodes = (program.placeholder, *(step.node for step in self._steps))
        self._onward = {node: self.onward(node).to(inputs.device(images)) for node in nodes}

    def onward(self, node: fx.Node) -> Constants:
        """By how much the value before the last layer moves, at most, for each unit that a value moves."""
        return self._onward.get(node, _NOTHING)

    def reach(self, clean: Tensor, rounding: float) -> Reach:
        """How far the images of a batch are from another class.

        Args:
            clean: the logits, (B, classes).
            rounding: the largest difference of a logit between a pass in float64 and one in the model's own arithmetic,
                as a share of the image's largest logit.
        """
        logits = clean.double()
        largest = logits.abs().amax(1, keepdim=True)
        slack = SLACK * max(rounding, torch.finfo(clean.dtype).eps) * largest
        top, rows = logits.argmax(1), torch.arange(len(logits), device=logits.device)
        margins = logits[rows, top][:, None] - logits - slack
        margins[rows, top] = math.inf
        by_logits = margins.amin(1) / math.sqrt(2)
        by_last = by_logits
        if self._last is not None:
            by_last = (margins / self._apart.to(logits.device)[top].clamp_min(1e-300)).amin(1)
        safe = [torch.where(logits.isfinite().all(1), found, 0.0) / STRETCH for found in (by_last, by_logits)]
        return Reach(*(found.nan_to_num(0.0, posinf=1e300).clamp_min(0.0) for found in safe))

    def harmless(self, distance: Tensor, step: Step, image: Tensor, reach: Reach, each: Tensor | None = None) -> Tensor:
        """Which rows can't change their class, (R,) of bool.

        Args:
            distance: of each row to clean, in the L2 norm, (R,).
            step: whose result is the one value in which they differ from clean, and has not been read yet.
            image: of each row, (R,).
            reach: of the batch's images.
            each: by how much the value before the last layer moves for a unit of the distance, (R,) or (1,), if it is
                known which part of the result differs; see :meth:`onward`.
        """
        if step.node is self._program.logits:
            return distance.double() < reach.logits[image]
        constant = self.onward(step.node).whole if each is None else each
        return distance.double() * constant < reach.before_last[image]  # False for NaN

    def moved(self, step: Step, parameter: str, index: tuple[int, ...], read: Tensor) -> Tensor | None:
        """How far a layer's output moves for each unit that a value of its weight or bias moves, (B,).

        Args:
            step: the layer's.
            parameter: ``weight`` or ``bias``.
            index: of the value.
            read: what the layer reads, (B, ...).

        Returns:
            The distance in the L2 norm; None where it is not known.
        """
        column: int | None = None
        if parameter == "weight":
            column = index[0] if len(index) == 1 else index[1]
            module = self._program.module(step.node)
            if type(module) is nn.Conv2d:
                column += index[0] // (module.out_channels // module.groups) * (module.in_channels // module.groups)
        units = self.units(step, parameter, read, column)
        return None if units is None else units[:, 0]

    def units(self, step: Step, parameter: str, read: Any, column: int | None = None) -> Tensor | None:
        """The same for all values of the weight or bias that are multiplied with the same, (B, K).

        Args:
            step: the layer's.
            parameter: ``weight`` or ``bias``.
            read: what the layer reads, (B, ...).
            column: the only one that is wanted; None for all: the K input channels of a convolution or linear layer,
                the channels of a normalisation; of a bias, one for all of its values.
        """
        module, shape = self._program.module(step.node), self.shapes.get(step.node)
        if step.layout != Rows(0, 1) or shape is None or not is_plain(module) or not isinstance(read, Tensor):
            return None
        kind, only = type(module), slice(None) if column is None else slice(column, column + 1)
        if kind not in (nn.Conv2d, nn.Linear, nn.BatchNorm2d) or read.dim() != (2 if kind is nn.Linear else 4):
            return None
        if isinstance(module, nn.Conv2d) and module.padding_mode != "zeros":
            return None  # some values are multiplied several times
        if parameter == "bias":
            return read.new_full((len(read), 1), math.sqrt(math.prod(shape[2:])), dtype=torch.float64)
        if parameter != "weight":
            return None
        part = read[:, only]
        scale: Tensor | None = None
        if isinstance(module, nn.BatchNorm2d):
            if module.running_mean is None or module.running_var is None:
                return None
            part = part - module.running_mean[only, None, None]
            scale = (module.running_var[only].double() + module.eps).rsqrt()
        found: Tensor = torch.linalg.vector_norm(
            part.flatten(2) if part.dim() > 2 else part[..., None], dim=2, dtype=torch.float64
        )
        return found if scale is None else found * scale

    def _last_linear(self) -> nn.Linear | None:
        """The layer that makes the logits, if it is linear."""
        node = self._program.logits
        module = self._program.module(node) if node.op == "call_module" else None
        return module if type(module) is nn.Linear and is_plain(module) else None

    def _look(self, images: Inputs) -> None:
        """Run a pass to see the shapes of all values, and what does not depend on the images."""
        program = self._program
        values: dict[fx.Node, Any] = {program.placeholder: program.model.pack(images)}
        with torch.no_grad():
            for step in self._steps:
                if self._is_unknown(step):
                    self._inside[step.node] = _inside(program.module(step.node), values[step.inputs[0]])
                done = program.run(step.node, values.__getitem__)
                values[step.node] = done
                if isinstance(done, Tensor):
                    self.shapes[step.node] = done.shape
                if not is_data(step.layout):
                    self._constants[step.node] = done
                for node in step.dead:
                    del values[node]
        placeholder = program.model.pack(images)
        if isinstance(placeholder, Tensor):
            self.shapes[program.placeholder] = placeholder.shape

    def _is_unknown(self, step: Step) -> bool:
        """Whether a step calls a layer of the user's own, with one value."""
        if step.node.op != "call_module" or len(step.inputs) != 1 or len(step.node.args) != 1 or step.node.kwargs:
            return False
        module = self._program.module(step.node)
        return is_plain(module) and not type(module).__module__.startswith("torch.nn.") and type(module) is not Guard

    def _find(self) -> None:
        """From the end to the beginning: what a unit of each value does to the value before the last layer."""
        readers: dict[fx.Node, list[Step]] = {}
        for step in self._steps:
            for node in set(step.inputs):
                readers.setdefault(node, []).append(step)
        end = self._program.logits if self._last is None else self._program.logits.all_input_nodes[0]
        for step in reversed(self._steps):
            if step.node is end:
                self._note(step, _ONE, readers)
            elif step.node is not self._program.logits:  # which has a reach of its own
                self._note(step, self.onward(step.node), readers)
        self._onward[end] = _ONE

    def _note(self, step: Step, behind: Constants, readers: Mapping[fx.Node, list[Step]]) -> None:
        """Add what goes through a step to its inputs."""
        scales = None
        if (normalised := self._normalised_by(step, readers)) is not None and 0.0 < behind.whole < math.inf:
            scales, after = normalised
            behind = self.onward(after)
        for node in set(step.inputs):
            if node in self._constants:
                continue
            each = Constants.everywhere(behind.whole)
            if 0.0 < behind.whole < math.inf:
                factor = self._factor(step, node, scales)
                each = Constants.everywhere(factor * behind.whole)
                if each.whole < math.inf and self._program.layouts[node] == step.layout == Rows(0, 1):
                    module = self._program.module(step.node) if step.node.op == "call_module" else None
                    found = narrow.before(step.node, module, node, self.shapes, factor, behind, scales)
                    each = each if found is None else found.within(each.whole)
            self._onward[node] = self._onward[node] + each if node in self._onward else each

    def _normalised_by(self, step: Step, readers: Mapping[fx.Node, list[Step]]) -> tuple[Tensor, fx.Node] | None:
        """The scales of the batch normalisation that alone reads a convolution's output, and its own output."""
        if step.node.op != "call_module" or type(self._program.module(step.node)) is not nn.Conv2d:
            return None
        read = readers.get(step.node, [])
        if len(read) != 1 or read[0].node.op != "call_module" or step.node is self._program.logits:
            return None
        module = self._program.module(read[0].node)
        if type(module) is not nn.BatchNorm2d or not is_plain(module):
            return None
        scales = norms.scales_of(module)
        return None if scales is None else (scales, read[0].node)

    def _factor(self, step: Step, node: fx.Node, scales: Tensor | None = None) -> float:
        """The constant of one step with respect to one of its inputs; infinity where there is none.

        Args:
            step: any.
            node: its input.
            scales: of the channels of its output, to be taken along.
        """
        if step.in_place and len(step.inputs) > 2:
            return math.inf
        if step.node.op == "call_module":
            module = self._program.module(step.node)
            if step.node in self._inside:
                return self._inside[step.node]
            return constants.of_module(module, self.shapes.get(node), scales) if is_plain(module) else math.inf
        return self._of_function(step, node)

    def _of_function(self, step: Step, node: fx.Node) -> float:
        name, call = function_name(step.node), step.node
        others = [n for n in step.inputs if n is not node]
        data = [n for n in others if n not in self._constants]
        times = sum(argument is node for argument in constants.arguments(call))
        if name in MOVES:
            return float(max(1, times)) if constants.each_once(name, call, data) else math.inf
        if name in ADDS and not call.kwargs:
            shape = self.shapes.get(node)
            return float(max(1, times)) if shape == self.shapes.get(call) else math.inf
        if data or len(others) > 1:
            return math.inf
        if name in FUNCTION_SLOPES and (name not in ("softplus", "hardtanh") or len(call.args) == 1):
            return FUNCTION_SLOPES[name]
        if name in SCALE and len(call.args) == 2 and not call.kwargs:
            return self._scaled(name, call, node)
        pooling = constants.pooling(call, self.shapes.get(node))
        return math.inf if pooling is None else pooling.constant

    def _scaled(self, name: str, call: fx.Node, node: fx.Node) -> float:
        """By a constant."""
        first, second = call.args
        if first is node and second is node:
            return math.inf
        by: Any = second if first is node else first
        by = self._constants[by] if isinstance(by, fx.Node) else by
        if "div" in name and second is node:
            return math.inf
        if self.shapes.get(node) != self.shapes.get(call):
            return math.inf  # one value in several places
        sizes = torch.as_tensor(by, dtype=torch.float64).abs()
        largest = float((1 / sizes if "div" in name else sizes).max())
        # Not 0, which would hide a path without a constant: what is infinite on it makes NaN.
        return max(largest, 1e-30) if math.isfinite(largest) else math.inf


def distance(value: Tensor, clean: Tensor) -> Tensor:
    """Of each row, (S, ...), to its clean value, in the L2 norm, (S,)."""
    found: Tensor = torch.linalg.vector_norm(by_image(value - clean, Rows(0, 1)), dim=1)
    return found


def _inside(module: nn.Module, value: Any) -> float:
    """The constant of a layer, from the functions that it calls."""
    if not isinstance(value, Tensor):
        return math.inf
    try:
        program = Program(module, {}, [], value.detach(), whole=lambda part: False)
    except Untraceable:
        return math.inf
    return Bounds(program, value.detach()).onward(program.placeholder).whole
