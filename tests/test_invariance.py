"""A row has the same bits in any company, in both engines, whatever a kernel does."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from conftest import DEVICE, FewDigits, RunScript, TinyNet, random_images, scatter
from torch import Tensor, nn
from torch.nn import functional as F

from bitflip import engines
from bitflip.campaign.executor import portions
from bitflip.data import digits
from bitflip.engines import invariance, kernels, rows, verdicts
from bitflip.engines.agreement import differing, record
from bitflip.engines.assumptions import uneven
from bitflip.engines.injection import Injector, WithInput
from bitflip.engines.invariance import Invariant
from bitflip.engines.pool import Budget
from bitflip.engines.probes import Like, cancelling
from bitflip.engines.reference import Reference
from bitflip.engines.verdicts import Verdicts
from bitflip.engines.wave import Wave
from bitflip.faults.flips import Flips, TargetKind, neuron_flips, parameter_flip
from bitflip.network import bits
from bitflip.network.devices import Placement
from bitflip.network.layers import Target, targets

aten = torch.ops.aten
CPU = torch.device("cpu")
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16], ids=["f32", "f64", "bf16"])


@pytest.fixture(params=[1, 2], ids=["one thread", "two threads"])
def threads(request: pytest.FixtureRequest) -> Iterator[int]:
    """With one thread and with two."""
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


# --- the operations of this machine ---


def weights(*shape: int) -> Tensor:
    return random_images(*shape, seed=7).to(DEVICE)


def convolution(out: int, channels: int, kernel: int, **options: Any) -> Callable[[Tensor], Tensor]:
    of_group = channels // options.get("groups", 1)
    weight = weights(out, of_group, kernel, kernel).contiguous(memory_format=torch.channels_last)
    return lambda x: F.conv2d(x, weight.to(x.dtype), weights(out).to(x.dtype), **options)


def linear(inputs: int, outputs: int, *, bias: bool = True) -> Callable[[Tensor], Tensor]:
    weight, offset = weights(outputs, inputs), weights(outputs) if bias else None
    return lambda x: F.linear(x, weight.to(x.dtype), None if offset is None else offset.to(x.dtype))


def attend_under(mask: Callable[[int], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda x: F.scaled_dot_product_attention(x, x, x, mask(len(x)).to(x.dtype))


OPERATIONS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "linear 512 to 128": (linear(512, 128), (512,)),
    "linear 128 to 10": (linear(128, 10), (128,)),
    "linear without bias": (linear(784, 100, bias=False), (784,)),
    "linear on tokens": (linear(32, 96), (17, 32)),
    "linear on a transposed input": (lambda x: linear(17, 5)(x.transpose(1, 2)), (17, 32)),
    "conv 3x3": (convolution(32, 16, 3, padding=1), (16, 8, 8)),
    "conv 3x3 strided": (convolution(32, 16, 3, stride=2), (16, 8, 8)),
    "conv 3x3 of one pixel": (convolution(64, 64, 3, padding=1), (64, 1, 1)),
    "conv depthwise": (convolution(24, 24, 3, padding=1, groups=24), (24, 8, 8)),
    "conv grouped": (convolution(32, 32, 3, padding=1, groups=4), (32, 8, 8)),
    "conv 1x1": (convolution(24, 58, 1), (58, 4, 4)),
    "conv 1x1 of one pixel": (convolution(10, 512, 1), (512, 1, 1)),
    "conv 1d": (lambda x: F.conv1d(x, weights(8, 16, 3).to(x.dtype)), (16, 20)),
    "conv 3d": (lambda x: F.conv3d(x, weights(8, 4, 3, 3, 3).to(x.dtype)), (4, 6, 6, 6)),
    "conv transposed": (lambda x: F.conv_transpose2d(x, weights(16, 8, 3, 3).to(x.dtype), stride=2), (16, 5, 5)),
    "batched product": (lambda x: torch.bmm(x, x.transpose(1, 2)), (17, 32)),
    "batched product of heads": (lambda x: x @ x.transpose(-1, -2), (3, 17, 32)),
    "einsum": (lambda x: torch.einsum("bij,bkj->bik", x, x), (17, 32)),
    "attention": (lambda x: F.scaled_dot_product_attention(x, x, x), (2, 17, 8)),
    "attention with a mask for all": (attend_under(lambda n: weights(1, 1, 17, 17).expand(1, 2, 17, 17)), (2, 17, 8)),
    "attention with a mask for each": (attend_under(lambda n: weights(1, 1, 17, 17).expand(n, 2, 17, 17)), (2, 17, 8)),
    "batched product and sum": (
        lambda x: torch.baddbmm(weights(17, 1).to(x.dtype).expand(len(x), 17, 17), x, x.mT),
        (17, 32),
    ),
    "product and sum": (
        lambda x: torch.addmm(weights(1, 9).to(x.dtype).expand(len(x), 9), x, weights(32, 9).to(x.dtype)),
        (32,),
    ),
    "layer norm": (lambda x: F.layer_norm(x, (32,)), (17, 32)),
    "group norm": (lambda x: F.group_norm(x, 4), (16, 5, 5)),
    "softmax": (lambda x: F.softmax(x, -1), (17, 10)),
    "softmax of channels": (lambda x: F.softmax(x, 1), (10, 5)),
    "mean of pixels": (lambda x: x.mean((2, 3)), (16, 7, 7)),
    "mean of tokens": (lambda x: x.mean(1), (17, 32)),
    "gelu": (F.gelu, (7,)),
    "gelu of maps": (F.gelu, (16, 5, 5)),
    "sigmoid": (torch.sigmoid, (7,)),
    "silu": (F.silu, (16, 5, 5)),
    "silu in place": (lambda x: F.silu(x.clone(), inplace=True), (16, 5, 5)),
    "elu": (F.elu, (7,)),
    "softplus": (F.softplus, (7,)),
    "mish": (F.mish, (16, 5, 5)),
    "hardswish": (F.hardswish, (7,)),
    "power": (lambda x: x.abs() ** 0.3, (7,)),
    "tanh": (torch.tanh, (7,)),
    "rsqrt": (lambda x: x.abs().rsqrt(), (16, 5, 5)),
}
COUNTS = (1, 2, 3, 5, 6, 7, 9, 13, 16, 31, 48, 49, 100)


@DTYPES
@pytest.mark.parametrize("name", OPERATIONS)
def test_rows_have_the_same_bits_in_any_company(name: str, dtype: torch.dtype, threads: int) -> None:
    if name == "linear on a transposed input" and torch.__version__ < "2.12":
        pytest.xfail("one image alone goes by another kernel: such models are run one image at a time")
    operation, shape = OPERATIONS[name]
    images = random_images(130, *shape).to(DEVICE, dtype)
    if images.dim() == 4:
        images = images.contiguous(memory_format=torch.channels_last)
    with Invariant(), torch.no_grad():
        whole = operation(images.clone())
        for count in COUNTS:
            for start in (0, 130 - count):
                some = operation(images[start : start + count].clone())
                assert same_bits(some, whole[start : start + count]), f"{count} rows from {start}"


@pytest.mark.parametrize("size", [8, 2], ids=["8x8", "2x2"])
def test_a_convolution_keeps_pixels_apart(size: int, monkeypatch: pytest.MonkeyPatch, no_verdicts: None) -> None:
    """A kernel that transforms maps, as cuDNN's do for many rows, is not used: it spreads one huge value over a map."""
    real, transformed = kernels.execute, []

    def execute(op: Any, args: Any, kwargs: dict[str, Any]) -> Any:
        if op is not aten.convolution.default or len(args[0]) < 200:
            return real(op, args, kwargs)
        transformed.append(len(args[0]))
        whole = size + 2
        image = torch.fft.rfft2(F.pad(args[0], (1, 1, 1, 1)))
        kernel = torch.fft.rfft2(args[1], s=(whole, whole)).conj()
        return torch.fft.irfft2(torch.einsum("bchw,ochw->bohw", image, kernel), s=(whole, whole))[..., :size, :size]

    weight, images = random_images(4, 3, 3, 3), random_images(300, 3, size, size)
    expected = F.conv2d(images, weight, padding=1)
    monkeypatch.setattr(kernels, "execute", execute)
    monkeypatch.setattr(rows, "transforms", lambda device: True)
    monkeypatch.setattr(rows, "TILES", rows.TILES_ON_A_GPU)
    with Invariant():
        got = F.conv2d(images, weight, padding=1)
        images[7, :, 0, 0] = 1e30
        struck = F.conv2d(images, weight, padding=1)
    assert {256, 512} <= set(transformed), "it was tried, and let go"
    torch.testing.assert_close(got, expected)
    changed = (struck != got).any(dim=1)
    assert changed.sum() == 4
    assert changed[7, :2, :2].all()


def test_probes_of_a_transposed_convolution_cancel() -> None:
    call = [random_images(1, 16, 5, 5), random_images(16, 4, 3, 3), None, [2, 2], [1, 1], [1, 1], True, [0, 0], 2]
    like = [Like(value, i == 0) if isinstance(value, Tensor) else value for i, value in enumerate(call)]
    image, weight = cancelling(aten.convolution.default, like, torch.Generator().manual_seed(0))[:2]
    found = [
        F.conv_transpose2d(x[None].double(), w.double(), stride=2, padding=1, groups=2)
        for x, w in ((image, weight), (image.abs(), weight.abs()))
    ]
    assert found[0].abs().max() < 1e-12 < 1 < found[1].min()


def same_bits(a: Tensor, b: Tensor) -> bool:
    return torch.equal(bits.as_integers(a.contiguous()), bits.as_integers(b.contiguous()))


# --- kernels that round by the number of rows ---


def below_16(rows: int) -> Tensor:
    return torch.full((rows,), rows < 16)


def period_6(rows: int) -> Tensor:
    return torch.full((rows,), rows % 6 in (1, 2, 3) or rows > 72)


def always(rows: int) -> Tensor:
    """Another way for every number of rows but one: then it is that way which counts, and one row is filled up."""
    return torch.full((rows,), rows > 1)


def second_thread(rows: int) -> Tensor:
    """The second half of the rows is rounded otherwise."""
    return torch.arange(rows) >= (rows + 1) // 2


KERNELS = pytest.mark.parametrize("rounds", [below_16, period_6, always, second_thread])


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, no_verdicts: None) -> Callable[..., None]:
    """Let rows of an operation be rounded otherwise, those of which a function of their number says so."""

    def replace(rounds: Callable[[int], Tensor], *replaced: Any) -> None:
        real = kernels.execute

        def execute(op: Any, args: Any, kwargs: Any) -> Any:
            done = real(op, args, kwargs)
            if op not in replaced:
                return done
            out: Tensor = done
            odd = rounds(len(out)).reshape(-1, *[1] * (out.dim() - 1)).to(out.device)
            return torch.where(odd, out * (1 + 4 * torch.finfo(out.dtype).eps), out)

        monkeypatch.setattr(kernels, "execute", execute)

    return replace


@KERNELS
@pytest.mark.parametrize("op", [aten.addmm.default, aten.convolution.default], ids=str)
def test_a_kernel_that_rounds_by_the_number_of_rows_is_noticed(
    op: Any, rounds: Callable[[int], Tensor], kernel: Callable[..., None]
) -> None:
    kernel(rounds, op)
    name = "linear 128 to 10" if op is aten.addmm.default else "conv 3x3"
    operation, shape = OPERATIONS[name]
    images = random_images(130, *shape).to(DEVICE)
    with torch.no_grad(), Invariant():
        parts = [operation(images[:count]) for count in COUNTS]
        whole = operation(images)
    assert all(same_bits(part, whole[: len(part)]) for part in parts)
    (form,) = (form for key, form in invariance._forms.items() if key[0] is verdicts.of(DEVICE) and key[1] is op)
    cut = [form.parts(count) for count in COUNTS]
    assert any(cut), "nothing was noticed"
    assert form.tile == (1 if rounds is second_thread else 48 if DEVICE == CPU else 2048)


@KERNELS
@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_engines_agree_whatever_a_kernel_does(
    target: TargetKind, rounds: Callable[[int], Tensor], kernel: Callable[..., None], tiny: nn.Module
) -> None:
    kernel(rounds, aten.addmm.default, aten.convolution.default)
    model, images = tiny.requires_grad_(False), random_images(7, 3, 8, 8)
    injector = Injector(WithInput(model) if target == "neuron" else model, 7, torch.zeros(1, 3, 8, 8))
    flips = sampled(injector, target, 7)
    engine, note = engines.build("wave", injector, images)
    assert isinstance(engine, Wave), note
    engine.budget = Budget(rows=5, bytes=1 << 20)
    expected, _ = record(Reference(injector), images, flips)
    got, _ = record(engine, images, flips)
    assert not differing(expected, got).any()
    assert 0 < int((expected.effects == 0).sum()) < expected.effects.numel(), "some are masked, some are not"


def sampled(injector: Injector, target: TargetKind, images: int) -> list[Flips]:
    items = targets([Target(i, layer) for i, layer in enumerate(injector.everything)], target, None)
    if target == "neuron":
        return [neuron_flips(3, item.layer, 0, images, repeat=r) for item in items for r in range(4)]
    return [parameter_flip(3, it.layer, 0, repeat=r, parameter=it.parameter) for it in items for r in range(8)]


class Sums(nn.Module):
    """Holds an operation that nothing is known about."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(12, 5)
        self.odd = Cumulative()

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.linear(self.odd(x.flatten(1)))
        return out


class Cumulative(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.cumsum(1)


@pytest.mark.parametrize("target", ["neuron", "weight"])
def test_what_can_not_be_made_even_runs_one_image_at_a_time(
    target: TargetKind, kernel: Callable[..., None], tiny: nn.Module
) -> None:
    kernel(always, aten.cumsum.default)
    model, images = scatter(Sums()).eval().requires_grad_(False), random_images(6, 3, 2, 2)
    injector = Injector(model, 6, torch.zeros(1, 3, 2, 2))
    engine, note = engines.build("wave", injector, images)
    assert note == (
        "odd rounds an image otherwise when others are run with it: images are run one at a time, by the "
        "reference engine"
    )
    flips = sampled(injector, target, 6)
    placement = Placement(CPU, torch.float32)
    found = portions(engine, placement).run(images, torch.zeros(6, dtype=torch.int64), flips, 0, lambda _: None)
    with torch.no_grad():
        alone = torch.cat([model(image[None]) for image in images])
    assert torch.equal(found.clean_top1, alone.argmax(1))


class Attends(nn.Module):
    """Its attention module calls another kernel for one image than for several, which may round otherwise."""

    def __init__(self, *, batch_first: bool) -> None:
        super().__init__()
        self.batch_first = batch_first
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first)
        self.head = nn.Linear(8, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = x.flatten(2).transpose(1, 2)  # (B, 17, 8)
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        tokens = self.attention(tokens, tokens, tokens)[0]
        out: Tensor = self.head(tokens.mean(1 if self.batch_first else 0))
        return out


@DTYPES
@pytest.mark.parametrize("batch_first", [True, False], ids=["batch first", "batch second"])
@pytest.mark.parametrize("engine", ["wave", "reference"])
def test_attention_is_the_same_in_any_company(
    engine: Literal["wave", "reference"], batch_first: bool, dtype: torch.dtype, threads: int
) -> None:
    """By kernels that are made even, or one image at a time."""
    placement = Placement(DEVICE, dtype)
    model = placement.model(scatter(Attends(batch_first=batch_first)).to(dtype).eval().requires_grad_(False))
    images, labels = placement.inputs(random_images(6, 8, 1, 17)), torch.zeros(6, dtype=torch.int64)
    injector = Injector(WithInput(model), 6, torch.zeros(1, 8, 1, 17))
    chosen, _ = engines.build(engine, injector, images)
    run = portions(chosen, placement).run
    items = [layer for layer in injector.layers if layer.per_image]

    def flips(first: int, count: int) -> list[Flips]:
        return [neuron_flips(3, layer, first, count, repeat=r) for layer in items for r in range(4)]

    whole = run(images, labels, flips(0, 6), 0, lambda _: None)
    for start, stop in ((0, 1), (1, 6), (2, 4)):
        some = run(images[start:stop], labels[start:stop], flips(start, stop - start), start, lambda _: None)
        for name in ("effects", "change", "top1"):
            assert torch.equal(getattr(some, name), getattr(whole, name)[:, start:stop])


def test_an_even_model_is_even(tiny: nn.Module) -> None:
    assert uneven(Injector(tiny, 5, torch.zeros(1, 3, 8, 8)), random_images(5, 3, 8, 8)) is None


def test_what_mixes_images_is_no_question_of_rounding() -> None:
    model = nn.Sequential(nn.Conv2d(3, 5, 1), nn.BatchNorm2d(5, track_running_stats=False), nn.Flatten()).eval()
    assert uneven(Injector(model, 5, torch.zeros(1, 3, 2, 2)), random_images(5, 3, 2, 2)) is None


# --- whole networks, whole runs ---


@pytest.mark.parametrize("target", ["neuron", "weight"])
@DTYPES
def test_engines_agree_on_digits(target: TargetKind, dtype: torch.dtype, threads: int) -> None:
    placement = Placement(DEVICE, dtype)
    model = digits.build()
    model.load_state_dict(torch.load(digits.WEIGHTS, weights_only=True))
    model = placement.model(model.to(dtype).eval().requires_grad_(False))
    images = placement.inputs(digits.load("test").tensors[0][:7])
    injector = Injector(WithInput(model) if target == "neuron" else model, 7, torch.zeros(1, 3, 32, 32))
    engine, note = engines.build("wave", injector, images)
    assert note is None
    flips = sampled(injector, target, 7)
    expected, _ = record(Reference(injector), images, flips)
    got, _ = record(engine, images, flips)
    assert not differing(expected, got).any()


@pytest.mark.parametrize("engine", ["wave", "reference"])
def test_batch_size_changes_no_byte(
    engine: str, run_script: RunScript, few_digits: FewDigits, tmp_path: Path, threads: int
) -> None:
    """Of a run of neuron faults: masked faults, values in the log and the table, changes of probabilities."""
    few_digits(40)
    written = []
    for size in (1, 7, 64, 256):
        folder = tmp_path / str(size)
        flags = ["--dataset=digits", "--no-plots", "--seed=3", f"--batch-size={size}", f"--engine={engine}"]
        flags += [f"--device={DEVICE}"]
        flags += ["--layer-num=0,1,6,17,18,23", "--fault-table", f"--output-path={folder}"]
        done = run_script("main.py", *flags)
        assert done.code == 0, done.err
        written.append({path.name: path.read_bytes() for path in folder.iterdir() if path.suffix == ".csv"})
        facts = json.loads((folder / "digits_vgg_digits_3.json").read_text())
        if DEVICE == CPU:
            assert facts["device"].endswith(f"{threads} threads)")
            assert torch.backends.cpu.get_cpu_capability() in facts["device"]
    assert len(written[0]) == 2
    assert all(files == written[0] for files in written)


# --- verdicts ---


def test_verdicts_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "kernels.json"
    first = Verdicts(path)
    assert first.find("product", "48", lambda: True)
    first.save()
    assert Verdicts(path).find("product", "48", lambda: pytest.fail("it is known")) is True


def test_what_other_processes_found_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    one, other = Verdicts(path), Verdicts(path)
    one.find("product", "1", lambda: False)
    other.find("product", "2", lambda: True)
    one.save()
    other.save()
    assert json.loads(path.read_text()) == {"product": {"1": False, "2": True}}


@pytest.mark.parametrize("content", ["", "{", "[]", '{"product": 3}', '{"product": {"1": "x"}}', "\udcff"])
def test_damaged_verdicts_are_found_again(content: str, tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    path.write_bytes(content.encode("utf-8", "surrogateescape"))
    assert Verdicts(path).find("product", "1", lambda: True) is True


def test_a_folder_that_can_not_be_written_is_done_without(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    one = Verdicts(tmp_path / "file" / "kernels.json")
    one.find("product", "1", lambda: True)
    one.save()
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_does_not_fit_the_memory_is_not_kept(tmp_path: Path) -> None:
    path = tmp_path / "kernels.json"
    one = Verdicts(path)

    def lacks() -> bool:
        raise torch.OutOfMemoryError("out of memory")

    assert one.holds("product", "1", lacks) is False
    one.save()
    assert Verdicts(path).holds("product", "1", lambda: True) is True


@pytest.mark.parametrize("name", ["MKL_CBWR", "ONEDNN_MAX_CPU_ISA", "OMP_NUM_THREADS"])
def test_other_kernels_have_other_verdicts(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    before = verdicts._kept.__wrapped__("cpu", 1, ()).path
    monkeypatch.setenv(name, "something")
    after = verdicts._kept.__wrapped__("cpu", 1, ()).path
    assert before != after
    assert verdicts._kept.__wrapped__("cpu", 2, ()).path not in (before, after)


def test_models_of_the_tests_are_what_they_say() -> None:
    """The stand-in networks reach the kernels that are replaced."""
    mode = Invariant()
    with torch.no_grad(), mode:
        scatter(TinyNet()).eval()(random_images(2, 3, 8, 8))
    assert mode.met == 3  # two convolutions and a linear layer
