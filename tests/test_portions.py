"""Tasks take seconds where they can, so that Ctrl-C loses little; where not, it is said how long the first takes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import FewDigits, RunScript

from bitflip.campaign import executor
from bitflip.campaign.executor import Here, Progress
from bitflip.data.images import Batch
from bitflip.faults.tasks import Task
from bitflip.outcomes.batch import BatchOutcomes

IMAGES = 70
GIVEN = ("--dataset=digits", "--seed=3", "--layer-num=1,4")
CUT = {"neurons": ["main.py", "--fault-table"], "to a margin": ["main.py", "--margin=8"]}
UNCUT = {"detailed log": ["main.py", "--detailed-log"], "weights": ["weight.py"]}


class Tasks(list[int]):
    """Notes the images of each task that this process runs; ``last`` is the number of the one that Ctrl-C ends."""

    last: int | None = None


@pytest.fixture
def tasks(monkeypatch: pytest.MonkeyPatch, few_digits: FewDigits) -> Tasks:
    few_digits(IMAGES)
    noted, run = Tasks(), Here.outcomes

    def outcomes(here: Here, task: Task, batch: Batch, progress: Progress) -> BatchOutcomes:
        if len(noted) == noted.last:
            raise KeyboardInterrupt
        noted.append(len(task.images))
        return run(here, task, batch, progress)

    monkeypatch.setattr(Here, "outcomes", outcomes)
    return noted


def slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if every task took far too long."""
    for name, value in {"PORTION": 0.0, "LEAST": 20}.items():
        monkeypatch.setattr(executor, name, value)


def results(folder: Path) -> dict[str, object]:
    found: dict[str, object] = {path.name: path.read_bytes() for path in folder.iterdir() if path.suffix != ".json"}
    for path in folder.glob("*.json"):
        facts = json.loads(path.read_text())
        for name in ("started", "ended", "campaign_seconds"):
            del facts[name]
        del facts["settings"]["output_path"]
        found[path.name] = facts
    return found


@pytest.mark.parametrize("arguments", CUT.values(), ids=CUT)
def test_short_portions_change_no_byte(
    arguments: list[str], tmp_path: Path, tasks: Tasks, run_script: RunScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a run that was begun in short ones is gone on with by a machine that needs none."""
    script, *more = arguments
    whole, short, stopped = (tmp_path / name for name in ("whole", "short", "stopped"))
    assert run_script(script, *GIVEN, *more, f"--output-path={whole}").code == 0
    assert set(tasks) == {IMAGES}
    with monkeypatch.context() as patch:
        slow(patch)
        tasks.clear()
        assert run_script(script, *GIVEN, *more, f"--output-path={short}").code == 0
        assert max(tasks) <= executor.LEAST
        assert results(short) == results(whole)
        tasks.clear()
        tasks.last = 1
        done = run_script(script, *GIVEN, *more, f"--output-path={stopped}")
        assert done.code == 130
        assert f"interrupted after {tasks[0]} of {IMAGES} images" in done.err
    tasks.last = None
    assert run_script(script, *GIVEN, *more, f"--output-path={stopped}").code == 0
    assert max(tasks) <= 20
    partial = {name for name in results(stopped) if "_partial" in name}
    assert {name: found for name, found in results(stopped).items() if name not in partial} == results(whole)


@pytest.mark.parametrize("arguments", UNCUT.values(), ids=UNCUT)
def test_a_first_portion_that_takes_long_is_announced(
    arguments: list[str], tmp_path: Path, tasks: Tasks, run_script: RunScript, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A weight flip hits a whole batch, and the detailed log has the layers of a batch one after the other."""
    script, *more = arguments
    words = rf"the first {IMAGES} images take about [\d.]+ m?s; only then is anything kept"
    quick = run_script(script, *GIVEN, *more, f"--output-path={tmp_path / 'quick'}")
    assert not re.search(words, quick.err)
    slow(monkeypatch)
    tasks.clear()
    done = run_script(script, *GIVEN, *more, f"--output-path={tmp_path / 'slow'}")
    assert tasks == [IMAGES]
    assert re.search(words, done.err)
    assert results(tmp_path / "slow") == results(tmp_path / "quick")
