"""Finished results are replaced by those of the very same run, or because the user says so."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conftest import FewDigits, Finished, RunScript, random_images
from torch import nn
from torch.utils.data import TensorDataset

import bitflip
from bitflip.campaign import loop
from bitflip.campaign.executor import Here
from bitflip.data import datasets, digits
from bitflip.errors import BadInput
from bitflip.network import models
from bitflip.results import provenance

STEM = "digits_vgg_digits_5"
ARGUMENTS = ("--dataset=digits", "--seed=5", "--layer-num=1,8", "--batch-size=8", "--bit-flip-pos=1")


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def without_times(folder: Path) -> dict[str, bytes]:
    return {name: content for name, content in contents(folder).items() if not name.endswith((".json", ".html"))}


class Place:
    """A folder that runs of one name write to."""

    def __init__(self, run_script: RunScript, folder: Path) -> None:
        self.run_script, self.folder = run_script, folder

    def __call__(
        self, *arguments: object, script: str = "main.py", common: Sequence[str] = ARGUMENTS, **environ: str
    ) -> Finished:
        return self.run_script(script, *common, "--output-path", self.folder, *arguments, **environ)

    def refuses(self, stem: str, differ: str, *arguments: object, **kwargs: Any) -> None:
        """Whether a run is refused in one sentence, and changes nothing."""
        before = contents(self.folder)
        done = self(*arguments, **kwargs)
        assert done.code == 2
        assert done.err.splitlines()[-1] == (
            f"error: output_path (--output-path): {self.folder / stem}.json is of a finished run with other settings "
            f"({differ}); give --fresh to replace these results, or choose another folder"
        )
        assert contents(self.folder) == before


@pytest.fixture
def place(run_script: RunScript, few_digits: FewDigits, tmp_path: Path) -> Place:
    few_digits(24)
    return Place(run_script, tmp_path / "out")


@pytest.mark.parametrize(
    ("argument", "differ"),
    [
        ("--layer-type=Linear", "layer_type all there, Linear here"),
        ("--layer-num=1", "layer_num 1,8 there, 1 here"),
        ("--repeats=2", "repeats 1 there, 2 here"),
        ("--bit-flip-pos=2", "bit_flip_pos 1 there, 2 here"),
        ("--batch-size=4", "batch_size 8 there, 4 here"),
        ("--confidence=0.9", "confidence 0.95 there, 0.9 here"),
        ("--margin=5", "margin None there, 5.0 here"),
        ("--no-fault-table", "fault_table True there, False here"),
        ("--seeds=4-6", "bit_flip_pos 1 there, -1 here"),
    ],
)
def test_results_of_other_settings_are_not_replaced(
    argument: str, differ: str, place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which is said before anything is loaded."""
    assert place("--fault-table").code == 0
    for module in (datasets, models):
        monkeypatch.setattr(module, "load", lambda *_: pytest.fail("this must not be started"))
    others = [
        text for text in ARGUMENTS if not (argument.startswith("--seeds") and text.startswith(("--seed", "--bit")))
    ]
    place.refuses(STEM, differ, "--fault-table", argument, common=others)


@pytest.mark.parametrize("what", ["weights", "images", "versions"])
def test_results_of_other_things_under_the_same_settings_are_not_replaced(
    what: str, place: Place, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert place().code == 0
    arguments = []
    if what == "weights":
        torch.save(digits.build().state_dict(), tmp_path / "other.pt")
        arguments, differ = [f"--weights={tmp_path / 'other.pt'}"], "other model sha256"
    elif what == "images":
        images, labels = digits.load("test").tensors
        monkeypatch.setattr(digits, "load", lambda *_: TensorDataset(images * 0.99, labels))
        differ = "other pixels and labels"
    else:
        versions = provenance.versions()
        monkeypatch.setattr(provenance, "versions", lambda: {**versions, "torch": "9.0"})
        differ = f"torch version {versions['torch']} there, 9.0 here"
    monkeypatch.setattr(Here, "run", lambda *_: pytest.fail("this must not be started"))
    place.refuses(STEM, differ, *arguments)


def test_the_same_command_twice_says_so_and_gives_the_same(place: Place) -> None:
    first = place("--detailed-log")
    assert (first.code, first.err) == (0, "")
    before = without_times(place.folder)
    again = place("--detailed-log", "--pool-mib=1", "--device=cpu")  # which change nothing
    assert again.code == 0
    assert again.err == (
        f"{place.folder / STEM}.json is of this very run, which is made again; its files will be replaced\n"
    )
    said = [re.sub(r"in about .* on this machine", "", run.out).splitlines()[1:] for run in (first, again)]
    assert said[0] == said[1]
    assert without_times(place.folder) == before


def test_a_further_log_is_added_to_the_same_results(place: Place) -> None:
    assert place().code == 0
    before = without_times(place.folder)
    assert place("--detailed-log").code == 0
    after = without_times(place.folder)
    assert set(after) - set(before) == {f"{STEM}_detailed.txt"}
    assert {name: after[name] for name in before} == before


def test_plots_of_the_same_results_stay(place: Place) -> None:
    """Those of others go."""
    assert place(plots="true").code == 0
    drawn = {name for name in contents(place.folder) if name.endswith((".png", ".svg", ".html"))}
    assert drawn
    assert place().code == 0
    assert drawn < set(contents(place.folder))
    assert place("--fresh", "--repeats=2").code == 0
    assert drawn.isdisjoint(contents(place.folder))


def test_fresh_replaces(place: Place, run_script: RunScript, tmp_path: Path) -> None:
    assert place("--detailed-log").code == 0
    done = place("--repeats=2", "--fresh")
    assert (done.code, done.err) == (0, "")
    run_script("main.py", *ARGUMENTS, "--repeats=2", "--output-path", tmp_path / "other")
    assert without_times(place.folder) == without_times(tmp_path / "other")


def test_fresh_is_said_once(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was begun with it, and interrupted, goes on without; until then the results are as they were."""
    assert place().code == 0
    before = contents(place.folder)
    run = Here.run

    def interrupted(*args: Any, **kwargs: Any) -> Any:
        yield next(run(*args, **kwargs))
        raise KeyboardInterrupt

    arguments = ("--repeats=2", "--engine=reference")
    with monkeypatch.context() as patch:
        patch.setattr(Here, "run", interrupted)
        patch.setattr(loop, "SAVE_EVERY", 0.0)
        assert place(*arguments, "--fresh").code == 130
    left = contents_of_files(place.folder)
    assert {name: left[name] for name in before} == before
    done = place(*arguments)
    assert (done.code, done.err.splitlines()[0]) == (0, "going on after 8 of 24 images")
    assert json.loads((place.folder / f"{STEM}.json").read_text())["settings"]["repeats"] == 2


def contents_of_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_results_that_came_meanwhile_are_not_replaced(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor is the work lost: once they are out of the way, the same command ends in its results."""
    seeds = ("--dataset=digits", "--layer-num=1,8", "--batch-size=8", "--seeds=4-6")
    run = Here.run

    def another(*args: Any, **kwargs: Any) -> Any:
        yield from run(*args, **kwargs)
        monkeypatch.setattr(Here, "run", run)
        now = provenance.now()
        monkeypatch.setattr(provenance, "now", lambda: f"{now[:10]}T23:59:59+00:00")  # it takes less than a second
        assert place().code == 0

    monkeypatch.setattr(Here, "run", another)
    place.folder.mkdir()
    done = place(common=seeds)
    assert done.code == 2
    assert f"{STEM}.json is of a finished run with other settings (bit_flip_pos 1 there, -1 here)" in done.err
    for path in place.folder.glob(f"{STEM}*"):
        path.unlink()
    monkeypatch.setattr(Here, "run", lambda *_args, **_kwargs: iter(()))  # nothing is left to be run
    assert place(common=seeds).code == 0
    assert {path.name for path in place.folder.glob("*.json")} == {
        f"digits_vgg_digits_{seed}.json" for seed in (4, 5, 6)
    }


def test_one_sentence_for_many_seeds(place: Place) -> None:
    seeds = ("--dataset=digits", "--layer-num=1", "--seeds=4-6")
    assert place(common=seeds).code == 0
    done = place("--bit-flip-pos=3", common=seeds)
    first = place.folder / "digits_vgg_digits_4.json"
    assert done.err.startswith(f"error: output_path (--output-path): {first} (and 2 more like it) is of a finished run")
    assert place(common=seeds).err.startswith(f"{first} (and 2 more like it) is of this very run")
    assert place("--seeds=7,8", common=seeds[:2]).code == 0
    assert place("--seed=9", "--bit-flip-pos=3", common=seeds[:2]).code == 0


def test_lists_of_the_same_name(place: Place, tmp_path: Path) -> None:
    for name, seed in (("a", 1), ("b", 2)):
        (tmp_path / name).mkdir()
        saved = f"--save-faults={tmp_path / name / 'mine.csv'}"
        common = ("--dataset=digits", "--layer-num=1", f"--seed={seed}", "--output-path", str(tmp_path / name))
        assert place.run_script("main.py", *common, saved).code == 0
    one, other = ((f"--faults={tmp_path / name / 'mine.csv'}", "--dataset=digits") for name in "ab")
    assert place(common=one).code == 0
    assert place(common=one).code == 0
    place.refuses("digits_vgg_digits_list-mine", "other faults", common=other)


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"ended": 3}', '{"ended": "9", "settings": {}, "model": []}'])
def test_what_can_not_be_read_is_not_replaced(text: str, place: Place) -> None:
    place.folder.mkdir()
    (place.folder / f"{STEM}.json").write_text(text)
    done = place()
    assert done.code == 2
    assert f"{STEM}.json can't be read as that of a finished run (" in done.err
    assert (place.folder / f"{STEM}.json").read_text() == text
    assert place("--fresh").code == 0


def test_a_repeat_on_another_day_with_a_setting_that_did_not_exist_then(place: Place) -> None:
    """What an earlier file does not say is no difference; its version is."""
    assert place().code == 0
    path = place.folder / f"{STEM}.json"
    facts = json.loads(path.read_text())
    del facts["settings"]["bit_sampling"]
    path.write_text(json.dumps(facts))
    assert place().code == 0


def test_in_a_program(tiny: nn.Module, tmp_path: Path) -> None:
    images = random_images(8, 3, 8, 8)
    campaign = bitflip.Campaign(tiny, TensorDataset(images, torch.zeros(8, dtype=torch.long)))
    first = campaign.run(bitflip.Sampled(seed=1), folder=tmp_path)
    campaign.run(bitflip.Sampled(seed=1), folder=tmp_path)
    before = contents(tmp_path)
    for faults, differ in (
        (bitflip.Sampled(seed=1, bit=3), "bit_flip_pos -1 there, 3 here"),
        (bitflip.Sampled("weight", seed=1), "target neuron there, weight here"),
    ):
        with pytest.raises(BadInput, match=differ):
            campaign.run(faults, folder=tmp_path)
    assert contents(tmp_path) == before
    again = campaign.run(bitflip.Sampled(seed=1, bit=3), folder=tmp_path, fresh=True)
    assert again.files == first.files
    assert contents(tmp_path) != before


def test_patterns_of_bit_error_rates(place: Place) -> None:
    """They have names of their own, and the same rule."""
    rates = ("--dataset=digits", "--seed=5", "--layer-num=1", "--bit-error-rate=1e-4")
    assert place().code == 0
    assert place(common=rates).code == 0
    assert place(common=rates).code == 0
    (record,) = set(place.folder.glob("*.json")) - {place.folder / f"{STEM}.json"}
    place.refuses(record.stem, "repeats 1 there, 2 here", "--repeats=2", common=rates)
