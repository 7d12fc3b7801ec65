"""Protections: what they do to a value, that they change no layer and no fault, and that the engines agree on them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from conftest import DEVICE, FewDigits, RunScript, TinyNet, random_images, scatter
from test_engines import InPlace, RepVGGBlock, assert_same, lively, sampled
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from bitflip import BadInput, Campaign, Sampled
from bitflip.campaign import protecting
from bitflip.data import digits
from bitflip.data.images import Images
from bitflip.engines.agreement import record
from bitflip.engines.bounds import Bounds as Constants
from bitflip.engines.graph import Program
from bitflip.engines.injection import Injector, WithInput
from bitflip.engines.pool import Budget
from bitflip.engines.reference import Reference
from bitflip.engines.wave import Wave
from bitflip.engines.windows import Kind
from bitflip.faults.flips import TargetKind
from bitflip.network import calibration, models, protections
from bitflip.network.devices import Placement
from bitflip.network.protections import Guard
from bitflip.settings.hyperparameters import Hyperparameters
from bitflip.settings.protection import Protection

PLACEMENT = Placement(DEVICE, torch.float32)
ALL = ("relu6", "clamp:0:0.7", "ranger", "ranger-channel", "clip", "ranger-channel+clip", "nan", "nan+clamp:-1:1")
INF, NAN = math.inf, math.nan


# --- one value ---


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("clamp:-1:2", [-1, -1, -0.5, 2, 2, 2, NAN]),
        ("clamp:-1:2+clip", [0, 0, -0.5, 2, 0, 0, 0]),
        ("clamp:-1:2+nan", [0, -1, -0.5, 2, 2, 0, 0]),
        ("relu6", [0, 0, 0, 2, 6, 6, NAN]),
        ("nan", [0, -3, -0.5, 2, 9, 0, 0]),
        ("clamp:-inf:inf", [-INF, -3, -0.5, 2, 9, INF, NAN]),
    ],
)
def test_what_becomes_of_a_value(text: str, expected: list[float]) -> None:
    protection = Protection.of(text)
    guard = Guard(protection, [protection.low], [protection.high], torch.float32)
    values = torch.tensor([[-INF, -3, -0.5, 2, 9, INF, NAN]])
    before = values.clone()
    assert guard(values).tolist() == [pytest.approx(expected, nan_ok=True)]
    assert torch.equal(values.nan_to_num(), before.nan_to_num()), "the values themselves are left alone"


def test_each_channel_has_its_own_range() -> None:
    guard = Guard(Protection.of("ranger-channel"), [0.0, 1.0, -1.0], [1.0, 2.0, 0.0], torch.float32)
    values = torch.full((2, 3, 4, 4), 0.5)
    guarded = guard(values)
    assert guarded.mean((0, 2, 3)).tolist() == [0.5, 1.0, 0.0]
    for channel in range(3):
        only = values[:, channel : channel + 1]
        assert torch.equal(guard.of_channel(only, channel), guarded[:, channel : channel + 1])


@pytest.mark.parametrize(
    "text",
    ["", "relu7", "clamp", "clamp:1", "clamp:2:1", "clamp:nan:1", "clamp:a:b", "ranger+relu6", "nan+nan", "nan:1"],
)
def test_what_is_no_protection(text: str, run_script: RunScript, tmp_path: Path) -> None:
    with pytest.raises(ValueError):  # noqa: PT011
        Protection.of(text)
    if text:
        done = run_script("main.py", "--dataset=digits", f"--protect={text}", f"--output-path={tmp_path}")
        assert done.code == 2
        assert done.errors[0].startswith("protect (--protect): expected relu6, clamp:LOW:HIGH, ranger")


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("high", [0.0, 0.7, 6.0, math.inf])
def test_clip_from_zero_on(high: float, dtype: torch.dtype) -> None:
    """As it is defined, at the ends and at everything that is no number."""
    end = torch.tensor(high, dtype=dtype)
    edges = [0.0, -0.0, math.inf, -math.inf, math.nan, torch.finfo(dtype).max, -1.0, torch.finfo(dtype).tiny, end]
    beyond = torch.nextafter(end, end * 0 + math.inf)
    values = torch.cat(
        [torch.tensor(edges, dtype=dtype), beyond[None], random_images(1, 1, 8, 8).flatten().to(dtype) * 3]
    )
    guard = Guard(Protection.of("clip"), [0.0], [high], dtype)
    found = guard(values.reshape(2, -1).t()).t().flatten()
    assert torch.equal(found, torch.where((values >= 0) & (values <= end), values, 0))
    assert not found.signbit().any()


# --- layers ---


def protect(model: nn.Module, images: Tensor, **settings: Any) -> protecting.Safeguard:
    """Protect a model, with bounds from the given images."""
    chosen = Hyperparameters(**settings)
    given = Images(TensorDataset(images, torch.zeros(len(images), dtype=torch.int64)), len(images))
    found = protecting.protect(chosen, models.given(model), images, lambda: given)
    assert found is not None
    return found


def blocks() -> nn.Module:
    """Its activations are functions, which can't be protected; its blocks can."""
    return nn.Sequential(
        RepVGGBlock(3, 6, 1), RepVGGBlock(6, 6, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 10)
    )


def trained_digits() -> nn.Module:
    model = digits.build()
    model.load_state_dict(torch.load(digits.WEIGHTS, weights_only=True))
    return model


CASES: dict[str, tuple[Callable[[], nn.Module], dict[str, Any]]] = {
    **{f"vgg {name}": (trained_digits, {"protect": name}) for name in ("clamp:0:0.7", "ranger-channel+clip")},
    **{f"tiny {name}": (lambda: scatter(TinyNet()), {"protect": name}) for name in ALL},
    **{f"in place {name}": (InPlace, {"protect": name}) for name in ("clip", "nan+ranger-channel")},
    "blocks": (blocks, {"protect": "ranger-channel", "protect_layers": "RepVGGBlock,BatchNorm2d"}),
    "convolutions": (trained_digits, {"protect": "ranger-channel+clip", "protect_layers": "Conv2d,Linear"}),
    "percentile": (trained_digits, {"protect": "ranger-channel", "percentile": 90.0}),
}


@pytest.fixture(params=CASES, ids=list(CASES))
def case(request: pytest.FixtureRequest) -> tuple[nn.Module, Tensor, dict[str, Any]]:
    build, settings = CASES[request.param]
    torch.manual_seed(0)
    model = PLACEMENT.model(lively(build()))
    images = digits.load("test").tensors[0][:5] if build is not TinyNet else random_images(5, 3, 8, 8)
    if request.param.startswith("tiny"):
        images = random_images(5, 3, 8, 8)
    return model, PLACEMENT.inputs(images), settings


@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_the_engines_agree(case: tuple[nn.Module, Tensor, dict[str, Any]], target: TargetKind) -> None:
    """And layers and flips are those of the unprotected model."""
    model, images, settings = case

    def injector_of() -> Injector:
        return Injector(WithInput(model) if target == "neuron" else model, len(images), images[:1])

    bare = injector_of()
    bare_flips = sampled(bare, target, len(images), 10)
    values = {name: value.clone() for name, value in model.state_dict().items()}
    with protections.taken_off(model):
        protect(model, images, **settings)
        injector = injector_of()
        assert injector.everything == bare.everything
        flips = sampled(injector, target, len(images), 10)
        assert all(
            a.where == b.where and a.element.tolist() == b.element.tolist() and a.bit.tolist() == b.bit.tolist()
            for a, b in zip(flips, bare_flips, strict=True)
        )
        program = Program(injector.original_model, injector.modules, injector.layers, images)
        guards = [s for s in program.steps if s.node.op == "call_module" and type(program.module(s.node)) is Guard]
        assert guards
        assert {step.kind for step in guards if step.layout == program.layouts[program.placeholder]} <= {Kind.POINTWISE}
        expected, _ = record(Reference(injector), images, flips)
        got, _ = record(Wave(injector, program, Budget(rows=16, bytes=1 << 28)), images, flips)
        assert_same(expected, got)
    assert model.state_dict().keys() == values.keys()
    assert all(torch.equal(value, values[name]) for name, value in model.state_dict().items())
    assert not model._forward_pre_hooks
    assert not any(isinstance(module, protections.Protected | Guard) for module in model.modules())


BIG = 1 << 30  # of the top exponent bit


@pytest.mark.parametrize("name", ["ranger", "ranger-channel", "clip", "nan", "relu6", "clamp:0:2"])
@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_each_flip_does_what_a_plain_loop_says(name: str, target: Any, tiny: nn.Module) -> None:
    """A flip, then the protection, by hand: each image alone, the network written out."""
    images, labels = random_images(16, 3, 8, 8), torch.arange(16) % 10
    training = random_images(40, 3, 8, 8, seed=9)
    ends: dict[str, tuple[Tensor, Tensor]] = {}

    def guard(place: str, x: Tensor) -> Tensor:
        low, high = ends[place]
        if name == "relu6":  # of a ReLU
            low, high = torch.zeros(()), torch.tensor(INF if place == "pool" else 6.0)
        if name == "clamp:0:2":
            low, high = torch.zeros(()), torch.tensor(2.0)
        if name == "nan":
            return torch.where(x.isnan() | x.isinf(), 0.0, x)
        if name == "clip":
            return torch.where((x >= low) & (x <= high), x, 0.0)
        return torch.where(x > high, high, torch.where(x < low, low, x))

    def network(x: Tensor, strike: Callable[[str, Tensor], Tensor], keep: Callable[[str, Tensor], Tensor]) -> Tensor:
        net: Any = tiny
        x = strike("input", x)
        x = strike("bn1", net.bn1(strike("conv1", net.conv1(x))))
        x = keep("relu", strike("relu", x.relu()))
        y = strike("bn2", net.bn2(strike("conv2", net.conv2(x))))
        x = keep("relu (2nd call)", strike("relu (2nd call)", (y + x).relu()))
        x = keep("pool", strike("pool", nn.functional.max_pool2d(x, 2)))
        return strike("linear", net.linear(strike("drop", x).flatten(1)))

    def look(place: str, x: Tensor) -> Tensor:
        whole = (0, 2, 3) if name == "ranger-channel" else (0, 1, 2, 3)
        ends[place] = x.amin(whole, keepdim=True), x.amax(whole, keepdim=True)
        return x

    with torch.no_grad():
        network(training, lambda place, x: x, look)
        clean = torch.cat([network(x[None], lambda place, x: x, guard) for x in images])
    result = Campaign(tiny, TensorDataset(images, labels), batch_size=4, device="cpu").run(
        Sampled(target, seed=3, bit=1, repeats=2),
        fault_table=True,
        protect=name,
        calibration_set=TensorDataset(training, torch.zeros(40, dtype=torch.int64)),
    )
    rows = pq.read_table(result.files.faults).to_pylist()
    places = {row.layer: f"{row.path} (2nd call)" if row.call else row.path for row in result.layers}
    assert len(rows) > 100
    changed = 0
    for row in rows:
        where = places[row["layer"]]
        if target == "neuron":

            def strike(place: str, x: Tensor, where: str = where, element: int = row["element"]) -> Tensor:
                if place == where:
                    x = x.clone()
                    x.view(-1).view(torch.int32)[element] ^= BIG
                return x

            with torch.no_grad():
                logits = network(images[row["image"]][None], strike, guard)[0]
        elif math.isnan(row["error"]):
            continue  # times the zeros of the padding it is NaN, or is left out: kernels differ
        else:
            weight = tiny.get_parameter(f"{where}.weight")
            with torch.no_grad():
                kept = weight.clone()
                weight.view(-1).view(torch.int32)[row["element"]] ^= BIG
                logits = network(images[row["image"]][None], lambda place, x: x, guard)[0]
                weight.copy_(kept)
        if logits.abs().max() > torch.finfo(torch.float32).max / 1000:
            continue  # the order of adding up decides what becomes infinite: kernels differ
        assert int(logits.argmax()) == row["top1"]
        assert int(clean[row["image"]].argmax()) == row["clean_top1"]
        changed += row["top1"] != row["clean_top1"]
    assert changed


def some(count: int, seed: int = 1) -> TensorDataset:
    return TensorDataset(random_images(count, 3, 8, 8, seed=seed), torch.arange(count) % 10)


@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_the_engines_agree_where_values_become_nan(target: Any, tiny: nn.Module) -> None:
    """A NaN in a convolution's weight reaches some pixels or all of them, and does not spread behind a guard."""
    with torch.no_grad():
        tiny.get_parameter("conv2.weight").mul_(4)  # to values above 1, whose top exponent bit makes NaN
    engines: tuple[Any, ...] = ("wave", "reference")
    wave, reference = (
        Campaign(tiny, some(8), batch_size=4, device="cpu", engine=engine).run(
            Sampled(target, seed=3, bit=1, repeats=20, layer_type=["Conv2d", "ReLU"] if target == "neuron" else None),
            fault_table=True,
            protect="nan+ranger-channel",
            calibration_set=some(40, 9),
        )
        for engine in engines
    )
    tables = [pq.read_table(result.files.faults) for result in (wave, reference)]
    assert np.isnan(tables[0].column("error").to_numpy()).sum() > 20
    assert wave.facts["engine"] == "wave"
    assert tables[0].drop_columns(["error"]).equals(tables[1].drop_columns(["error"]))


# --- bounds ---


def test_bounds_are_those_of_a_plain_loop(tiny: nn.Module) -> None:
    images = random_images(250, 3, 8, 8)
    seen: list[Tensor] = []
    relu: Any = tiny.relu
    handle = relu.register_forward_hook(lambda module, args, output: seen.append(output))
    with torch.no_grad():
        tiny(images)
    handle.remove()
    for protect_as, along in (("ranger", (0, 1, 2, 3)), ("ranger-channel", (0, 2, 3))):
        with protections.taken_off(tiny):
            found = protect(tiny, images, protect=protect_as).bounds
        assert found is not None
        assert set(found.ranges) == {("relu", 0), ("relu", 1), ("pool", 0)}
        for call in (0, 1):
            low, high = found.ranges["relu", call]
            torch.testing.assert_close(torch.tensor(low), seen[call].amin(along).reshape(-1))
            torch.testing.assert_close(torch.tensor(high), seen[call].amax(along).reshape(-1))


@pytest.mark.parametrize("percentile", [60.0, 99.0, 99.9])
def test_a_percentile_cuts_off_its_share(percentile: float, tiny: nn.Module) -> None:
    images = random_images(250, 3, 8, 8)
    with protections.taken_off(tiny):
        found = protect(tiny, images, protect="ranger", protect_layers="BatchNorm2d", percentile=percentile).bounds
    assert found is not None
    with torch.no_grad():
        net: Any = tiny
        values = net.bn1(net.conv1(images)).double().numpy().ravel()
    ((low,), (high,)) = found.ranges["bn1", 0]
    bin_of = (values.max() - values.min()) / calibration.BINS
    assert np.percentile(values, percentile, method="inverted_cdf") == pytest.approx(high, abs=2 * bin_of)
    assert np.percentile(values, 100 - percentile, method="inverted_cdf") == pytest.approx(low, abs=2 * bin_of)
    assert (values <= high).mean() >= percentile / 100


@pytest.mark.parametrize("name", ["ranger", "ranger-channel", "clip"])
def test_bounds_of_the_test_images_change_no_class(name: str, digits_model: nn.Module) -> None:
    """Nor a logit: every value is in the range."""
    model = trained_digits().eval()
    images = digits.load("test").tensors[0]
    with protections.taken_off(model), torch.no_grad():
        expected = model(images[:100])
        protect(model, images, protect=name)
        got = model(images[:100])
    torch.testing.assert_close(got, expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(got.argmax(1), expected.argmax(1))


def files_of(folder: Path) -> dict[str, bytes]:
    """The results but for what names the settings and the time."""
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir()) if path.suffix != ".json"}


@pytest.mark.parametrize("script", ["main.py", "weight.py"])
@pytest.mark.parametrize("name", ["clamp:-inf:inf", "ranger", "ranger-channel"])
def test_infinite_bounds_change_no_byte(
    name: str, script: str, run_script: RunScript, few_digits: FewDigits, tmp_path: Path
) -> None:
    few_digits(40)
    common = ("--dataset=digits", "--seed=3", "--fault-table", "--detailed-log", "--batch-size=16")
    assert run_script(script, *common, f"--output-path={tmp_path / 'bare'}").code == 0
    more = []
    if name != "clamp:-inf:inf":
        first = run_script(script, *common, f"--protect={name}", f"--output-path={tmp_path / 'first'}")
        assert first.code == 0, first.err
        (file,) = (tmp_path / "first").glob("*_bounds.json")
        measured = json.loads(file.read_text())
        for row in measured["layers"]:
            row["low"], row["high"] = [-INF] * len(row["low"]), [INF] * len(row["high"])
        (tmp_path / "wide.json").write_text(json.dumps(measured))
        more = [f"--bounds={tmp_path / 'wide.json'}"]
        assert files_of(tmp_path / "first") != files_of(tmp_path / "bare")
    done = run_script(script, *common, f"--protect={name}", *more, f"--output-path={tmp_path / 'wide'}")
    assert done.code == 0, done.err
    assert files_of(tmp_path / "wide") == files_of(tmp_path / "bare")


def test_bounds_that_were_written_are_those_that_were_measured(
    run_script: RunScript, few_digits: FewDigits, tmp_path: Path
) -> None:
    few_digits(40)
    common = ("--dataset=digits", "--seed=3", "--layer-num=1,5,9", "--protect=ranger-channel+clip")
    saved = tmp_path / "faults.csv"
    first = run_script("main.py", *common, f"--save-faults={saved}", f"--output-path={tmp_path / 'a'}")
    assert first.code == 0, first.err
    (file,) = (tmp_path / "a").glob("*_bounds.json")
    second = run_script("main.py", *common, f"--bounds={file}", f"--output-path={tmp_path / 'b'}")
    assert second.code == 0, second.err
    assert files_of(tmp_path / "a") == files_of(tmp_path / "b")
    facts = [json.loads(next((tmp_path / run).glob("*_3.json")).read_text()) for run in "ab"]
    assert facts[0]["protection"] == facts[1]["protection"]
    assert facts[0]["protection"]["images"] == 40
    bare = tmp_path / "bare.csv"
    assert run_script("main.py", *common[:3], f"--save-faults={bare}", f"--output-path={tmp_path / 'c'}").code == 0
    assert bare.read_bytes() == saved.read_bytes(), "the same faults with and without"


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["--bounds=FILE"], "bounds (--bounds): expected protect (--protect) with it"),
        (["--protect=relu6", "--percentile=99"], "percentile (--percentile): expected a protection whose bounds are"),
        (["--protect-layers=ReLU"], "protect_layers (--protect-layers): expected protect (--protect) with it"),
        (["--protect=ranger", "--bounds=NONE"], "bounds (--bounds): expected a file of bounds that a run wrote"),
        (["--protect=ranger-channel", "--bounds=FILE"], "bounds (--bounds): expected bounds per channel"),
        (["--protect=ranger", "--bounds=FILE", "--percentile=99"], "percentile (--percentile): expected no bounds"),
        (["--protect=ranger", "--protect-layers=Conv9d"], "protect_layers (--protect-layers): the model has no Conv9d"),
        (
            ["--protect=ranger", "--bounds=FILE", "--protect-layers=Conv2d"],
            "bounds (--bounds): expected bounds for each",
        ),
        (["--protect=ranger", "--calibration-images=x"], "calibration_images (--calibration-images): expected none"),
    ],
)
def test_what_does_not_fit_is_a_sentence(
    arguments: list[str], sentence: str, run_script: RunScript, tmp_path: Path
) -> None:
    ranges = {(f"features.{i}", 0): ((0.0,), (9.0,)) for i in (2, 3, 6, 7, 10, 13, 14, 17, 18)}
    calibration.Bounds("layer", {**ranges, ("classifier.1", 0): ((0.0,), (9.0,))}).write(tmp_path / "bounds.json")
    given = [a.replace("FILE", str(tmp_path / "bounds.json")).replace("NONE", "none.json") for a in arguments]
    done = run_script("main.py", "--dataset=digits", f"--output-path={tmp_path / 'out'}", *given)
    assert done.code == 2
    assert [error for error in done.errors if error.startswith(sentence)], done.err


def test_without_training_images_one_sentence_says_what_to_give(run_script: RunScript, tmp_path: Path) -> None:
    from PIL import Image

    for name in ("val/cat", "val/dog", "other"):
        (tmp_path / "in" / name).mkdir(parents=True)
        Image.fromarray(np.full((32, 32, 3), 9 * len(name), np.uint8)).save(tmp_path / "in" / name / "a.png")
    (tmp_path / "own.py").write_text(
        "from torch import nn\n"
        "def build(): return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten())\n"
    )
    where = ("--img-size=32", "--seed=1", f"--output-path={tmp_path / 'out'}", "--protect=ranger")
    common = (
        *where,
        "--dataset=folder",
        f"--input-path={tmp_path / 'in'}",
        f"--model-name={tmp_path / 'own.py'}:build",
    )
    done = run_script("main.py", *common)
    assert done.code == 2
    assert done.errors[-1].startswith(
        "calibration_images (--calibration-images): expected images that are not the test"
    )
    done = run_script("main.py", *common, f"--calibration-images={tmp_path / 'in' / 'other'}")
    assert done.code == 0, done.err


# --- the library, and proofs ---


def test_the_model_comes_back_as_it_was(tiny: nn.Module) -> None:
    tiny.train()
    text, campaign = str(tiny), Campaign(tiny, some(8), batch_size=4, device="cpu")
    loader = DataLoader(some(24, 9), batch_size=5)
    faults = Sampled(seed=1, layer_type=["ReLU"])
    given = campaign.run(faults, protect="ranger", protect_layers=["ReLU"], calibration_set=loader)
    assert given.facts["protection"]["layers"] == ["relu", "relu (2nd call)"]
    with pytest.raises(BadInput, match="calibration_set: expected a data set"):
        campaign.run(faults, protect="ranger")
    with pytest.raises(BadInput, match=r"protect \(--protect\): expected relu6, clamp"):
        campaign.run(faults, protect="steel")
    with pytest.raises(BadInput, match=r"protect_layers \(--protect-layers\): the model has no Nothing"):
        campaign.run(faults, protect="nan", protect_layers=["Nothing"])
    assert str(tiny) == text
    assert tiny.training
    assert not tiny._forward_pre_hooks


@pytest.mark.parametrize("target", ["neuron", "weight"])
@pytest.mark.parametrize("name", ["relu6", "ranger", "ranger-channel", "clip", "nan+ranger"])
def test_proofs_hold_under_a_protection(
    name: str, target: Any, run_script: RunScript, few_digits: FewDigits, tmp_path: Path
) -> None:
    few_digits(60)
    script = "main.py" if target == "neuron" else "weight.py"
    common = ("--dataset=digits", "--seed=3", f"--protect={name}", "--repeats=2")
    rates = []
    for prove in ((), ("--prove", "--audit=0.2")):
        done = run_script(script, *common, *prove, f"--output-path={tmp_path / str(len(prove))}")
        assert done.code == 0, done.err
        rates.append([line for line in done.out.splitlines() if line.startswith("Layer #")])
    assert rates[0] == rates[1]


def test_nothing_is_proved_across_a_jump() -> None:
    """Values near each other may end far apart behind a guard that sets values to 0."""
    images = digits.load("test").tensors[0][:3]
    constants = {}
    for name in ("ranger", "ranger-channel", "relu6", "clip", "nan"):
        model = trained_digits().eval()
        protect(model, images, protect=name)
        injector = Injector(model, 3, images)
        program = Program(injector.original_model, injector.modules, injector.layers, images)
        bounds = Constants(program, images)
        constants[name] = [bounds.onward(step.node).whole for step in program.steps if step.layer is not None]
        assert constants[name][-2] < INF, "behind the last guard, all is as it was"
        assert all(c < INF for c in constants[name]) == (name in ("ranger", "ranger-channel", "relu6"))
        assert (constants[name][0] == INF) == (name in ("clip", "nan"))
