"""Too little memory means smaller portions, and the same results."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from conftest import FewDigits, RunScript, random_images
from torch import Tensor, nn

from bitflip.campaign import executor
from bitflip.engines import build, memory
from bitflip.engines.injection import Injector
from bitflip.faults.flips import TargetKind
from bitflip.faults.sampled import Sampling
from bitflip.network import layers
from bitflip.network.devices import Placement
from bitflip.network.layers import Target

ON_A_GPU = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
ON_THE_HOST = RuntimeError(
    "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate "
    "17179869184 bytes. Error code 12 (Cannot allocate memory)"
)
LACKS = [
    pytest.param(ON_A_GPU, id="on a GPU"),
    pytest.param(ON_THE_HOST, id="on the host"),
    pytest.param(MemoryError("Unable to allocate 2.00 GiB for an array"), id="of numpy"),
]
ENGINES = pytest.mark.parametrize("engine", ["wave", "reference"])
SCRIPTS = pytest.mark.parametrize("script", ["main.py", "weight.py"])


def room_for(most: int, monkeypatch: pytest.MonkeyPatch, error: Exception) -> list[int]:
    """Let convolutions of a campaign fail on more rows than ``most``; the sizes at which they did."""
    forward, portions = nn.Conv2d.forward, executor.portions
    failed: list[int] = []

    def limited(self: nn.Conv2d, x: Tensor) -> Tensor:
        if len(x) > most:
            failed.append(len(x))
            raise error
        return forward(self, x)

    def narrowed(*args: Any) -> memory.Portions:
        monkeypatch.setattr(nn.Conv2d, "forward", limited)
        return portions(*args)

    monkeypatch.setattr(executor, "portions", narrowed)
    return failed


@SCRIPTS
@ENGINES
def test_a_single_image_at_a_time(
    engine: str,
    script: str,
    run_script: RunScript,
    few_digits: FewDigits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same counts; a single image takes other kernels, which may round values in another order."""
    few_digits(5)
    arguments = [
        "--dataset=digits",
        "--no-plots",
        "--seed=5",
        f"--engine={engine}",
        "--bit-flip-pos=1",
        "--layer-num=1,3,18",
    ]
    run_script(script, *arguments, "--output-path", tmp_path / "whole")
    room_for(1, monkeypatch, ON_THE_HOST)
    done = run_script(script, *arguments, "--output-path", tmp_path / "small")
    assert done.err.splitlines() == reductions(5, 1)
    assert files(tmp_path / "small") == files(tmp_path / "whole")


@SCRIPTS
@ENGINES
def test_not_even_one_image(
    engine: str,
    script: str,
    run_script: RunScript,
    few_digits: FewDigits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few_digits(3)
    room_for(0, monkeypatch, ON_THE_HOST)
    done = run_script(
        script, "--dataset=digits", "--no-plots", f"--engine={engine}", "--layer-num=1", "--output-path", tmp_path
    )
    assert (done.code, done.err.splitlines()[:-1]) == (2, reductions(3, 1))
    (reason,) = str(ON_THE_HOST).splitlines()
    sentence = f"error: device (--device): the memory does not suffice for one image at a time ({reason})"
    assert done.err.splitlines()[-1] == sentence
    assert [*tmp_path.iterdir()] == []


def test_other_errors_are_no_lack_of_memory(
    run_script: RunScript, few_digits: FewDigits, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    few_digits(5)
    failed = room_for(2, monkeypatch, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot"):
        run_script("main.py", "--dataset=digits", "--no-plots", "--engine=reference", "--output-path", tmp_path)
    assert len(failed) == 1


@pytest.mark.parametrize("error", LACKS)
def test_a_model_that_does_not_fit(
    error: Exception, run_script: RunScript, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(self: nn.Conv2d, x: Tensor) -> Tensor:
        raise error

    monkeypatch.setattr(nn.Conv2d, "forward", fail)
    done = run_script("main.py", "--dataset=digits", "--no-plots", "--output-path", tmp_path)
    assert (done.code, done.err) == (
        2,
        f"error: device (--device): the memory does not suffice for the run ({error})\n",
    )
    assert [*tmp_path.iterdir()] == []


@pytest.mark.parametrize("target", ["neuron", "weight"])
@ENGINES
def test_progress_counts_each_faulty_image_once(
    engine: Literal["wave", "reference"], target: TargetKind, tiny: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a batch fails after some of its faults were counted."""
    injector = Injector(tiny, 8, torch.zeros(1, 3, 8, 8))
    items = layers.targets([Target(i, layer) for i, layer in enumerate(injector.layers)], target, ("weight",))
    images, labels = random_images(8, 3, 8, 8), torch.zeros(8, dtype=torch.int64)
    sampling = Sampling(target, (1, 2), 8, 1, None)
    found: list[int] = []
    chosen, _ = build(engine, injector, images[:1])
    room_for(3, monkeypatch, ON_THE_HOST)
    failed_after = len(items)
    forward = nn.Linear.forward

    def fails_late(self: nn.Linear, x: Tensor) -> Tensor:
        nonlocal failed_after
        failed_after -= 1
        if failed_after == 0:
            raise ON_THE_HOST
        return forward(self, x)

    monkeypatch.setattr(nn.Linear, "forward", fails_late)
    fitting = executor.portions(chosen, Placement(torch.device("cpu"), torch.float32))
    for first, count in ((0, 8), (8, 5)):
        flips = sampling.flips(items, first, count)
        batch = fitting.run(images[:count], labels[:count], flips, first, found.append)
        assert (batch.first, tuple(batch.top1.shape)) == (first, (2 * len(items), count))
    assert failed_after < 0
    assert engine == "wave" or min(found) < 0  # the wave has smaller portions of its own
    assert sum(found) == 13 * 2 * len(items)


def files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}


@SCRIPTS
@ENGINES
@pytest.mark.parametrize(("most", "error"), [(20, ON_A_GPU), (10, ON_THE_HOST)])
def test_the_same_bytes(
    most: int,
    error: Exception,
    engine: str,
    script: str,
    run_script: RunScript,
    few_digits: FewDigits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few_digits(56)
    arguments = [
        "--dataset=digits",
        "--no-plots",
        "--seed=5",
        f"--engine={engine}",
        "--batch-size=32",
        "--bit-flip-pos=1",
    ]
    arguments += ["--layer-num=1,3,9,18,20", "--detailed-log", "--fault-table"]
    whole = run_script(script, *arguments, "--output-path", tmp_path / "whole")
    assert (whole.code, whole.err) == (0, "")
    failed = room_for(most, monkeypatch, error)
    done = run_script(script, *arguments, "--output-path", tmp_path / "small")
    assert failed
    assert done.code == 0, done.err
    said = [re.sub(r"in about .* on this machine", "", run.out) for run in (done, whole)]
    assert said[0] == said[1].replace("whole", "small")
    assert done.err.splitlines() == reductions(56 if (engine, script) == ("wave", "main.py") else 32, most)
    assert files(tmp_path / "small") == files(tmp_path / "whole")


@SCRIPTS
@ENGINES
def test_a_list_does_the_same_in_portions(
    engine: str,
    script: str,
    run_script: RunScript,
    few_digits: FewDigits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Also with neuron faults of some images only, of which a portion may hold none."""
    few_digits(40)
    shared = ["--dataset=digits", "--batch-size=32", f"--engine={engine}"]
    saved = tmp_path / "list.csv"
    run_script(
        script,
        *shared,
        *("--no-plots", "--seed=5", "--bit-flip-pos=1", "--layer-num=1,3,9,18"),
        *("--save-faults", saved, "--output-path", tmp_path / "sampled"),
    )
    if script == "main.py":
        header, *rows = saved.read_text().splitlines()
        some = [row for i, row in enumerate(rows) if i % 5 == 0 or row.endswith((",3", ",31"))]
        saved.write_text("\n".join([header, *some, ""]))
    arguments = [*shared, "--faults", saved, "--output-path"]
    whole = run_script(script, *arguments, tmp_path / "whole")
    assert (whole.code, whole.err) == (0, "")
    failed = room_for(10, monkeypatch, ON_THE_HOST)
    done = run_script(script, *arguments, tmp_path / "small")
    assert failed
    assert (done.code, done.out) == (0, whole.out.replace("whole", "small"))
    assert done.err.splitlines() == reductions(40 if (engine, script) == ("wave", "main.py") else 32, 10)
    assert files(tmp_path / "small") == files(tmp_path / "whole")


def reductions(images: int, most: int) -> list[str]:
    """What is said until so many images fit."""
    lines = []
    while images > most:
        half = (images + 1) // 2
        lines.append(f"not enough memory for {images} images at a time: going on with {half}; the faults stay the same")
        images = half
    return lines
