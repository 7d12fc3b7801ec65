"""The networks that the engines are measured on, trained on digits so that they mask faults as real networks do.

    python -m benchmarks.networks vgg11_bn resnet20     # train and keep them, about a minute each on two CPU cores
    python main.py --dataset digits --model-name benchmarks/networks.py:vgg11_bn --weights benchmarks/.cache/vgg11_bn.pt

A network with random weights masks differently: many of its units never fire, or always do.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
import torchvision
from torch import Tensor, nn

CACHE = Path(__file__).with_name(".cache")
BATCH_SIZE = 32
MIN_ACCURACY = 0.97

VGG_CONVOLUTIONS = {  # per stage of 64, 128, 256, 512, 512 channels
    "vgg11_bn": (1, 1, 2, 2, 2),
    "vgg13_bn": (2, 2, 2, 2, 2),
    "vgg16_bn": (2, 2, 3, 3, 3),
    "vgg19_bn": (2, 2, 4, 4, 4),
}


class VGG(nn.Module):
    """A VGG with batch normalisation for 32x32 images, laid out as chenyaofo/pytorch-cifar-models lays it out.

    Takes images (B, 3, 32, 32) and returns logits (B, num_classes).
    """

    def __init__(self, convolutions: tuple[int, ...], num_classes: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        channels = 3
        for count, width in zip(convolutions, (64, 128, 256, 512, 512), strict=True):
            for _ in range(count):
                layers += [nn.Conv2d(channels, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(inplace=True)]
                channels = width
            layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers)
        self.classifier = nn.Sequential(
            nn.Linear(512, 512),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(512, 512),
            nn.ReLU(inplace=True),
            nn.Dropout(),
            nn.Linear(512, num_classes),
        )
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (B, num_classes)."""
        logits: Tensor = self.classifier(torch.flatten(self.features(images), 1))
        return logits


class Block(nn.Module):
    """Two 3x3 convolutions beside a shortcut without parameters; one ReLU, called twice.

    The shortcut is option A of the paper: every ``stride``-th pixel, and zeros for the channels that are new.
    """

    def __init__(self, channels_in: int, channels_out: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, stride, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels_out)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(channels_out)
        self.relu = nn.ReLU(inplace=True)
        self.stride = stride
        self.new_channels = channels_out - channels_in

    def forward(self, x: Tensor) -> Tensor:
        """(B, channels_in, H, W) -> (B, channels_out, H / stride, W / stride)."""
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        if self.stride > 1:
            half = self.new_channels // 2
            x = nn.functional.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, half, self.new_channels - half))
        y = y + x
        out: Tensor = self.relu(y)
        return out


class ResNet(nn.Module):
    """The ResNet for 32x32 images of K. He et al., "Deep Residual Learning for Image Recognition", section 4.2.

    Takes images (B, 3, 32, 32) and returns logits (B, num_classes). Its depth is 6 * ``blocks`` + 2.
    """

    def __init__(self, blocks: int, num_classes: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        stages: list[nn.Module] = []
        channels = 16
        for width in (16, 32, 64):
            for _ in range(blocks):
                stages.append(Block(channels, width, stride=width // channels))
                channels = width
        self.blocks = nn.Sequential(*stages)
        self.avgpool = nn.AdaptiveAvgPool2d(1)
        self.fc = nn.Linear(64, num_classes)
        _initialise(self)

    def forward(self, images: Tensor) -> Tensor:
        """Return the logits, (B, num_classes)."""
        x = self.blocks(self.relu(self.bn1(self.conv1(images))))
        logits: Tensor = self.fc(torch.flatten(self.avgpool(x), 1))
        return logits


def _initialise(model: nn.Module) -> None:
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def vgg11_bn(num_classes: int = 10) -> nn.Module:
    """Eight convolutions."""
    return VGG(VGG_CONVOLUTIONS["vgg11_bn"], num_classes)


def vgg13_bn(num_classes: int = 10) -> nn.Module:
    """Ten convolutions."""
    return VGG(VGG_CONVOLUTIONS["vgg13_bn"], num_classes)


def vgg16_bn(num_classes: int = 10) -> nn.Module:
    """Thirteen convolutions."""
    return VGG(VGG_CONVOLUTIONS["vgg16_bn"], num_classes)


def vgg19_bn(num_classes: int = 10) -> nn.Module:
    """Sixteen convolutions."""
    return VGG(VGG_CONVOLUTIONS["vgg19_bn"], num_classes)


def resnet20(num_classes: int = 10) -> nn.Module:
    """Three stages of three blocks."""
    return ResNet(3, num_classes)


def resnet32(num_classes: int = 10) -> nn.Module:
    """Three stages of five blocks."""
    return ResNet(5, num_classes)


def resnet44(num_classes: int = 10) -> nn.Module:
    """Three stages of seven blocks."""
    return ResNet(7, num_classes)


def resnet50(num_classes: int = 1000) -> nn.Module:
    """Torchvision's ResNet-50 for 224x224 images, with random weights, the same each time."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        model: nn.Module = torchvision.models.resnet50(weights=None, num_classes=num_classes)
    return model


TRAINABLE: dict[str, Callable[[], nn.Module]] = {
    f.__name__: f for f in (vgg11_bn, vgg13_bn, vgg16_bn, vgg19_bn, resnet20, resnet32, resnet44)
}
IMG_SIZE = {"resnet50": 224}  # of random images; the others take digits
EPOCHS = {"vgg": 5, "resnet": 8}
LEARNING_RATE = {"vgg": 1e-3, "resnet": 4e-3}  # with SGD at 0.05, VGG-19-BN needs many more epochs


def build(name: str, device: torch.device) -> nn.Module:
    """Any network by name, in eval mode on ``device``."""
    if name in TRAINABLE:
        return trained(name, device)
    if name == "digits_vgg":
        from bitflip.data import digits  # here, so that main.py can load this file alone

        model = digits.build()
        model.load_state_dict(torch.load(digits.WEIGHTS, map_location="cpu", weights_only=True))
    else:
        model = resnet50()
    return model.eval().requires_grad_(False).to(device)


def trained(name: str, device: torch.device) -> nn.Module:
    """The network in eval mode on ``device``; trained on the first call, which takes about a minute, and then kept.

    Raises:
        RuntimeError: if the training fails to reach ``MIN_ACCURACY`` on the test part.
    """
    model = TRAINABLE[name]()
    model.load_state_dict(torch.load(weights(name, device), map_location="cpu", weights_only=True))
    return model.eval().requires_grad_(False).to(device)


def weights(name: str, device: torch.device) -> Path:
    """The file with the state dict of a trained network; see :func:`trained`."""
    path = CACHE / f"{name}.pt"
    if not path.exists():
        from bitflip.data.train_digits import save  # here, so that main.py can load this file alone

        start = time.perf_counter()
        model, accuracy = _train(name, device)
        seconds = time.perf_counter() - start
        print(f"trained {name} in {seconds:.0f} s: {accuracy:.2%} of the digits test part", file=sys.stderr)
        if accuracy < MIN_ACCURACY:
            raise RuntimeError(f"{name}: expected a test accuracy of at least {MIN_ACCURACY:.0%}, got {accuracy:.2%}")
        CACHE.mkdir(exist_ok=True)
        save(model.cpu(), path)
    return path


def _train(name: str, device: torch.device, seed: int = 0) -> tuple[nn.Module, float]:
    """The trained network in eval mode, and its accuracy on the test part."""
    from bitflip.data import digits, train_digits

    images, labels = (tensor.to(device) for tensor in digits.load("train").tensors)
    images = images.contiguous(memory_format=torch.channels_last)  # faster on a CPU
    family = next(family for family in EPOCHS if name.startswith(family))
    epochs, rate = EPOCHS[family], LEARNING_RATE[family]
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = TRAINABLE[name]().to(device).train()
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        steps = epochs * math.ceil(len(labels) / BATCH_SIZE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=rate, total_steps=steps)
        for _ in range(epochs):
            for batch in torch.split(torch.randperm(len(labels)).to(device), BATCH_SIZE):
                loss = nn.functional.cross_entropy(model(images[batch]), labels[batch])
                optimizer.zero_grad()
                loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it unannotated
                optimizer.step()
                schedule.step()
    model.eval()
    images, labels = (tensor.to(device) for tensor in digits.load("test").tensors)
    return model, train_digits.count_correct(model, images, labels) / len(labels)


if __name__ == "__main__":
    for wanted in sys.argv[1:] or TRAINABLE:
        weights(wanted, torch.device("cuda" if torch.cuda.is_available() else "cpu"))
