"""Image classifiers of Hugging Face's transformers with random weights, for ``python -m bitflip coverage``.

    python -m bitflip coverage --check --targets 12 benchmarks/hugging_face.py:vit
    python -m bitflip coverage --check --targets 12 $(python -m benchmarks.hugging_face)

They return an object; what a campaign needs are its logits. Their configurations are the default ones with four layers,
where depth is a number.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "BeitConfig": {"num_hidden_layers": 4},
    "ConvNextConfig": {},
    "ConvNextV2Config": {},
    "CvtConfig": {},
    "Data2VecVisionConfig": {"num_hidden_layers": 4},
    "DeiTConfig": {"num_hidden_layers": 4},
    "Dinov2Config": {"num_hidden_layers": 4},
    "EfficientNetConfig": {"width_coefficient": 1.0, "depth_coefficient": 1.0, "image_size": 224, "hidden_dim": 1280},
    "FocalNetConfig": {},
    "LevitConfig": {},
    "MobileNetV1Config": {},
    "MobileNetV2Config": {},
    "MobileViTConfig": {},
    "PoolFormerConfig": {},
    "PvtConfig": {},
    "RegNetConfig": {},
    "ResNetConfig": {},
    "SegformerConfig": {},
    "SwinConfig": {},
    "Swinv2Config": {},
    "ViTConfig": {"num_hidden_layers": 4},
}


class Logits(nn.Module):
    """A classifier that returns an object as one that returns its logits: (B, 3, H, W) -> (B, classes)."""

    def __init__(self, classifier: nn.Module) -> None:
        super().__init__()
        self.classifier = classifier

    def forward(self, x: Tensor) -> Tensor:
        """The logits."""
        logits: Tensor = self.classifier(x).logits
        return logits


def build(configuration: str, classes: int = 1000) -> nn.Module:
    """A classifier of a configuration's name."""
    import transformers

    config = getattr(transformers, configuration)(num_labels=classes, architectures=[], **CONFIGURATIONS[configuration])
    classifier: nn.Module = transformers.AutoModelForImageClassification.from_config(config)
    return Logits(classifier)


FACTORIES: dict[str, Callable[..., nn.Module]] = {
    name.removesuffix("Config").lower(): partial(build, name) for name in CONFIGURATIONS
}
globals().update(FACTORIES)

if __name__ == "__main__":
    print(*(f"{__spec__.origin}:{name}" for name in FACTORIES))
