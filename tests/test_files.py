"""Full disks, locks and damaged files lose nothing that was finished, and touch nothing that is good."""

from __future__ import annotations

import errno
import json
import os
import re
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import filelock
import pytest
from conftest import ROOT, FewDigits, RunScript, few_digits_with
from damage import Damage, bounded, damages
from hypothesis import example, given
from hypothesis import strategies as st
from killing import Run
from synthetic import write_run

from bitflip import files
from bitflip.__main__ import main
from bitflip.campaign import experiment, loop, publishing
from bitflip.campaign.checkpoint import Checkpoint
from bitflip.campaign.executor import Here
from bitflip.campaign.experiment import Experiment
from bitflip.commands import checks
from bitflip.commands import run as commands_run
from bitflip.errors import BadInput
from bitflip.faults.flips import TargetKind
from bitflip.report import reading as result_files
from bitflip.results.tracking import Tracker
from bitflip.settings import hyperparameters, reading

TARGETS = pytest.mark.parametrize("target", ["neuron", "weight"])
ARGUMENTS = ("--engine=reference", "--layer-num=8,19", "--batch-size=4", "--detailed-log", "--fault-table")


@pytest.fixture(autouse=True)
def importable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the process that runs are forked from find the tests' modules and the package."""
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


# --- full disks ---


SENTENCE = (
    "can't be written (File too large); what was finished before is kept: make room and run the same command again"
)


@pytest.fixture(params=["plan", "compare", "save_faults"])
def writing(request: pytest.FixtureRequest, few_digits: FewDigits, tmp_path: Path) -> Callable[[Path], int]:
    """A command that is to write to a file: its exit code."""
    few_digits(8)
    table = write_run(tmp_path / "run")
    common = ["--dataset=digits", "--layer-num=1", "--seed=1"]

    def run(path: Path) -> int:
        if request.param == "plan":
            return main(["plan", *common, f"--csv={path}"])
        if request.param == "compare":
            return main(["compare", str(table), str(table), f"--csv={path}"])
        return commands_run.main("neuron", "", [*common, f"--output-path={tmp_path}", f"--save-faults={path}"])

    return run


KINDS = {"it is no regular file": os.mkfifo, "it is a folder": os.mkdir}


@pytest.mark.parametrize("reason", [*KINDS, "there is no folder"])
def test_a_place_for_no_file_is_refused_before_anything_is_loaded(
    reason: str,
    writing: Callable[[Path], int],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Such as /dev/full, which a rename would take the place of."""
    path = tmp_path / "place" / "file"
    if reason in KINDS:
        path.parent.mkdir()
        KINDS[reason](path)
    for module, name in ((experiment, "prepare"), (result_files, "read")):
        monkeypatch.setattr(module, name, lambda *_: pytest.fail("this is slow"))
    before = path.lstat().st_mode if reason in KINDS else None
    assert writing(path) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert re.match(
        r"error: (csv \(--csv\)|save_faults \(--save-faults\)): expected a file that can be written, got ", line
    )
    assert f"{path} ({reason}" in line
    assert (path.lstat().st_mode if reason in KINDS else None) == before
    assert [*tmp_path.glob("place/*")] == [path] * (reason in KINDS)


def test_a_disk_that_is_full_in_the_end_is_a_sentence(
    writing: Callable[[Path], int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "file.csv"
    replace = os.replace

    def full(source: str, place: Path) -> None:
        if place == path:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        replace(source, place)

    monkeypatch.setattr(os, "replace", full)
    assert writing(path) == 2
    line = capsys.readouterr().err.splitlines()[-1]
    assert line.endswith(f"): expected a file that can be written, got {path} (No space left on device)")
    assert not [*tmp_path.glob("*.tmp"), *tmp_path.glob("*.csv")]


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_nothing_but_a_file_is_replaced(make: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "place"
    make(path)
    before = path.lstat()
    with pytest.raises(OSError, match="it is"), files.replacing(path) as file:
        file.write("text")
    assert path.lstat() == before
    assert [*tmp_path.iterdir()] == [path]


@TARGETS
def test_a_full_disk(target: TargetKind, tmp_path: Path) -> None:
    """No file can be longer than so many bytes: first a little, then more, then as long as it likes."""
    whole, short = (Run(target, tmp_path / name, ARGUMENTS) for name in ("whole", "short"))
    whole.finish()
    for bytes_ in (0, 300, 2200, 5000, 7500):
        assert short.ended(short.start(largest_file=bytes_)) == 2, short.said
        (sentence,) = (line for line in short.said.splitlines() if line.startswith("error: "))
        assert re.fullmatch(
            r"error: output_path \(--output-path\): .* can't be written \(File too large\); what was finished before "
            r"is kept: make room and run the same command again",
            sentence,
        )
        assert not [path for path in short.folder.iterdir() if path.is_file() and "_partial" not in path.name]
    short.finish()
    assert "going on after" in short.said
    assert short.files() == whole.files()


def test_a_disk_that_is_full_once_plots_are_drawn(tmp_path: Path) -> None:
    """The tables fit, the plots do not: the results come when there is room, without running anything again."""
    arguments = ("--engine=reference", "--layer-num=8,19", "--batch-size=4", "--plots")
    whole, short = (Run("neuron", tmp_path / name, arguments) for name in ("whole", "short"))
    assert whole.ended(whole.start()) == 0, whole.said
    tables = [path for path in whole.folder.iterdir() if path.suffix not in (".png", ".svg", ".html")]
    largest = max(path.stat().st_size for path in tables)
    assert largest < max(path.stat().st_size for path in whole.folder.iterdir() if path not in tables)
    assert short.ended(short.start(largest_file=largest + 100)) == 2
    errors = [line for line in short.said.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1, short.said
    assert errors[0].endswith(SENTENCE)
    assert "Traceback" not in short.said
    assert not [path for path in short.folder.iterdir() if path.is_file()]
    assert short.progress.exists()
    assert short.ended(short.start()) == 0, short.said
    assert f"going on after {short.images} of {short.images} images" in short.said
    for path in whole.folder.iterdir():
        if path.suffix in (".txt", ".csv", ".parquet", ".png"):
            assert (short.folder / path.name).read_bytes() == path.read_bytes()


def test_a_full_disk_leaves_earlier_results_as_they_were(tmp_path: Path) -> None:
    """All of them, also those that would have fitted."""
    run = Run("neuron", tmp_path / "out", ("--engine=reference", "--layer-num=8,19", "--bit-flip-pos=1"))
    run.finish()
    before = {path.name: path.read_bytes() for path in run.folder.iterdir()}
    run.arguments = (*ARGUMENTS, "--bit-flip-pos=2", "--fresh")
    assert run.ended(run.start(largest_file=7500)) == 2
    assert {path.name: path.read_bytes() for path in run.folder.iterdir() if path.is_file()} == before
    run.finish()
    assert run.files().keys() > before.keys() - {f"{run.stem}.json"}


# --- two processes ---


def stopped(run: Run) -> BaseProcess:
    """Start a run and stop it in its tracks once it has a checkpoint."""
    process = run.start()
    while not (run.folder / f"{run.stem}.unfinished" / "progress.npz").exists():
        assert process.is_alive(), run.said
        time.sleep(0.005)
    assert process.pid is not None
    os.kill(process.pid, signal.SIGSTOP)
    return process


def test_two_runs_in_one_folder(tmp_path: Path) -> None:
    """Of one name: the second is refused, until the first is dead. Of other names: they do not mind each other."""
    arguments = (*ARGUMENTS, "--batch-size=1")
    whole, run = (Run("neuron", tmp_path / name, arguments) for name in ("whole", "out"))
    whole.finish()
    first = stopped(run)
    again = Run("neuron", run.folder, arguments)
    assert again.ended(again.start()) == 2
    unfinished = run.folder / f"{run.stem}.unfinished"
    assert again.said == (
        f"error: output_path (--output-path): another process is at work on {unfinished}; wait for it, or choose "
        "another folder\n"
    )
    other = Run("weight", run.folder, arguments)
    assert other.ended(other.start()) == 0
    first.kill()
    first.join()  # a process that was stopped takes a moment to die
    again.finish()
    assert "going on after" in again.said
    for path in run.folder.glob("weight_*"):
        path.unlink()
    assert again.files() == whole.files()


@pytest.mark.skipif(int(filelock.__version__.split(".")[0]) < 4, reason="filelock for Python 3.10 hands locks down")
def test_a_child_of_a_killed_run_keeps_no_lock(tmp_path: Path) -> None:
    """As a data loader's worker, which lives on for some seconds."""
    run = os.fork()
    if run == 0:
        held = Checkpoint(tmp_path / "run", {}, "now")
        if os.fork() == 0:
            time.sleep(20)
            os._exit(0)
        (tmp_path / "ready").touch()
        time.sleep(20)
        os._exit(held is None)
    while not (tmp_path / "ready").exists():
        time.sleep(0.005)
    with pytest.raises(BadInput, match="another process is at work"):
        Checkpoint(tmp_path / "run", {}, "now")
    os.kill(run, signal.SIGKILL)
    os.waitpid(run, 0)
    with Checkpoint(tmp_path / "run", {}, "now"):
        pass
    assert not (tmp_path / "run").exists()


# --- damaged checkpoints ---


@dataclass(frozen=True)
class Unfinished:
    """A run whose batches are all done, and whose results are not written yet.

    Attributes:
        loaded: the experiment.
        folder: of its checkpoint.
        results: what its files have to be.
    """

    loaded: Experiment
    folder: Path
    results: dict[str, bytes]


def go_on(loaded: Experiment, folder: Path) -> dict[str, bytes]:
    """Go on with an unfinished run, which needs no more batch, and return its results."""
    shutil.rmtree(loaded.settings.output_path)
    loaded.settings.output_path.mkdir()
    with Checkpoint(folder, {"name": "value"}, "now") as checkpoint:
        done = loop.execute(loaded, checkpoint, Tracker(), Here(loaded))
        assert done.complete
        publishing.report(done, "", checkpoint)
    written = {path.name: path.read_bytes() for path in loaded.settings.output_path.iterdir()}
    return {name: content for name, content in written.items() if not name.endswith(".json")}


@pytest.fixture(scope="module")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Unfinished]:
    """An unfinished run of 40 images."""
    folder = tmp_path_factory.mktemp("unfinished")
    (folder / "out").mkdir()
    arguments = ["--dataset=digits", "--seed=5", "--layer-num=8,19", "--detailed-log", "--fault-table", "--no-plots"]
    given_, problems = reading.read([*arguments, "--bit-flip-pos=1", f"--output-path={folder / 'out'}"])
    assert not problems
    with pytest.MonkeyPatch.context() as patch:
        few_digits_with(patch)(40)
        loaded = experiment.prepare(given_, "neuron")
        results = go_on(loaded, folder / "run")
        yield Unfinished(loaded, folder / "run", results)


FILES = ("progress.npz", "run.json", "detail-5.txt", "faults-5.parts")


@bounded
@example(name=FILES[-1], damage=Damage("a bit", 0.53125, b"\x00"))  # in a header of Parquet, which has no checksum
@given(name=st.sampled_from(FILES), damage=damages)
def test_a_damaged_checkpoint(name: str, damage: Damage, unfinished: Unfinished, tmp_path: Path) -> None:
    """Is refused with its name, and nothing in it is touched; or the damage is where it does not matter."""
    folder = tmp_path / "copy"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(unfinished.folder, folder)
    (folder / name).write_bytes(damage.of((folder / name).read_bytes()))
    before = {path.name: path.read_bytes() for path in folder.iterdir()}
    try:
        results = go_on(unfinished.loaded, folder)
    except BadInput as error:
        (sentence,) = error.problems
        assert sentence.startswith(f"output_path (--output-path): {folder}")
        assert "--fresh" in sentence
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
        assert [*unfinished.loaded.settings.output_path.iterdir()] == []
    else:
        assert results == unfinished.results


def test_a_part_of_another_checkpoint_is_refused(unfinished: Unfinished, tmp_path: Path) -> None:
    """Though each file is whole: counts belong to the run that they were counted in."""
    folder = tmp_path / "copy"
    shutil.copytree(unfinished.folder, folder)
    run = json.loads((folder / "run.json").read_text())
    (folder / "run.json").write_text(json.dumps({**run, "started": "earlier"}))
    with pytest.raises(BadInput, match=re.escape(f"output_path (--output-path): {folder}") + ".* is damaged .*--fresh"):
        go_on(unfinished.loaded, folder)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_part_of_a_checkpoint(name: str, unfinished: Unfinished, tmp_path: Path) -> None:
    """Without counts there is nothing to go on with; without anything else, they are refused."""
    folder = tmp_path / "copy"
    shutil.copytree(unfinished.folder, folder)
    (folder / name).unlink()
    if name == "progress.npz":
        assert go_on(unfinished.loaded, folder) == unfinished.results
        return
    with pytest.raises(BadInput, match=re.escape(f"output_path (--output-path): {folder}") + ".* is damaged .*--fresh"):
        go_on(unfinished.loaded, folder)


# --- a damaged file to repeat a run from ---


@bounded
@example(damage=None, value="\x1e", key="target")  # splits lines
@example(damage=None, value="\x85", key="bounds")
@given(
    damage=st.none() | damages,
    value=st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
        max_leaves=5,
    ),
    key=st.sampled_from(["settings", "target", "versions", "model", *hyperparameters.Hyperparameters.model_fields]),
)
def test_a_damaged_file_to_rerun(
    damage: Damage | None, value: object, key: str, unfinished: Unfinished, tmp_path: Path
) -> None:
    """Is a sentence, if it is not another valid file: JSON, but with another value somewhere."""
    facts: dict[str, Any] = {"target": "neuron", "settings": unfinished.loaded.settings.values}
    if damage is None:
        (facts["settings"] if key in facts["settings"] else facts)[key] = value
    content = json.dumps(facts).encode()
    file = tmp_path / "run.json"
    file.write_bytes(content if damage is None else damage.of(content))
    before = file.read_bytes()
    problems: tuple[str, ...] = ()
    try:
        checks.checked([f"--rerun={file}", f"--output-path={tmp_path}"], "neuron")
    except BadInput as error:
        problems = error.problems
    for sentence in problems:
        assert re.match(r"\w+(, \w+)* \(--", sentence)
        assert len(sentence.splitlines()) == 1
    assert file.read_bytes() == before


# --- names ---


@pytest.mark.parametrize("script", ["main.py", "weight.py"])
def test_a_name_forges_no_line(script: str, run_script: RunScript, few_digits: FewDigits, tmp_path: Path) -> None:
    """Not by a module's path, and not by its class; all files have as many lines as with honest names."""
    few_digits(20)
    model = """
import torch
from torch import nn
from bitflip.data import digits

def build():
    torch.manual_seed(0)
    net = digits.build()
    net.load_state_dict(torch.load(digits.WEIGHTS, weights_only=True))
    first = NAME(3, 16, 3, padding=1)
    first.load_state_dict(net.features[0].state_dict())
    net.add_module("PATH", nn.Sequential(first, *net.features[1:]))
    net.features = nn.Identity()
    net.forward = lambda x: net.classifier(getattr(net, "PATH")(x).flatten(1))
    return net
"""
    forged = "Layer #0: 0 / 20 = 0%, Conv2d"
    lines = []
    for name, path, kind in (("honest", "a", "C"), ("forged", f"a\\n{forged}\\r\\x1b[2J", f"C\\n{forged}\\n")):
        source = model.replace("NAME", f'type("{kind}", (nn.Conv2d,), {{}})').replace("PATH", path)
        (tmp_path / f"{name}.py").write_text(source)
        folder = tmp_path / f"out_{name}"
        done = run_script(
            script, "--dataset=digits", f"--model-name={tmp_path / name}.py:build", "--layer-num=0,1,2", "--seed=5",
            "--bit-flip-pos=1", "--detailed-log", "--no-plots", "--output-path", folder,
        )  # fmt: skip
        assert done.code == 0, done.err
        files = [path for path in sorted(folder.iterdir()) if path.suffix in (".txt", ".csv")]
        texts = [done.out, *(path.read_text() for path in files)]
        assert not any(line.startswith(forged) for text in texts for line in text.splitlines())
        assert not any("\x1b" in text or "\r" in text for text in texts)
        lines.append([len(text.splitlines()) for text in texts])
    assert lines[0] == lines[1]
