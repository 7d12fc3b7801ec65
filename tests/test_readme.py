"""What the README says is so."""

from __future__ import annotations

import csv
import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from bitflip import report as reports
from bitflip.settings.hyperparameters import Hyperparameters

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
SAMPLES = ROOT / "sample-output"
TEN = SAMPLES / "ten-seeds"
LAST_BITS = {"masked", "benign", "sdc10", "sdc20", "largest_change"}  # decided by the processor's last bits
RUNS = {"main": "", "neuron": "neuron_", "weight": "weight_"}


def table() -> dict[str, str]:
    """The README's table of hyperparameters: name -> default."""
    rows = README.split("<!-- hyperparameters -->")[1].split("\n\n")[0].strip().splitlines()[2:]
    return {
        name.strip(" `"): default.strip(" `") for name, default, _ in (row.strip("|").split("|", 2) for row in rows)
    }


def test_the_readme_is_read_from_top_to_bottom() -> None:
    """All settings are in the site's table, which is made from them: tests/test_site.py."""
    assert len(README.splitlines()) <= 150
    assert len(table()) == 10


@pytest.mark.parametrize("name", table())
def test_the_defaults_are_those_of_the_program(name: str) -> None:
    default = Hyperparameters.model_fields[name].default
    if default is not None:  # the others are said in words
        assert table()[name] == ({True: "on", False: "off"}[default] if isinstance(default, bool) else str(default))


def test_the_numbers_are_those_of_the_sample_run() -> None:
    sample = (SAMPLES / "digits_vgg_digits_1234.txt").read_text().splitlines()
    shown = README.split("```\ndigits_vgg on digits")[1].split("...")[0].splitlines()[1:]
    assert len(shown) > 3
    assert not set(shown) - set(sample)


def test_the_links_lead_somewhere() -> None:
    for link in re.findall(r"\]\((?!https?:)([^)#]+)\)", README):
        assert (ROOT / link).exists(), link


@pytest.mark.parametrize(
    "command", re.findall(r"python (?:-m bitflip|\w+\.py)[^`|]*", README.split("## Recipes")[1].split("**")[0])
)
def test_the_recipes_have_flags_that_there_are(command: str) -> None:
    program, *flags = re.findall(r"(?<!\S)(?:-m bitflip \w+|\w+\.py|--[a-z-]+)", command)
    shown = subprocess.run(
        [sys.executable, *program.split(), "--help"], cwd=ROOT, check=True, timeout=60, capture_output=True, text=True
    ).stdout
    assert not [flag for flag in flags if flag not in shown]


@pytest.fixture(scope="module", params=RUNS)
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The sample run of a script, done again as its ``.json`` says."""
    stem = f"{RUNS[request.param]}digits_vgg_digits_1234"
    settings: dict[str, Any] = json.loads((SAMPLES / f"{stem}.json").read_text())["settings"]
    folder = tmp_path_factory.mktemp(request.param)
    flags = [
        f"--{name.replace('_', '-')}={value}"
        for name, value in settings.items()
        if value is not None and name not in ("output_path", "detailed_log", "drop_last")
    ]
    command = [sys.executable, f"{request.param}.py", *flags, "--detailed-log", f"--output-path={folder}"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=240, capture_output=True)
    return folder, stem


def test_sample_summary_is_what_the_scripts_write(run: tuple[Path, str]) -> None:
    folder, stem = run
    assert (folder / f"{stem}.txt").read_text() == (SAMPLES / f"{stem}.txt").read_text()


@pytest.mark.parametrize("suffix", [".csv", "_bits.csv"])
def test_sample_tables_are_what_the_scripts_write(run: tuple[Path, str], suffix: str) -> None:
    """All but what the last bits of a logit decide, which are the processor's."""
    new, old = (rows(f / f"{run[1]}{suffix}") for f in (run[0], SAMPLES))
    assert new == old


def test_sample_detail_names_the_same_faults(run: tuple[Path, str]) -> None:
    """All but the values themselves, whose last bits are the processor's."""
    folder, stem = run
    value = re.compile(r"(Original|Error) (value|binary): .+")
    old, new = ((f / f"{stem}_detailed.txt").read_text() for f in (SAMPLES, folder))
    assert value.sub("", new) == value.sub("", old)
    assert "Flip bit: " in new


def test_the_page_for_users_of_the_vessl_example_shows_blocks_of_the_samples() -> None:
    page = (ROOT / "docs" / "vessl-example.md").read_text()
    shown = re.findall(r"```\n(Layer: .+?)```", page, flags=re.DOTALL)
    assert len(shown) == 2
    for name, blocks in zip(("", "weight_"), shown, strict=True):
        assert f"{blocks}\n" in (SAMPLES / f"{name}digits_vgg_digits_1234_detailed.txt").read_text()


def test_sample_json_has_the_same_keys(run: tuple[Path, str]) -> None:
    folder, stem = run
    old, new = (json.loads((f / f"{stem}.json").read_text()) for f in (SAMPLES, folder))
    assert new.keys() == old.keys()
    assert new["layers"] == old["layers"]
    assert new["model"] == old["model"]
    differing = {key for key in new["settings"] if new["settings"][key] != old["settings"][key]}
    assert differing == {"output_path"}


def test_no_other_sample_is_left_over() -> None:
    assert {p.name.split("digits_vgg")[0] for p in SAMPLES.iterdir()} == {*RUNS.values(), TEN.name}
    assert shutil.which("git") is None or not list(SAMPLES.glob(".*"))


def test_the_joined_sample_is_made_from_its_ten_seeds(tmp_path: Path) -> None:
    for path in TEN.iterdir():
        if "_seeds" not in path.name:
            shutil.copy(path, tmp_path)
    tables = [tmp_path / f"digits_vgg_digits_{seed}.csv" for seed in range(1, 11)]
    reports.write(reports.join([reports.read(table) for table in tables], tmp_path))
    for name in ("seeds.csv", "seeds_bits.csv", "seeds_means.csv", "seeds_layers.svg"):
        assert (tmp_path / f"digits_vgg_digits_{name}").read_text() == (TEN / f"digits_vgg_digits_{name}").read_text()


def test_a_seed_of_the_joined_sample_can_be_run_again(tmp_path: Path) -> None:
    sample = TEN / "digits_vgg_digits_3.json"
    command = [sys.executable, "main.py", f"--rerun={sample}", "--no-plots", f"--output-path={tmp_path}"]
    subprocess.run(command, cwd=ROOT, check=True, timeout=240, capture_output=True)
    for suffix in (".txt", ".csv"):
        new, old = (rows(folder / f"digits_vgg_digits_3{suffix}") for folder in (tmp_path, TEN))
        assert new == old


def rows(path: Path) -> list[dict[str, str]]:
    """The rows of a table, or the lines of a text, but for what the last bits of a logit decide."""
    if path.suffix != ".csv":
        return [{"line": line} for line in path.read_text().splitlines()]
    with path.open() as file:
        return [{k: v for k, v in row.items() if k not in LAST_BITS} for row in csv.DictReader(file)]
