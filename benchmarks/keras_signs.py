"""The network of gtsrb_batchnorm.py written in Keras, with the same weights, its images (B, H, W, C), Keras's own BatchNorm."""

from __future__ import annotations

import os

os.environ.setdefault("KERAS_BACKEND", "torch")

import keras
import torch
from torch import Tensor, nn

from sparring.keras import KerasModel
from sparring.zoo.efficientnet import EPSILON, MEAN, STD, ConvNorm, InvertedResidual

L = keras.layers
Pairs = list[tuple[L.Layer, nn.Module]]


def build(signs: nn.Module, side: int, momentum: float) -> KerasModel:
    """The same function as `signs` (a `Signs`), as a Keras model with Keras's momentum, 1 − torch's."""
    pairs: Pairs = []
    image = keras.Input((side, side, 3))
    x = (image - MEAN) / STD if signs.scale is None else image * signs.scale
    x = convolved(x, signs.body.stem, momentum, pairs)
    for block in signs.body.blocks:
        x = inverted_residual(x, block, momentum, pairs)
    x = convolved(x, signs.body.head, momentum, pairs)
    height, width, channels = x.shape[1:]
    hidden, top = L.Dense(1024, activation="sigmoid"), L.Dense(signs.top[-1].out_features, activation="softmax")
    model = keras.Model(image, top(hidden(L.Flatten()(x))))
    for layer, twin in pairs:
        copy(layer, twin)
    by_channel = signs.top[1].weight.detach().reshape(-1, channels, height, width).permute(2, 3, 1, 0)
    hidden.set_weights([numbers(by_channel.reshape(-1, 1024)), numbers(signs.top[1].bias)])
    top.set_weights([numbers(signs.top[-1].weight.T), numbers(signs.top[-1].bias)])
    made = KerasModel(model)
    probe = torch.rand(4, 3, side, side, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(made.eval()(probe), signs.eval()(probe), rtol=1e-3, atol=1e-4)
    return made.train()


def convolved(x: keras.KerasTensor, twin: ConvNorm, momentum: float, pairs: Pairs) -> keras.KerasTensor:
    if twin.conv.groups > 1:
        layer = L.DepthwiseConv2D(twin.kernel, twin.stride, padding="same", use_bias=False)
    else:
        layer = L.Conv2D(twin.conv.out_channels, twin.kernel, twin.stride, padding="same", use_bias=False)
    norm = L.BatchNormalization(momentum=1 - momentum, epsilon=EPSILON)
    pairs += [(layer, twin.conv), (norm, twin.norm)]
    x = norm(layer(x))
    return L.ReLU(max_value=6)(x) if twin.active else x


def inverted_residual(x: keras.KerasTensor, twin: InvertedResidual, momentum: float, pairs: Pairs) -> keras.KerasTensor:
    out = convolved(x, twin.expand, momentum, pairs) if isinstance(twin.expand, ConvNorm) else x
    out = convolved(convolved(out, twin.depthwise, momentum, pairs), twin.project, momentum, pairs)
    return L.Add()([x, out]) if twin.residual else out


def copy(layer: L.Layer, twin: nn.Module) -> None:
    if isinstance(twin, nn.BatchNorm2d):
        layer.set_weights([numbers(t) for t in (twin.weight, twin.bias, twin.running_mean, twin.running_var)])
        return
    # torch (out, in, h, w); Keras (h, w, in, out), and (h, w, in, multiplier) where each channel is filtered alone
    order = (2, 3, 0, 1) if twin.groups > 1 else (2, 3, 1, 0)
    layer.set_weights([numbers(twin.weight.permute(order))])


def numbers(tensor: Tensor):
    return tensor.detach().cpu().numpy()
