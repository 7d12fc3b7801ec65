"""Many seeds in one run: each seed's files are those of a run of its own."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from conftest import FewDigits, RunScript

from bitflip.campaign.executor import Here
from bitflip.faults.tasks import Task
from bitflip.outcomes.batch import BatchOutcomes

SEEDS = (2, 3, 7)
ARGUMENTS = ("--dataset=digits", "--layer-type=Conv2d,Linear", "--batch-size=16", "--engine=reference")
LOGS = ("--detailed-log", "--fault-table", "--no-plots")


def of_seed(folder: Path, seed: int) -> dict[str, Any]:
    """The files of a seed; of the ``.json``, all but times and the folder, of plots and pages, that they are there."""
    found: dict[str, Any] = {}
    for path in folder.glob(f"*digits_vgg_digits_{seed}[._]*"):
        found[path.name] = path.read_bytes() if path.suffix in (".txt", ".csv", ".parquet") else None
        if path.suffix == ".json":
            run = json.loads(path.read_text())
            for name in ("started", "ended", "campaign_seconds"):
                del run[name]
            del run["settings"]["output_path"]
            found[path.name] = run
    return found


@pytest.mark.parametrize("script", ["main.py", "weight.py"])
@pytest.mark.parametrize("stopped_after", [None, 2], ids=["in one go", "resumed after Ctrl-C"])
def test_each_seed_has_the_files_of_a_run_of_its_own(
    script: str,
    stopped_after: int | None,
    run_script: RunScript,
    few_digits: FewDigits,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    few_digits(60)
    together = tmp_path / "together"
    command = (script, *ARGUMENTS, *LOGS, "--seeds=2-3,7", "--output-path", together)
    if stopped_after is not None:
        run = Here.run

        def stop(*args: Any, **kwargs: Any) -> Iterator[tuple[Task, BatchOutcomes]]:
            for number, batch in enumerate(run(*args, **kwargs)):
                if number == stopped_after:
                    raise KeyboardInterrupt
                yield batch

        with monkeypatch.context() as patch:
            patch.setattr(Here, "run", stop)
            assert run_script(*command).code == 130
    done = run_script(*command)
    assert done.code == 0, done.err
    assert ("going on after 32 of 60 images" in done.err) == (stopped_after is not None)
    assert not list(together.glob("*_partial*"))
    for seed in SEEDS:
        alone = tmp_path / str(seed)
        assert run_script(script, *ARGUMENTS, *LOGS, "--seed", seed, "--output-path", alone).code == 0
        found = of_seed(together, seed)
        assert {Path(name).suffix for name in found} >= {".txt", ".csv", ".json", ".parquet"}
        assert found == of_seed(alone, seed)


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--seeds=1-3", "--seed=4"), "seeds (--seeds): expected either seed or seeds, got both"),
        (("--seeds=1-3", "--margin=1"), "seeds (--seeds): expected one seed with margin, got seeds 1-3"),
        (
            ("--seeds=3-1",),
            "seeds (--seeds): expected different whole numbers from 0, and ranges of them, comma-separated, got '3-1'",
        ),
    ],
    ids=["seed too", "margin", "range backwards"],
)
def test_settings_that_do_not_go_together(
    arguments: tuple[str, ...], expected: str, run_script: RunScript, tmp_path: Path
) -> None:
    done = run_script("main.py", "--dataset=digits", "--output-path", tmp_path, *arguments)
    assert (done.code, done.errors) == (2, [expected])
