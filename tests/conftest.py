"""What the tests share: a small network with everything that is awkward in it, and a way to run the entry scripts."""

from __future__ import annotations

import gc
import importlib
import os
import re
import runpy
import socket
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn, Protocol

# Before torch is loaded: threads that wait by spinning take the cores from the other workers, up to fifteenfold.
os.environ["OMP_WAIT_POLICY"] = "passive"

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from bitflip.data import digits
from bitflip.engines import verdicts
from bitflip.engines.verdicts import Verdicts
from bitflip.network import devices
from bitflip.settings.hyperparameters import Hyperparameters

ROOT = Path(__file__).resolve().parents[1]
LONGEST = {
    f"test_{name}.py" for name in ("cluster", "engines", "tracking", "resume", "terminal", "coverage", "faultlist")
}
SETTINGS = (*Hyperparameters.model_fields, "layer_nums")  # names of environment variables that a run looks at

DEVICE = torch.device("cpu")  # that the engines' tests compute on

devices.pin_arithmetic("ieee")  # as every run does


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files instead of comparing")
    parser.addoption("--threads", type=int, default=1, help="of torch in the tests; small tensors are faster with one")
    parser.addoption("--device", default="cpu", help="that the tests of the engines compute on, such as cuda")
    parser.addoption("--all-models", action="store_true", help="also try every classifier of torchvision (an hour)")


def of_torchao(name: str) -> Any:
    """A module of torchao; without it, the tests of a file are skipped.

    It does not go with every PyTorch that is allowed (0.18 can't be imported with 2.6); with the one that CI has, it
    does.
    """
    try:
        return importlib.import_module(name)
    except (ImportError, AttributeError) as error:
        pytest.skip(f"pip install -r requirements-dev.txt, and a PyTorch for it ({error})", allow_module_level=True)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more than there are cores: many tests wait for processes of their own."""
    return (os.cpu_count() or 1) + 1


def pytest_configure(config: pytest.Config) -> None:
    """Choose the number of threads, and the device, before any test module is imported."""
    global DEVICE
    DEVICE = devices.resolve(config.getoption("--device"))
    torch.set_num_threads(config.getoption("--threads"))


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out what takes long, unless it is asked for, and begin with the files that take longest."""
    items.sort(key=lambda item: item.path.name not in LONGEST)
    if not config.getoption("--all-models"):
        slow = [item for item in items if item.get_closest_marker("slow")]
        config.hook.pytest_deselected(items=slow)
        items[:] = [item for item in items if item not in slow]


def pytest_collection_finish() -> None:
    """Let no garbage collection look again at a million objects that were imported: each took a tenth of a second."""
    gc.collect()
    gc.freeze()


@pytest.fixture
def update_golden(request: pytest.FixtureRequest) -> bool:
    """Whether golden files are to be written."""
    return bool(request.config.getoption("--update-golden"))


@pytest.fixture(autouse=True)
def no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    """No test sees the hyperparameters, or the vessl run, of whoever started it."""
    for name in [*os.environ]:
        if name in SETTINGS or name.startswith("VESSL_"):
            monkeypatch.delenv(name)


@pytest.fixture(scope="session", autouse=True)
def cache_of_its_own(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """What is found out about kernels is shared by the tests, and the processes that they start, and nobody else."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture
def no_verdicts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known about any kernel, and nothing is kept: for tests that replace one."""
    nothing = Verdicts(None)
    monkeypatch.setattr(verdicts, "of", lambda device: nothing)


@pytest.fixture
def no_network(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Make every connection and every name look-up fail at once; return the list of those attempted."""
    attempts: list[Any] = []

    def refuse(*where: object, **_: object) -> NoReturn:
        attempts.append(where)
        raise socket.gaierror("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    return attempts


# --- networks and images ---


class TinyNet(nn.Module):
    """A residual network of 3x8x8 images with one ReLU for all its places: (B, 3, 8, 8) -> (B, 10)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 4, 3, padding=1)
        self.bn1 = nn.BatchNorm2d(4)
        self.relu = nn.ReLU()
        self.conv2 = nn.Conv2d(4, 4, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(4)
        self.pool = nn.MaxPool2d(2)
        self.drop = nn.Dropout(0.5)
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.relu(self.bn2(self.conv2(x)) + x)
        logits: Tensor = self.linear(self.drop(self.pool(x).flatten(1)))
        return logits


def scatter(model: nn.Module, seed: int = 0) -> nn.Module:
    """Give a network random weights and BatchNorm statistics, the same for the same seed."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2.0, generator=generator)
            elif value.is_floating_point():
                value.normal_(0.0, 0.3, generator=generator)
    return model


@pytest.fixture
def tiny() -> nn.Module:
    """A `TinyNet` with random weights, in eval mode."""
    return scatter(TinyNet()).eval()


def random_images(count: int, *shape: int, seed: int = 1) -> Tensor:
    """Standard normal images (count, *shape), without a trace in torch's own random state."""
    return torch.randn(count, *shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(scope="session")
def digits_model() -> nn.Module:
    """The shipped network with the shipped weights, in eval mode; not to be changed."""
    model = digits.build()
    model.load_state_dict(torch.load(digits.WEIGHTS, map_location="cpu", weights_only=True))
    return model.eval().requires_grad_(False)


class FewDigits(Protocol):
    """Cuts the digits' test part down to its first images."""

    def __call__(self, count: int) -> None: ...


@pytest.fixture
def few_digits(monkeypatch: pytest.MonkeyPatch) -> FewDigits:
    """Return a function that cuts the digits' test part down to its first ``count`` images, in this process."""
    return few_digits_with(monkeypatch)


def few_digits_with(monkeypatch: pytest.MonkeyPatch) -> FewDigits:
    """The fixture ``few_digits``, for fixtures of a wider scope."""
    load = digits.load

    def use(count: int) -> None:
        def load_few(part: digits.Part, img_size: int = 32, channels: int = 3) -> TensorDataset:
            images, labels = load(part, img_size, channels).tensors
            return TensorDataset(images[:count], labels[:count])

        monkeypatch.setattr(digits, "load", load_few)

    return use


# --- entry scripts ---


@dataclass(frozen=True)
class Finished:
    """How a script ended and what it printed."""

    code: int
    out: str
    err: str

    @property
    def errors(self) -> list[str]:
        """The sentences about a user's mistakes."""
        return [line.removeprefix("error: ") for line in self.err.splitlines()]


class RunScript(Protocol):
    """Runs an entry script; keyword arguments are environment variables."""

    def __call__(self, script: str, *arguments: object, **environ: str) -> Finished: ...


@pytest.fixture
def run_script(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> RunScript:
    """Return a function that runs an entry script as ``python SCRIPT ARGUMENTS`` does, but in this process."""

    def run(script: str, *arguments: object, **environ: str) -> Finished:
        capsys.readouterr()
        with monkeypatch.context() as patch:
            patch.setattr(sys, "argv", [script, *map(str, arguments)])
            for name, value in {"plots": "false", **environ}.items():  # plots take seconds
                patch.setenv(name, value)
            with pytest.raises(SystemExit) as exit_:
                runpy.run_path(str(ROOT / script), run_name="__main__")
        printed = capsys.readouterr()
        assert isinstance(exit_.value.code, int)
        return Finished(exit_.value.code, printed.out, printed.err)

    return run


class Refused(Protocol):
    """Sees that flags are refused, with a sentence that a pattern is found in."""

    def __call__(self, given: Sequence[str], sentence: str) -> None: ...


@pytest.fixture
def refused(tmp_path: Path, few_digits: FewDigits, run_script: RunScript) -> Refused:
    """Return a function that runs ``neuron.py`` on digits with flags that do not fit."""

    def run(given: Sequence[str], sentence: str) -> None:
        few_digits(20)
        done = run_script("neuron.py", "--dataset", "digits", "--output-path", tmp_path, *given)
        assert done.code == 2
        assert re.search(sentence, "\n".join(done.errors)), done.errors

    return run


@pytest.fixture
def run_process(tmp_path: Path) -> RunScript:
    """Return a function that runs an entry script as a process of its own, in an empty folder."""

    def run(script: str, *arguments: object, **environ: str) -> Finished:
        done = subprocess.run(
            [sys.executable, str(ROOT / script), *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", "plots": "false", **environ},
            capture_output=True,
            text=True,
            timeout=200,
        )
        return Finished(done.returncode, done.stdout, done.stderr)

    return run
