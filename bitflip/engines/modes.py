"""Modes in which every operation of a forward pass is seen."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from bitflip.network.quantised import memory_of

DYNAMO = "torch._dynamo"


class Mode(TorchDispatchMode):  # type: ignore[no-untyped-call] # torch's own
    """A ``TorchDispatchMode`` that does not bring Dynamo, which takes a second to import.

    PyTorch keeps Dynamo from compiling the method of every mode with a decorator that imports it. Nothing is compiled
    before somebody else has imported it, so until then there is nothing to keep out.
    """

    _shielded: ClassVar[bool] = False

    @classmethod
    def _should_skip_dynamo(cls) -> bool:
        return False  # see __enter__

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()  # type: ignore[no-untyped-call]

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __enter__(self) -> Any:
        kind = type(self)
        if DYNAMO in sys.modules and not kind._shielded:
            shield: Any = torch._disable_dynamo  # type: ignore[attr-defined]
            kind.__torch_dispatch__ = shield(kind.__torch_dispatch__)  # type: ignore[method-assign]
            kind._shielded = True
        return super().__enter__()  # type: ignore[no-untyped-call]


class Reads(Mode):
    """Notes the memory of all tensors that operations read."""

    def __init__(self) -> None:
        super().__init__()
        self.storages: set[int] = set()

    def __torch_dispatch__(
        self, operation: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        for leaf in tree_leaves((args, kwargs)):
            if isinstance(leaf, Tensor) and leaf.layout == torch.strided:
                self.storages.add(memory_of(leaf))
        return operation(*args, **(kwargs or {}))
