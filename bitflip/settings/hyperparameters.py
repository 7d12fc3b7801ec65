"""Hyperparameters: what can be asked of a run, with defaults and valid values, as one plain value.

This module imports nothing slow, so that ``--help`` answers at once.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import AliasChoices, ConfigDict, Field, ValidationError

from bitflip.settings import protection, values
from bitflip.settings.protection import Protection
from bitflip.settings.roles import ASIDE, LOG, PLACE, RESULT, SAMPLING, SOURCE, Role
from bitflip.settings.values import MAX_SEED, Read

DatasetName = Literal["cifar10", "cifar100", "imagenet", "digits", "folder"]
Precision = Literal["ieee", "tf32"]
Engine = Literal["wave", "reference"]
NumberFormat = Literal["float32", "float64", "float16", "bfloat16", "int8", "float8_e4m3fn", "float8_e5m2"]
NARROW: tuple[NumberFormat, ...] = ("int8", "float8_e4m3fn", "float8_e5m2")  # that no network computes in here
ClassOrder = Literal["text", "numeric"]
BitSampling = Literal["uniform", "importance"]

DEFAULT_MODEL: dict[str, str] = {"digits": "digits_vgg"}
DEFAULT_IMG_SIZE: dict[str, int] = {"imagenet": 224, "folder": 224}
PUBLISHED_SIZE: dict[str, int] = {"inception_v3": 299}  # where it is another one


def _field(default: Any, meaning: str, valid: str, role: Role = RESULT, **kwargs: Any) -> Any:
    """A setting with its meaning (for ``--help``), its valid values (for error messages) and what depends on it."""
    return Field(default, description=meaning, json_schema_extra={"valid": valid, "role": cast("Any", role)}, **kwargs)


class Hyperparameters(Read):
    """Flip one bit per image (neurons) or per batch (weights) in each chosen layer and count misclassifications.

    Every setting is a command line flag and an environment variable of the same name with underscores
    (--batch-size, batch_size); the command line beats the environment, and an empty variable counts as unset.
    """

    model_config = ConfigDict(frozen=True, extra="ignore", populate_by_name=True, protected_namespaces=())

    dataset: DatasetName = _field(
        "cifar10",
        "test set; folder: class folders of your own",
        "one of cifar10, cifar100, imagenet, digits, folder",
    )
    class_order: ClassOrder = _field(
        "text",
        "order of class folders, which gives them their labels: text, as torchvision sorts (0, 1, 10, 2), or numeric "
        "(0, 1, 2, 10)",
        "text or numeric",
    )
    model_name: str | None = _field(
        None,
        "classifier: a model of chenyaofo/pytorch-cifar-models (cifar10, cifar100), of torchvision.models (imagenet, "
        "folder), digits_vgg (digits), of timm as timm:NAME, or your own as FILE.py:factory; default vgg19_bn, for "
        "digits digits_vgg",
        "the name of a model",
    )
    weights: Path | None = _field(
        None, "state dict to load instead of the model's published weights", "the path of a state dict", role=SOURCE
    )
    hub_path: Path | None = _field(
        None,
        "local checkout of chenyaofo/pytorch-cifar-models, to use instead of torch.hub's download",
        "the path of a checkout with a hubconf.py",
        role=SOURCE,
    )
    seed: int = _field(
        -1, "seed of all faults; negative: from the clock", f"a whole number up to {MAX_SEED}", role=PLACE, le=MAX_SEED
    )
    seeds: str | None = _field(
        None,
        "several seeds in one run, on one clean pass, such as 1-30 or 1,5,9-12; instead of seed",
        "different whole numbers from 0, and ranges of them, comma-separated",
        role=Role(unfinished=False, joined="none", sampling=True, planned=False),
    )
    batch_size: int = _field(256, "images per batch", "a whole number of at least 1", role=Role(joined="weight"), ge=1)
    img_size: int | None = _field(
        None,
        "height and width of the input in pixels; default 32, for imagenet and folder 224, there for inception_v3 299",
        "a whole number of at least 1",
        ge=1,
    )
    channels: int = _field(3, "channels of the input", "1 or 3", ge=1, le=3)
    mean: str | None = _field(
        None,
        "mean of each channel (of values from 0 to 1) that is subtracted; default that of the data set, for folder "
        "that of ImageNet",
        "numbers, one for each channel, comma-separated",
    )
    std: str | None = _field(
        None,
        "standard deviation of each channel that is divided by; default like mean",
        "numbers above 0, one for each channel, comma-separated",
    )
    bit_flip_pos: int = _field(
        -1,
        "bit to flip, 0 = sign bit of a float32, 31 = last mantissa bit; negative: a random bit per fault",
        "a bit from 0 to 31 (0 = sign, 31 = last mantissa bit of a float32; up to 63 for your own float64 model), "
        "or a negative number for random bits",
        role=SAMPLING,
        le=63,
    )
    fault: str = _field(
        "flip",
        "kind of fault: flip, stuck0, stuck1, flips:K (K different bits), burst:K (K neighbouring bits), random (all "
        "bits), zero, or value:X",
        "one of flip, stuck0, stuck1, flips:K, burst:K (K from 2 to 64), random, zero, or value:X with a number X, or "
        "its bits such as 0x7fc00000",
        role=SAMPLING,
    )
    bit_error_rate: str | None = _field(
        None,
        "instead of one fault at a time, flip each bit of all chosen layers with this probability; several of them, "
        "such as 1e-8,1e-7,1e-6, on nested patterns, of which repeats are drawn",
        "numbers above 0 and at most 0.5, comma-separated",
        role=SAMPLING,
    )
    by_layer: bool = _field(
        False, "with bit_error_rate, also flip the bits of each layer alone", "true or false", role=SAMPLING
    )
    layer_type: str = _field(
        "all", "torch.nn class names, comma-separated, such as Conv2d,Linear,Identity", "'all' or names", role=SAMPLING
    )
    layer_num: str = _field(
        "all",
        "layer numbers and ranges of them, such as 0-5,12, counted among the layers that layer_type leaves",
        "'all' or whole numbers from 0, and ranges of them such as 0-5, comma-separated",
        role=SAMPLING,
        validation_alias=AliasChoices("layer_num", "layer_nums"),
    )
    bit_sampling: BitSampling = _field(
        "uniform",
        "how random bits are drawn: uniform, or importance, which draws a third of them from the top exponent bit, "
        "where nearly all misclassifications come from, and weights the rates accordingly",
        "uniform or importance",
        role=Role(sampling=True, planned=False),
    )
    margin: float | None = _field(
        None,
        "go on, with further flips per image (batch), until half the width of every layer's confidence interval is at "
        "most so many percentage points",
        "a number above 0 and below 50",
        role=SAMPLING,
        gt=0,
        lt=50,
    )
    confidence: float = _field(0.95, "of all intervals", "a number above 0.5 and below 1, such as 0.95", gt=0.5, lt=1.0)
    parameters: str = _field(
        "weight",
        "parameter tensors that weight faults strike: names such as weight,bias,class_token",
        "'all' or names of parameter tensors, comma-separated",
        role=SAMPLING,
    )
    input_path: Path = _field(Path("/input"), "folder with the data set", "the path of a folder", role=SOURCE)
    output_path: Path = _field(
        Path("/output"),
        "folder for the results",
        "the path of a folder that can be written to",
        role=Role(unfinished=False, joined="none", rerun=False),
    )
    detailed_log: bool = _field(
        False, "also log every misclassification with its value and bits, before and after", "true or false", role=LOG
    )
    fault_table: bool = _field(
        False, "also write a Parquet file with a row for every injection", "true or false", role=LOG
    )
    plots: bool = _field(
        True,
        "end with plots of the rates by layer and by bit",
        "true or false",
        role=Role(unfinished=False, joined="none", planned=False),
    )
    fresh: bool = _field(
        False,
        "start over where an unfinished run could be gone on with, and replace results of a run with other settings",
        "true or false",
        role=ASIDE,
    )
    rerun: Path | None = _field(
        None,
        "the .json of an earlier run, whose settings (but output_path) hold unless the command line says otherwise",
        "the path of a run's .json",
        role=ASIDE,
    )
    device: str = _field(
        "auto", "auto (a GPU when there is one), cpu, cuda or cuda:N", "auto, cpu, cuda or cuda:N", role=PLACE
    )
    ray: str | None = _field(
        None,
        "run on all GPUs (CPUs) of a Ray cluster: auto for the one on this machine, which is started if there is none, "
        "or HOST:PORT; needs pip install ray",
        "auto, or HOST:PORT of a Ray cluster that runs",
        role=ASIDE,
    )
    number_format: NumberFormat | None = _field(
        None,
        "number format of weights and of layers' outputs, whose bits flip: float32, float64, float16, bfloat16, which "
        "the model computes in, or int8, float8_e4m3fn, float8_e5m2, stored so and computed with in float32; default "
        "that of the model",
        "one of float32, float64, float16, bfloat16, int8, float8_e4m3fn, float8_e5m2",
    )
    precision: Precision = _field(
        "ieee",
        "float32 arithmetic: ieee, or tf32, PyTorch's default on CUDA, in which convolutions round to 10 mantissa bits "
        "and so hide flips in the others",
        "ieee or tf32",
    )
    max_images: int | None = _field(
        None,
        "run the first so many images of the test set only, to try something out",
        "a whole number of at least 1",
        ge=1,
    )
    drop_last: bool = _field(False, "leave out the last batch when it is smaller", "true or false")
    repeats: int = _field(
        1,
        "flips per image (neurons) or batch (weights) in each layer",
        "a whole number of at least 1",
        role=Role(sampling=True, planned=False),
        ge=1,
    )
    engine: Engine = _field(
        "wave",
        "wave runs all layers in one sweep; reference, slow and obvious, the whole model per layer",
        "wave or reference",
        role=Role(joined="none"),
    )
    prove: bool = _field(
        False,
        "do not run faults of which a bound shows that they can't change the class: the same misclassifications, "
        "several times faster; masked and benign faults are then counted as one, harmless",
        "true or false",
    )
    audit: float = _field(
        0.0,
        "share of the faults that prove leaves out which are run all the same, to find none that changes a class",
        "a number from 0 to 1",
        role=Role(joined="none"),
        ge=0,
        le=1,
    )
    protect: str | None = _field(
        None,
        "protection of the layers' outputs: relu6, clamp:LOW:HIGH, ranger, ranger-channel, clip, nan, several as "
        "nan+clip, or your own as FILE.py:factory; of weights, ecc:SHARE of their bits",
        protection.VALID,
    )
    protect_layers: str = _field(
        "default",
        "class names of the layers, or blocks of layers, whose outputs are protected; default: activations and max "
        "pooling, for relu6 each ReLU",
        "'default' or class names, comma-separated",
    )
    bounds: Path | None = _field(
        None,
        "bounds for protect, as another run wrote them, instead of measuring them",
        "the path of a file of bounds",
        role=SOURCE,
    )
    calibration_images: Path | None = _field(
        None,
        "folder of images on which the bounds for protect, and the ranges for a number_format of 8 bits, are measured; "
        "default: the training part of the data set",
        "the path of a folder of images",
        role=SOURCE,
    )
    percentile: float = _field(
        100.0,
        "of the values seen in calibration, that the bounds for protect, and the ranges for a number_format of 8 bits, "
        "are; 100: the largest and smallest",
        "a number above 50 and up to 100",
        gt=50,
        le=100,
    )
    pool_mib: int | None = _field(
        None,
        "memory in MiB for the faulty rows of the wave; default 1024, on a GPU a quarter of what is free",
        "a whole number of at least 1",
        role=PLACE,
        ge=1,
    )

    faults: Path | None = _field(
        None,
        "fault list to run instead of sampled faults: a CSV file",
        "the path of a fault list",
        role=Role(unfinished=False, planned=False),
    )
    limit: int | None = _field(
        None,
        "run only so many faults of the list, in proportion from each layer and bit",
        "a whole number of at least 1",
        role=Role(unfinished=False, planned=False),
        ge=1,
    )
    save_faults: Path | None = _field(
        None,
        "file to write the faults of this run to, as a fault list",
        "the path of a file",
        role=Role(unfinished=False, joined="none", planned=False),
    )

    @property
    def values(self) -> dict[str, Any]:
        """All of them by name, as they are written to JSON; a data set of another name than the known ones is one."""
        return self.model_dump(mode="json", warnings=False)

    @property
    def layer_types(self) -> tuple[str, ...] | None:
        """Chosen ``torch.nn`` class names, or None for all."""
        return None if self.layer_type == "all" else tuple(self.layer_type.split(","))

    @property
    def parameter_names(self) -> tuple[str, ...] | None:
        """Names of the chosen parameter tensors, or None for all."""
        return None if self.parameters == "all" else tuple(self.parameters.split(","))

    @property
    def protection(self) -> Protection | None:
        """Of the layers' outputs, or None."""
        return None if self.protect is None else Protection.of(self.protect)

    @property
    def protected_types(self) -> tuple[str, ...] | None:
        """Class names of what is protected, or None for the default."""
        names = tuple(self.protect_layers.split(","))
        return None if "default" in names else names

    @property
    def layer_numbers(self) -> tuple[int, ...] | None:
        """Chosen layer numbers in ascending order, or None for all."""
        return None if self.layer_num == "all" else tuple(int(n) for n in self.layer_num.split(","))

    @property
    def all_seeds(self) -> tuple[int, ...]:
        """The seeds of the run."""
        if self.seeds is None:
            return (self.seed,)
        return tuple(values.numbers_of(self.seeds, values.MAX_SEEDS))

    @property
    def means(self) -> tuple[float, ...] | None:
        """What is subtracted from each channel, or None for the data set's own."""
        return None if self.mean is None else tuple(map(float, self.mean.split(",")))

    @property
    def stds(self) -> tuple[float, ...] | None:
        """What each channel is divided by, or None for the data set's own."""
        return None if self.std is None else tuple(map(float, self.std.split(",")))

    @property
    def bit(self) -> int | None:
        """The bit to flip, counted from the most significant one, or None for a random bit per fault."""
        return None if self.bit_flip_pos < 0 else self.bit_flip_pos

    @property
    def bit_error_rates(self) -> tuple[float, ...]:
        """The probabilities of a flip, ascending; none if there is one fault at a time."""
        return tuple(sorted(map(float, (self.bit_error_rate or "").split(",")))) if self.bit_error_rate else ()

    def resolved(self) -> Hyperparameters:
        """Itself with the values filled in that depend on another setting or on the clock."""
        size = DEFAULT_IMG_SIZE.get(self.dataset, 32)
        if size == DEFAULT_IMG_SIZE["imagenet"]:
            size = PUBLISHED_SIZE.get(self.model_name or "", size)
        return self.model_copy(
            update={
                "model_name": self.model_name or DEFAULT_MODEL.get(self.dataset, "vgg19_bn"),
                "img_size": self.img_size or size,
                # A list needs the seed only for the choice that ``limit`` makes, which has to be the same again.
                "seed": self.seed if self.seed >= 0 else 0 if self.faults else time.time_ns() // 1000 % 2**31,
            }
        )


def role_of(name: str) -> Role:
    """What depends on a setting; an unknown one, of another version, is taken for one that results depend on."""
    field = Hyperparameters.model_fields.get(name)
    extra = None if field is None else field.json_schema_extra
    role = extra["role"] if isinstance(extra, dict) else RESULT
    return cast("Role", role)


def changes_results(name: str, target: str) -> bool:
    """Whether the results of a run with such faults depend on a setting."""
    return role_of(name).joined in ("all", target)


def names(chosen: Callable[[Role], bool]) -> list[str]:
    """The settings whose role is chosen."""
    return [name for name in Hyperparameters.model_fields if chosen(role_of(name))]


def problems(error: ValidationError) -> dict[str, str]:
    """One sentence per setting that has a bad value, by its name."""
    found = {}
    for item in error.errors():
        name = "layer_num" if item["loc"][0] == "layer_nums" else str(item["loc"][0])
        extra = Hyperparameters.model_fields[name].json_schema_extra
        valid = extra["valid"] if isinstance(extra, dict) else ""
        found[name] = f"{name} (--{name.replace('_', '-')}): expected {valid}, got {str(item['input'])!r}"
    return found
