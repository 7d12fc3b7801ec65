"""The shipped data set, the shipped weights, and the script that made them."""

import hashlib
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import Tensor, nn

from bitflip.data import digits, train_digits

# How many of the 600 test images the shipped weights get right; one more or less is another machine's rounding.
CORRECT = 598
TEST_PART_SHA256 = "dbb9d513eccdbe84a0d678401ec6b98071bdda96b3c30fdf68f20bd3f630952a"


@pytest.fixture(scope="module")
def model() -> nn.Module:
    model = digits.build()
    model.load_state_dict(torch.load(digits.WEIGHTS, map_location="cpu", weights_only=True))
    return model.eval()


def scans(part: digits.Part) -> list[bytes]:
    """The pixels of every image of a part at its own 8x8 size, in a form that can be compared and counted."""
    images, _ = digits.load(part, img_size=8, channels=1).tensors
    return [image.numpy().tobytes() for image in images]


# --- data -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("part", "count"), [("train", 1197), ("test", 600)])
def test_load_gives_images_and_labels(part: digits.Part, count: int) -> None:
    images, labels = digits.load(part).tensors
    assert images.shape == (count, 3, 32, 32)
    assert images.dtype == torch.float32
    assert images.is_contiguous()
    assert labels.shape == (count,)
    assert labels.dtype == torch.int64
    assert set(labels.tolist()) == set(range(10))


def test_split_divides_all_images_into_disjoint_parts() -> None:
    from sklearn.datasets import load_digits

    labels = load_digits().target
    parts = digits.split(labels)
    train, test = set(parts["train"].tolist()), set(parts["test"].tolist())
    assert len(test) >= 500
    assert not train & test
    assert train | test == set(range(len(labels)))
    assert set(Counter(labels[parts["test"]].tolist()).values()) == {digits.TEST_PER_CLASS}


def test_no_test_image_is_in_the_train_part() -> None:
    train, test = scans("train"), scans("test")
    assert not set(train) & set(test)
    assert len(set(train) | set(test)) == 1797  # nothing is lost and nothing comes twice


def test_split_is_the_one_that_the_weights_were_trained_with() -> None:
    # Under any other split the test part would hold images that the shipped weights have seen.
    from sklearn.datasets import load_digits

    test = digits.split(load_digits().target)["test"]
    assert hashlib.sha256(test.astype("<i8").tobytes()).hexdigest() == TEST_PART_SHA256


@pytest.mark.parametrize("part", ["train", "test"])
def test_load_gives_the_same_bytes_each_time(part: digits.Part) -> None:
    torch.manual_seed(1)
    first = digits.load(part).tensors
    torch.manual_seed(2)
    second = digits.load(part).tensors
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_load_leaves_the_random_state_alone() -> None:
    before = torch.get_rng_state()
    digits.load("test")
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("img_size", [8, 32, 45], ids="size{}".format)
@pytest.mark.parametrize("channels", [1, 3], ids="channels{}".format)
def test_load_honours_size_and_channels(img_size: int, channels: int) -> None:
    images, _ = digits.load("test", img_size, channels).tensors
    assert images.shape == (600, channels, img_size, img_size)
    assert all(torch.equal(images[:, channel], images[:, 0]) for channel in range(channels))


def test_pixels_are_scaled_then_normalised() -> None:
    images, _ = digits.load("train", img_size=8, channels=1).tensors
    # The constants have four digits, which bounds how far from 0 and 1 the outcome can be.
    assert images.mean().item() == pytest.approx(0, abs=2e-4)
    assert images.std().item() == pytest.approx(1, abs=2e-4)
    raw = (images * digits.STD + digits.MEAN) * 16
    torch.testing.assert_close(raw, raw.round().clamp(0, 16), rtol=0, atol=1e-4)


def test_unknown_part_is_refused() -> None:
    with pytest.raises(ValueError, match="expected one of train, test, got 'val'"):
        digits.load(cast(digits.Part, "val"))


@pytest.mark.parametrize(("img_size", "channels"), [(0, 3), (32, 0)], ids=["size", "channels"])
def test_empty_images_are_refused(img_size: int, channels: int) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        digits.load("test", img_size, channels)


def test_scans_are_those_of_scikit_learn_with_its_file_and_without(monkeypatch: pytest.MonkeyPatch) -> None:
    from sklearn.datasets import load_digits

    raw, labels = load_digits(return_X_y=True)
    read = digits.load("train", img_size=8, channels=1).tensors
    assert (read[0].shape, digits.load("test").tensors[0].shape) == ((len(raw) - 600, 1, 8, 8), (600, 3, 32, 32))
    expected = torch.from_numpy(raw[digits.split(labels)["train"]]).float().view(-1, 1, 8, 8)
    assert torch.equal(read[0], (expected / 16 - digits.MEAN) / digits.STD)
    assert read[1].tolist() == labels[digits.split(labels)["train"]].tolist()
    monkeypatch.setattr(digits, "_SCANS", Path("moved.csv.gz"))
    asked = digits.load("train", img_size=8, channels=1).tensors
    assert all(torch.equal(a, b) for a, b in zip(read, asked, strict=True))


def test_a_run_imports_nothing_that_is_slow_and_not_needed(tmp_path: Path) -> None:
    code = (
        "import sys, bitflip.data.digits\n"
        "early = 'sklearn' in sys.modules\n"
        "from bitflip.commands.entry import main\n"
        "code = main('neuron', '', sys.argv[1:])\n"
        "slow = {'sklearn', 'torchvision', 'torch._dynamo', 'pandas', 'matplotlib', 'ray'} & sys.modules.keys()\n"
        "sys.exit(f'imported: {slow}' if early or slow else code)\n"
    )
    arguments = ["--dataset=digits", "--layer-num=1", "--no-plots", f"--output-path={tmp_path}"]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], cwd=digits.WEIGHTS.parents[2], capture_output=True, text=True
    )
    assert (done.returncode, done.stderr) == (0, "")


# --- network and weights ----------------------------------------------------------------------------------------------


def test_weights_file_is_small_enough_to_ship() -> None:
    assert digits.WEIGHTS.stat().st_size < 1_000_000


def test_weights_are_finite_float32(model: nn.Module) -> None:
    for name, value in model.state_dict().items():
        if not name.endswith("num_batches_tracked"):
            assert value.dtype == torch.float32, name
            assert value.isfinite().all(), name


def test_shipped_weights_classify_the_test_part(model: nn.Module) -> None:
    images, labels = digits.load("test").tensors
    correct = train_digits.count_correct(model, images, labels)
    assert correct >= 0.98 * len(labels)
    assert abs(correct - CORRECT) <= 1


def test_layers_are_those_of_a_vgg_with_batch_normalisation(model: nn.Module) -> None:
    block = ["Conv2d", "BatchNorm2d", "ReLU"]
    leaves = [type(module).__name__ for module in model.modules() if not list(module.children())]
    assert leaves == [
        *block, "MaxPool2d", *block, "MaxPool2d", *block, *block, "MaxPool2d", *block, "MaxPool2d",
        "Linear", "ReLU", "Dropout", "Linear",
    ]  # fmt: skip


def test_traced_network_gives_the_same_logits(model: nn.Module) -> None:
    images = digits.load("test").tensors[0][:4]
    with torch.no_grad():
        assert torch.equal(torch.fx.symbolic_trace(model)(images), model(images))


@pytest.mark.parametrize("img_size", [16, 28, 64], ids="size{}".format)
def test_other_image_sizes_fail(model: nn.Module, img_size: int) -> None:
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        model(torch.zeros(2, 3, img_size, img_size))


def test_build_honours_the_number_of_classes() -> None:
    assert digits.build(7).eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 7)


# --- training ---------------------------------------------------------------------------------------------------------


def test_script_writes_loadable_weights_and_the_same_ones_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    states: list[dict[str, Tensor]] = []
    for name in ("first.pt", "second.pt"):
        assert train_digits.main(["--epochs", "1", "--seed", "3", "--output", str(tmp_path / name)]) == 0
        states.append(torch.load(tmp_path / name, weights_only=True))
    assert capsys.readouterr().out.count("test accuracy") == 2
    digits.build().load_state_dict(states[0])
    assert [*states[0]] == [*states[1]]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
    assert sorted(path.name for path in tmp_path.iterdir()) == ["first.pt", "second.pt"]


def test_training_sees_the_train_part_only(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    load = digits.load

    def recording_load(part: digits.Part) -> torch.utils.data.TensorDataset:
        asked.append(part)
        return load(part)

    monkeypatch.setattr(digits, "load", recording_load)
    before = torch.get_rng_state()
    assert not train_digits.train(epochs=1, seed=0).training
    assert asked == ["train"]
    assert torch.equal(torch.get_rng_state(), before)


def test_jitter_moves_the_digit_and_keeps_the_paper_blank() -> None:
    torch.manual_seed(0)
    images = digits.load("train").tensors[0][:16]
    moved = train_digits.jitter(images)
    assert moved.shape == images.shape
    assert all(not torch.equal(a, b) for a, b in zip(moved, images, strict=True))
    paper = torch.full_like(images, -digits.MEAN / digits.STD)
    torch.testing.assert_close(train_digits.jitter(paper), paper)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--epochs", "0"], "expected at least 1, got 0"),
        (["--output", "missing/weights.pt"], "expected a file in an existing directory"),
        (["--output", str(digits.WEIGHTS)], "give --overwrite to replace it"),
    ],
    ids=["no-epochs", "no-directory", "shipped-file"],
)
def test_script_refuses_before_training(
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    shipped = digits.WEIGHTS.read_bytes()
    with pytest.raises(SystemExit) as exit_:
        train_digits.main(arguments)
    assert exit_.value.code == 2
    assert message in capsys.readouterr().err
    assert digits.WEIGHTS.read_bytes() == shipped


def test_overwrite_replaces_the_file(tmp_path: Path) -> None:
    output = tmp_path / "weights.pt"
    train_digits.save(digits.build(), output)
    before = output.read_bytes()
    assert train_digits.main(["--epochs", "1", "--output", str(output), "--overwrite"]) == 0
    assert output.read_bytes() != before


def test_failed_save_leaves_the_old_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    output = tmp_path / "weights.pt"
    output.write_bytes(b"old")

    def broken_save(state: dict[str, Tensor], path: Path) -> None:
        path.write_bytes(b"half")
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", broken_save)
    with pytest.raises(OSError, match="disk full"):
        train_digits.save(digits.build(), output)
    assert output.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [output]
