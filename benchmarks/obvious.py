"""What people do today: PyTorchFI 0.6.0 as its documentation shows it, one layer and batch after the other."""

from __future__ import annotations

import random
from collections.abc import Sequence

import bitstring
from pytorchfi.core import fault_injection
from pytorchfi.neuron_error_models import random_neuron_location
from pytorchfi.weight_error_models import random_weight_location
from torch import Tensor, nn

from benchmarks.task import TargetKind

BITS = 32


class PyTorchFI:
    """For each layer and batch: a clean pass, a declaration, which copies the model, and a faulty pass.

    The locations are random as its helper functions choose them; a hook or a weight function flips the bits, one value
    at a time, with bitstring.

    Args:
        model: in eval mode, in the default memory format.
        batch_size: images per batch.
        input_shape: (C, H, W) of one image.
        cuda: whether the model is on a GPU.
    """

    def __init__(self, model: nn.Module, batch_size: int, input_shape: Sequence[int], *, cuda: bool) -> None:
        self.model = model
        types = [nn.Conv2d, nn.Linear]  # 0.6.0 can't do layers without a weight
        self.injector = fault_injection(model, batch_size, list(input_shape), layer_types=types, use_cuda=cuda)
        # Hooks count calls, and the networks here call these modules once each, in this order.
        self.layers = [name for name, module in model.named_modules() if isinstance(module, tuple(types))]
        assert len(self.layers) == self.injector.get_total_layers()

    def run(self, target: TargetKind, images: Tensor, layer: int) -> tuple[Tensor, Tensor]:
        """Put faults into one layer; return the top-1 of each image, (B, C, H, W), clean and faulty: (B,) each."""
        clean = self.model(images).argmax(dim=1)
        faulty = self._neurons(images, layer) if target == "neuron" else self._weight(layer)
        return clean, faulty(images).argmax(dim=1)

    def _neurons(self, images: Tensor, layer: int) -> nn.Module:
        where = [random_neuron_location(self.injector, layer) for _ in images]
        faulty: nn.Module = self.injector.declare_neuron_fi(
            batch=list(range(len(images))),
            layer_num=[location[0] for location in where],
            dim1=[location[1] for location in where],
            dim2=[location[2] for location in where],
            dim3=[location[3] for location in where],
            function=self._flip_output,
        )
        return faulty

    def _weight(self, layer: int) -> nn.Module:
        number, k, dim1, dim2, dim3 = random_weight_location(self.injector, layer)
        faulty: nn.Module = self.injector.declare_weight_fi(
            layer_num=number, k=k, dim1=dim1, dim2=dim2, dim3=dim3, function=_flip_weight
        )
        return faulty

    def _flip_output(self, module: nn.Module, args: object, output: Tensor) -> None:
        """Work as PyTorchFI's own hooks do: find this layer's faults, check each, change the output in place."""
        pfi = self.injector
        here = [i for i, layer in enumerate(pfi.corrupt_layer) if layer == pfi.get_current_layer()]
        for i in here:
            pfi.assert_inj_bounds(index=i)
            location = [pfi.corrupt_batch[i], pfi.corrupt_dim1[i], pfi.corrupt_dim2[i], pfi.corrupt_dim3[i]]
            index = tuple(place for place in location if place is not None)  # a Linear has no dim2 and dim3
            output[index] = _flipped(output[index].item())
        pfi.updateLayer()
        if pfi.get_current_layer() >= pfi.get_total_layers():
            pfi.reset_current_layer()


def _flip_weight(weight: Tensor, location: tuple[int | None, ...]) -> float:
    return _flipped(weight[location].item())


def _flipped(value: float) -> float:
    """The float32 value with a random bit flipped."""
    bits = bitstring.BitArray(float=value, length=BITS)
    bits.invert(random.randrange(BITS))
    flipped: float = bits.float
    return flipped
