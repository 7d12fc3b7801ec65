"""``python -m bitflip verify``: the verdict on a campaign that agrees, and on some that do not."""

from __future__ import annotations

import csv
import re
import runpy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, FewDigits, RunScript
from hypothesis import given, settings
from hypothesis import strategies as st

from bitflip.__main__ import main
from bitflip.faults import faultlist
from bitflip.report import verification
from bitflip.report.verification import Floats, Sides

PUBLISHED_IMAGES = 200
OURS = 50  # the first of them
ELEMENTS = ("0, 0, 0, 0", "3, 1, 1, 2", "5, 2, 2, 2")


def published_row(number: int, element: str, bit: int, counts: tuple[int, int, int]) -> list[object]:
    return [number, "features.0", f"({element})", bit, sum(counts), *counts]


def write_published(path: Path, rows: list[list[object]]) -> None:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([list(faultlist.PUBLISHED_HEADER), *rows])


@pytest.fixture
def published(run_script: RunScript, few_digits: FewDigits, tmp_path: Path) -> Path:
    """What all 200 images make of a list, in the published format."""
    few_digits(PUBLISHED_IMAGES)
    faults = [(element, bit) for element in ELEMENTS for bit in (31, 30, 29, 28, 23, 22, 12, 3, 0)]
    path = tmp_path / "published.csv"
    write_published(path, [published_row(i, *fault, (1, 0, 0)) for i, fault in enumerate(faults)])
    done = run_script("weight.py", "--dataset", "digits", "--output-path", tmp_path / "all", "--faults", path)
    assert (done.code, done.err) == (0, "")
    with (tmp_path / "all" / "weight_digits_vgg_digits_list-published_faults.csv").open() as file:
        found = [(int(row["masked"]), int(row["benign"]), int(row["critical"])) for row in csv.DictReader(file)]
    assert sum(critical for _, _, critical in found) > PUBLISHED_IMAGES
    write_published(path, [published_row(i, *fault, found[i]) for i, fault in enumerate(faults)])
    few_digits(OURS)
    return path


def verify(path: Path, folder: Path, *more: object) -> int:
    return main(["verify", "--dataset", "digits", "--output-path", str(folder), "--faults", str(path), *map(str, more)])


def test_a_sample_of_the_same_images_agrees(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    assert verify(published, tmp_path) == 0
    out = capsys.readouterr().out
    assert out.endswith("Agrees with what was published, within sampling error.\n")
    assert f"Critical (top-1 changed), in percent of {OURS} images, published of {PUBLISHED_IMAGES}:" in out
    assert "TF32" in out
    results = tmp_path / "weight_digits_vgg_digits_list-published_faults.csv"
    assert main(["verify", "--faults", str(published), "--results", str(results)]) == 0
    assert capsys.readouterr().out == out[out.index("\nCritical") :]


def test_a_proof_instead_of_a_run(published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The critical shares, and the verdict on them, are those of the run of every fault."""
    said = []
    for name, flags in (("plain", ()), ("proved", ("--prove", "--audit", "0.5"))):
        capsys.readouterr()
        assert verify(published, tmp_path / name, *flags) == 0
        out = capsys.readouterr().out
        said.append(out[out.index("\nCritical") :].splitlines())
    plain, proved = ([line.split()[:7] for line in lines if re.match(r"\d|features|all", line)] for lines in said)
    assert plain == proved
    assert "masked" in " ".join(said[0])
    assert [line[:31] for line in said[1] if "masked" in line.lower()] == ["Masked shares are not compared:"]
    (results,) = (tmp_path / "proved").glob("*_faults.csv")
    assert main(["verify", "--faults", str(published), "--results", str(results)]) == 0
    asked = (["--results", str(results)], ["--prove", "--dataset", "digits", "--output-path", str(tmp_path)])
    for more in asked:
        assert main(["verify", "--masked", "--faults", str(published), *more]) == 2
        assert "masked (--masked): expected" in capsys.readouterr().err


def test_bits_counted_from_the_wrong_end_do_not_agree(
    published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = list(csv.reader(published.open()))[1:]
    write_published(published, [[*row[:3], 31 - int(row[3]), *row[4:]] for row in rows])
    assert verify(published, tmp_path) == 1
    out = capsys.readouterr().out
    assert out.endswith("Does NOT agree with what was published: more than sampling error explains.\n")
    assert "bit 30: " in out
    assert "standard errors off the published" in out


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        pytest.param((), "faults (--faults): expected the path of a published fault list", id="no-list"),
        pytest.param(("--faults", "{own}"), "got a list of faults only", id="own-format"),
        pytest.param(
            ("--faults", "{own}", "--tolerance", "2"), "tolerance (--tolerance): expected a share", id="tolerance"
        ),
        pytest.param(("--faults", "{known}", "--results", "{own}"), "whose name ends in _faults.csv", id="results"),
        pytest.param(("--faults", "{known}", "--results", "a_faults.csv"), "can't be read", id="no-results"),
        pytest.param(("--faults", "{known}", "--batch-size", "0"), "batch_size (--batch-size): expected", id="setting"),
    ],
)
def test_bad_input(
    arguments: tuple[str, ...], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own, known = tmp_path / "own.csv", tmp_path / "known.csv"
    own.write_text("target,layer,call,index,bit,image\nweight,a,0,0,1,all\n")
    write_published(known, [published_row(1, "0, 0, 0, 0", 3, (1, 2, 3))])
    shared = ("--dataset", "digits", "--output-path", str(tmp_path))
    assert main(["verify", *shared, *(part.format(own=own, known=known) for part in arguments)]) == 2
    err = capsys.readouterr().err
    assert err.startswith("error: ")
    assert sentence in err


# --- the verdict as such: made-up campaigns on images that are a sample of the published ones ---

FAULTS, POPULATION, SAMPLE = 60, 4000, 400


def campaign(rng: np.random.Generator, *, shift: float = 0.0) -> Sides:
    """Faults of 3 bits in 2 layers; an image is near a decision boundary for all faults, or for none."""
    nearness = rng.beta(0.3, 3.0, size=POPULATION)
    strength = np.repeat([4.0, 0.02, 0.0005], FAULTS // 3)
    strong = np.minimum(nearness * strength[:, None] * rng.uniform(0.2, 1.8, (FAULTS, 1)), 1)
    critical = rng.random((FAULTS, POPULATION)) < strong
    sample = rng.choice(POPULATION, SAMPLE, replace=False)
    ours = critical[:, sample] | (rng.random((FAULTS, SAMPLE)) < shift)
    keys = [("weight", f"layer{i % 2}", 0, i * 3 // FAULTS) for i in range(FAULTS)]
    by_image: dict[faultlist.Key, Floats] = {}
    for key, row in zip(keys, ours, strict=True):
        by_image[key] = by_image.get(key, np.zeros(SAMPLE)) + row
    n, m = np.full(FAULTS, float(POPULATION)), np.full(FAULTS, float(SAMPLE))
    none = np.zeros(FAULTS)
    return Sides(keys, n, critical.sum(1).astype(float), m, ours.sum(1).astype(float), none, none, by_image)


def test_errors_are_as_large_as_they_say() -> None:
    """Over many campaigns that agree, the differences in standard errors have a spread of about 1."""
    rng = np.random.default_rng(0)
    verdicts = [verification.compare(campaign(rng), 0.0) for _ in range(200)]
    for group in ("common bit", "total"):
        z = np.array([v.bits[0].z if group == "common bit" else v.total.z for v in verdicts])
        assert 0.85 < z.std() < 1.15, group  # the standard deviation of 200 draws is known to 5 %
    rare = np.array([v.bits[1].z for v in verdicts])
    assert 0.5 < rare.std() < 1.15
    assert sum(not v.agrees for v in verdicts) <= 6, "1 % of campaigns that agree may be taken for others"


def test_a_shift_is_seen() -> None:
    rng = np.random.default_rng(1)
    assert not any(verification.compare(campaign(rng, shift=0.05), 0.0).agrees for _ in range(20))


def test_faults_mixed_up_within_a_bit_are_seen() -> None:
    """Totals would not show it."""
    rng = np.random.default_rng(2)
    for _ in range(20):
        sides = campaign(rng)
        third = FAULTS // 3
        mixed = replace(sides, published=np.concatenate([np.roll(sides.published[:third], 2), sides.published[third:]]))
        verdict = verification.compare(mixed, 0.0)
        assert not verdict.agrees
        assert all(group.agrees(0.0, verdict.z) for group in [verdict.total, *verdict.bits])


def test_the_whole_population_leaves_no_sampling_error() -> None:
    keys = [("weight", "a", 0, 1), ("weight", "a", 0, 2)]
    n, critical = np.array([10.0, 10.0]), np.array([5.0, 0.0])
    by_image = {keys[0]: np.array([1.0] * 5 + [0.0] * 5)}
    none = np.zeros(2)
    same = verification.compare(Sides(keys, n, critical, n, critical, none, none, by_image), 1e-4)
    assert same.agrees
    assert same.total.error == 0
    other = verification.compare(Sides(keys, n, critical + 1, n, critical, none, none, by_image), 1e-4)
    assert {group.name for group in other.off} == {"all", 1, 2, ("weight", "a", 0)}


# --- masked: which layers look as if they ran in TF32, and which bits are off ---

A, B = (("weight", layer, 0) for layer in "ab")


def masked_campaign(
    published: dict[str, float], ours: dict[str, float], *, seen: int = 10, low: int = 10, others: float = 0.1
) -> verification.Masked:
    """Nothing is critical; low bits are masked to the share that is given for each layer.

    Args:
        published, ours: the share by layer.
        seen: flips in the mantissa bits that TF32 sees.
        low: flips in those that it does not.
        others: share to which flips in other bits than the low ones are masked.
    """
    bits = [*range(9, 9 + seen), *range(31, 31 - low, -1), 1]
    keys = [("weight", layer, 0, bit) for layer in published for bit in bits]
    n, m, none = np.full(len(keys), 10_000.0), np.full(len(keys), 1000.0), np.zeros(len(keys))
    theirs, here = (
        np.array([share[path] if bit in verification.ROUNDED_OFF else others for _, path, _, bit in keys])
        for share in (published, ours)
    )
    found = verification.compare(Sides(keys, n, none, m, none, theirs * n, here * m, {}), 0.0).masked
    assert found is not None
    return found


def test_tf32_is_seen_by_layer() -> None:
    found = masked_campaign({"a": 0.3, "b": 1.0}, {"a": 0.3, "b": 0.4})
    assert found.tf32 == ([B], [])
    assert [found.rounded_off[layer] for layer in (A, B)] == [pytest.approx((0.3, 0.3)), pytest.approx((1.0, 0.4))]
    assert found.off == list(range(22, 32))


def test_small_differences_of_masked_shares_are_none() -> None:
    assert masked_campaign({"a": 0.3, "b": 1.0}, {"a": 0.32, "b": 1.0}).off == []


@pytest.mark.parametrize(
    ("published", "options"),
    [
        pytest.param(1.0, {"others": 1.0}, id="a layer that nothing reads, or that is pruned"),
        pytest.param(1.0, {"low": 7}, id="too few low bits"),
        pytest.param(1.0, {"seen": 7}, id="too few others"),
        pytest.param(1.0, {"seen": 0}, id="no others"),
        pytest.param(0.999, {}, id="not quite all masked"),
    ],
)
def test_what_is_not_taken_for_tf32(published: float, options: dict[str, float]) -> None:
    assert masked_campaign({"a": published}, {"a": published}, **options).tf32 == ([], [])  # type: ignore[arg-type]


@pytest.mark.parametrize(("flag", "code"), [("", 0), ("--masked", 1)])
def test_masked_shares_are_judged_on_request(
    flag: str, code: int, published: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Here of a published list whose benign outcomes are all called masked."""
    rows = list(csv.reader(published.open()))[1:]
    write_published(published, [[*row[:5], int(row[5]) + int(row[6]), 0, row[7]] for row in rows])
    assert verify(published, tmp_path, *flag.split()) == code
    out = capsys.readouterr().out
    assert ("are masked, published" in out) == bool(code)
    assert ("Masked shares are not part of the verdict" in out) != bool(code)


@settings(deadline=None)
@given(st.floats(width=32, allow_nan=False, allow_infinity=False, allow_subnormal=True), st.integers(0, 31))
def test_tf32_sees_no_flip_in_the_last_twelve_bits(number: float, bit: int) -> None:
    to_tf32 = runpy.run_path(str(ROOT / "docs" / "resnet20_tf32.py"))["to_tf32"]
    one = torch.tensor([number], dtype=torch.float32)
    flipped = (one.view(torch.int32) ^ torch.tensor(1 << (31 - bit)).to(torch.int32)).view(torch.float32)
    same = torch.equal(to_tf32(one).view(torch.int32), to_tf32(flipped).view(torch.int32))
    assert same == (bit in verification.ROUNDED_OFF)


@pytest.mark.parametrize(
    ("number", "rounded"),
    [
        (1.0, 1.0),
        (1 + 2**-11, 1 + 2**-10),
        (1 + 2**-11 - 2**-23, 1.0),
        (-1 - 2**-11, -1 - 2**-10),
        (0.1, 0.0999755859375),
        (-0.0, -0.0),
        (float("inf"), float("inf")),
        (float("nan"), float("nan")),
    ],
)
def test_tf32_rounds_to_nearest(number: float, rounded: float) -> None:
    to_tf32 = runpy.run_path(str(ROOT / "docs" / "resnet20_tf32.py"))["to_tf32"]
    found = to_tf32(torch.tensor([number], dtype=torch.float32)).item()
    assert np.array(found).tobytes() == np.array(rounded).tobytes()
