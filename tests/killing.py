"""Runs of the entry scripts that are killed with SIGKILL: at any moment, or just before their n-th file operation.

A killed run is a process of its own, forked from one that has imported everything already.
"""

from __future__ import annotations

import contextlib
import io
import itertools
import multiprocessing
import os
import resource
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path

import pytest
import torch
from torch.utils.data import TensorDataset
from tqdm import tqdm

from bitflip.campaign import loop
from bitflip.commands import run as command
from bitflip.data import digits
from bitflip.faults.flips import TargetKind

OPERATIONS = ("open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate", "os.chmod")
PREFIX: dict[TargetKind, str] = {"neuron": "", "weight": "weight_"}
IMAGES = 60

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload(["killing", "pyarrow.compute", "pyarrow.pandas_compat"])


@dataclass
class Run:
    """A run on the first few digits, started as often as it takes, always with the same settings.

    Attributes:
        target: of its faults.
        folder: for its results.
        arguments: further ones.
        images: of the digits' test part that are used.
        save_every: seconds between two checkpoints.
        listed: name of the fault list that it runs, without its ending; empty if it samples faults.
        codes: exit codes of its starts so far; -9 for one that was killed.
    """

    target: TargetKind
    folder: Path
    arguments: Sequence[str]
    images: int = IMAGES
    save_every: float = 0.0
    listed: str = ""
    codes: list[int] = field(default_factory=list)

    @property
    def stem(self) -> str:
        """What the names of its files start with."""
        return f"{PREFIX[self.target]}digits_vgg_digits_{f'list-{self.listed}' if self.listed else 5}"

    @property
    def said(self) -> str:
        """What the last start printed that was not killed."""
        return self.printed.read_text()

    @property
    def printed(self) -> Path:
        """The file that it is in."""
        return self.folder.parent / f"{self.folder.name}.printed"

    @property
    def progress(self) -> Path:
        """What a start that was killed has saved, if it got that far."""
        return self.folder / f"{self.stem}.unfinished" / "progress.npz"

    def start(self, die_before: int | None = None, largest_file: int | None = None) -> BaseProcess:
        """Start it, or start it again.

        Args:
            die_before: it kills itself before its n-th file operation in its folder.
            largest_file: no file that it writes can be longer, in bytes.
        """
        arguments = ["--dataset=digits", "--no-plots", f"--output-path={self.folder}", *self.arguments]
        arguments += [] if self.listed else ["--seed=5"]
        process = _context.Process(
            target=_child,
            args=(self, arguments, die_before, largest_file),
        )
        process.start()
        return process

    def ended(self, process: BaseProcess) -> int:
        """Wait for a start to end, and take note of its exit code."""
        process.join()
        assert process.exitcode is not None
        self.codes.append(process.exitcode)
        return process.exitcode

    def finish(self) -> None:
        """Start it and let it come to its end."""
        assert self.ended(self.start()) == 0, self.said

    def killed_after(self, seconds: float) -> int:
        """Start it and kill it after some seconds; its exit code, which is 0 if it was faster."""
        process = self.start()
        process.join(seconds)
        if process.is_alive():
            process.kill()
        return self.ended(process)

    def killed_late(self) -> None:
        """Kill it until it has saved progress: a slow machine may have been killed before that each time."""
        for before in itertools.count(6):
            if self.progress.exists():
                return
            self.ended(self.start(die_before=before))

    def files(self) -> dict[str, bytes]:
        """Its result files but the ``.json``, which holds times; nothing else may be in its folder."""
        there = {path.name: path for path in self.folder.iterdir()}
        suffixes = [".txt", ".csv", "_bits.csv", "_detailed.txt", "_faults.parquet", ".json"]
        suffixes += ["_faults.csv", "_images.csv"] if self.listed else []
        assert sorted(there) == sorted(f"{self.stem}{suffix}" for suffix in suffixes)
        return {name: path.read_bytes() for name, path in there.items() if path.suffix != ".json"}


def _child(run: Run, arguments: list[str], die_before: int | None, largest_file: int | None) -> None:
    """A run, in a process of its own."""
    printed = io.StringIO()
    tqdm.set_lock(threading.RLock())  # its own would outlive a killed process
    torch.set_num_threads(1)
    load = digits.load

    def load_few(part: digits.Part, img_size: int = 32, channels: int = 3) -> TensorDataset:
        inputs, labels = load(part, img_size, channels).tensors
        return TensorDataset(inputs[: run.images], labels[: run.images])

    left = die_before

    def count(event: str, args: tuple[object, ...]) -> None:
        nonlocal left
        if left is not None and event in OPERATIONS and str(run.folder) in str(args[0]):
            if event == "open" and args[1] == "r":
                return
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(printed),
        contextlib.redirect_stderr(printed),
    ):
        patch.setattr(digits, "load", load_few)
        patch.setattr(loop, "SAVE_EVERY", run.save_every)
        patch.setattr(loop, "SAVE_SHARE", 1.0 if run.save_every == 0 else loop.SAVE_SHARE)
        sys.addaudithook(count)
        if largest_file is not None:
            run.folder.mkdir(parents=True, exist_ok=True)
            resource.setrlimit(resource.RLIMIT_FSIZE, (largest_file, resource.RLIM_INFINITY))
        code = command.main(run.target, PREFIX[run.target], arguments)
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    run.printed.write_text(printed.getvalue())
    sys.exit(code)
