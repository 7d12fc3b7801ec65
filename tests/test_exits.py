"""Every command ends in an exit code, and in a sentence instead of a traceback where the program has no error."""

from __future__ import annotations

import os
import pickle
import signal
import subprocess
import sys
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from conftest import ROOT, FewDigits

from bitflip import __main__ as program
from bitflip.campaign import loop
from bitflip.commands import plan
from bitflip.commands.exits import INSTALL, Exit
from bitflip.errors import BadInput
from bitflip.report import reading

NO_MEMORY = "the memory does not suffice for the run"
LACKS = [
    pytest.param(torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."), id="on a GPU"),
    pytest.param(RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), id="of torch on the CPU"),
    pytest.param(MemoryError("Unable to allocate 2.00 GiB for an array"), id="of numpy"),
]


def end_with(error: BaseException | None) -> int:
    """The exit code of a block that raises, or does not."""
    with Exit() as end:
        if error is not None:
            raise error
    return end.code


@pytest.mark.parametrize(
    ("error", "code", "said"),
    [
        pytest.param(None, 0, "", id="nothing"),
        pytest.param(BadInput("one", "two"), 2, "error: one\nerror: two\n", id="two mistakes"),
        pytest.param(KeyboardInterrupt(), 130, "interrupted\n", id="Ctrl-C"),
        pytest.param(MemoryError(), 2, f"error: device (--device): {NO_MEMORY} (MemoryError)\n", id="no memory"),
    ],
)
def test_how_a_block_ends(
    error: BaseException | None, code: int, said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert end_with(error) == code
    assert capsys.readouterr() == ("", said)


def test_a_scheduler_that_ends_the_job_is_heard(capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)  # a cluster of other tests in this process has its own
    try:
        with Exit("stopped here") as end:
            with Exit():  # the outer one has it
                pass
            assert signal.getsignal(signal.SIGTERM) is signal.default_int_handler, "the test would end the tests"
            with loop.uninterrupted():
                os.kill(os.getpid(), signal.SIGTERM)
                end.interrupted = "stopped after the block"
            end.interrupted = "not stopped"
        assert end.code == 130
        assert capsys.readouterr() == ("", "stopped after the block\n")
        assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize("error", [RuntimeError("shapes differ"), ValueError("no"), SystemExit(3), ImportError("no")])
def test_errors_of_the_program_are_raised_on(error: BaseException) -> None:
    with pytest.raises(type(error)) as raised:
        end_with(error)
    assert raised.value is error


def test_the_block_says_how_far_it_was(capsys: pytest.CaptureFixture[str]) -> None:
    with Exit("interrupted before anything was done") as end:
        end.interrupted = "interrupted; nothing was written"
        raise KeyboardInterrupt
    assert (end.code, capsys.readouterr().err) == (130, "interrupted; nothing was written\n")


@pytest.mark.parametrize("error", LACKS)
def test_a_plan_without_enough_memory(
    error: Exception, few_digits: FewDigits, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> NoReturn:
        raise error

    few_digits(8)
    monkeypatch.setattr(plan, "measure", fail)
    assert program.main(["plan", "--dataset=digits", "--layer-num=1"]) == 2
    assert capsys.readouterr().err == f"error: device (--device): {NO_MEMORY} ({error})\n"


def test_a_command_without_a_device_names_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object) -> NoReturn:
        raise MemoryError

    monkeypatch.setattr(reading, "read", fail)
    (tmp_path / "run.csv").touch()
    assert program.main(["report", str(tmp_path / "run.csv")]) == 2
    assert capsys.readouterr().err == f"error: {NO_MEMORY} (MemoryError)\n"


# --- packages that are missing or do not fit together ---


def package(folder: Path, name: str, code: str) -> Path:
    """A package that is found before the one that is installed."""
    (folder / name).mkdir(parents=True)
    (folder / name / "__init__.py").write_text(code)
    return folder


def run_with(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run a script or command with the packages of a folder before the installed ones."""
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(folder)},
        capture_output=True,
        text=True,
        timeout=200,
    )


RUN, PLAN = "main.py --dataset=digits --output-path=.", "-m bitflip plan --dataset=digits"
FOLDERS = "main.py --dataset=folder --model-name=resnet18 --output-path=."


@pytest.mark.parametrize(
    ("command", "name", "kind", "reason"),
    [
        pytest.param(RUN, "pyarrow", "ImportError", "numpy.core.multiarray failed to import", id="NumPy's"),
        pytest.param(
            FOLDERS, "torchvision", "RuntimeError", "operator torchvision::nms does not exist", id="torchvision's"
        ),
        pytest.param(RUN, "pydantic", "ValueError", "numpy.dtype size changed", id="before the settings are read"),
        pytest.param(PLAN, "torch", "OSError", "libcudart.so.12: cannot open shared object file", id="a command's"),
    ],
)
def test_packages_that_do_not_fit_together(command: str, name: str, kind: str, reason: str, tmp_path: Path) -> None:
    folder = package(tmp_path, name, f"raise {kind}('{reason}\\nand more')")
    done = run_with(folder, *command.split())
    sentence = f"error: {name} can't be imported ({reason}); what fits together is installed with: {INSTALL}\n"
    assert (done.returncode, done.stdout, done.stderr) == (2, "", sentence)


def test_a_package_that_is_missing() -> None:
    code = (
        "import sys\n"
        "sys.modules['scipy'] = None\n"
        "from bitflip.commands.entry import main\n"
        "sys.exit(main('neuron', '', ['--dataset=digits']))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=200)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: scipy can't be imported (")
    assert len(done.stderr.splitlines()) == 1


def test_a_failed_import_of_somebody_else_is_raised_on(few_digits: FewDigits, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only our own imports say that our requirements are not met."""

    def fail(*_: object, **__: object) -> NoReturn:
        raise ModuleNotFoundError("No module named 'theirs'", name="theirs")

    few_digits(8)
    monkeypatch.setattr(plan, "measure", fail)
    with pytest.raises(ModuleNotFoundError, match="theirs"):
        program.main(["plan", "--dataset=digits", "--layer-num=1"])


def test_mistakes_stay_sentences_of_one_line_each_in_another_process() -> None:
    found = pickle.loads(pickle.dumps(BadInput("weights: expected a file, got a\x85b", "seed: expected 1\n2")))
    assert found.problems == ("weights: expected a file, got a\\x85b", "seed: expected 1\\n2")
