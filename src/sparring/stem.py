"""The image gradient through a network's first convolution, on a CPU up to six times as fast as torch gives it.

Ordinary training never asks for that gradient, and oneDNN has no quick way to it where the input channels are few: the stem of
a small CNN takes ten times as long to give it as to run forward. But the input gradient of a convolution with stride s is a
convolution with stride 1, too. An input position meets only those taps of the kernel that agree with it modulo s, so the kernel
falls into s × s small ones; what they make of the output's gradient are the s × s phases of the image, side by side as channels,
and a pixel shuffle (Shi et al., 2016) puts them in their places. With stride 1 there is one phase, of one to three channels, and
a processor's vectors stay nearly empty: four neighbours are computed at once instead, by copies of the kernel that are shifted
by one, in steps of two.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import product
from typing import Any, TypeGuard
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sparring.layout import is_compiled

# input channels up to which it is the quicker way: with 16 there is little to gain, with 64 it is the slower one
FEW = 8
FEWER = 3  # with stride 1
LEAST = 12_500  # entries of a batch, as of 16 MNIST images: with fewer torch's own way is as quick


def input_gradient(
    gradient: Tensor, weight: Tensor, size: tuple[int, int], stride: int, padding: tuple[int, int]
) -> Tensor:
    """Of a convolution's input (B, C, *size), from that of its output, `gradient` (B, K, h, w); weight: (K, C, k, l).

    Differentiable in `gradient`.
    """
    outputs, inputs, height, width = weight.shape
    rows, columns = -(-height // stride), -(-width // stride)  # taps of the small kernels
    taps = F.pad(weight, (0, columns * stride - width, 0, rows * stride - height))
    taps = taps.reshape(outputs, inputs, rows, stride, columns, stride).flip(2, 4).permute(1, 3, 5, 0, 2, 4)
    once = 2 if stride == 1 else 1  # neighbours to a side that are computed at once
    shifts = product(range(once), repeat=2)
    taps = torch.stack([F.pad(taps, (j, once - 1 - j, i, once - 1 - i)) for i, j in shifts], 1)
    taps = taps.reshape(inputs * (once * stride) ** 2, outputs, rows + once - 1, columns + once - 1)
    odd = [(side + count - 1) % once for side, count in zip(gradient.shape[2:], (rows, columns))]
    if any(odd):  # the last two positions want one more step
        gradient = F.pad(gradient, (0, odd[1], 0, odd[0]))
    phases = F.conv2d(gradient, taps, stride=once, padding=(rows - 1, columns - 1))
    image = F.pixel_shuffle(
        phases.contiguous(), once * stride
    )  # from where the padding begins to the last window's end
    (top, left), (bottom, right) = padding, (image.shape[2], image.shape[3])
    return F.pad(image, (-left, left + size[1] - right, -top, top + size[0] - bottom))


class Stem(torch.autograd.Function):
    """A convolution with the quick way back to its input."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, weight: Tensor, bias: Tensor | None, stride: int, padding: tuple[int, int]) -> Tensor:
        return F.conv2d(x, weight, bias, stride, padding)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, weight, bias, ctx.stride, ctx.padding = inputs
        ctx.size, ctx.biases = tuple(x.shape[2:]), None if bias is None else bias.shape
        ctx.save_for_backward(x, weight)
        ctx.save_for_forward(x, weight)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        wanted = (False, *ctx.needs_input_grad[1:3])
        of_input = input_gradient(gradient, weight, ctx.size, ctx.stride, ctx.padding)
        if not any(wanted):
            return of_input, None, None, None, None
        _, of_weight, of_bias = torch.ops.aten.convolution_backward(
            gradient, x, weight, ctx.biases, [ctx.stride] * 2, ctx.padding, [1, 1], False, [0, 0], 1, wanted
        )
        return of_input, of_weight, of_bias, None, None

    @staticmethod
    def jvp(ctx: Any, x_t: Tensor, weight_t: Tensor, bias_t: Tensor | None, *_: None) -> Tensor:
        x, weight = ctx.saved_tensors
        of_input = F.conv2d(x_t, weight, None, ctx.stride, ctx.padding)
        return of_input + F.conv2d(x, weight_t, bias_t, ctx.stride, ctx.padding)


class _Quick:
    """What stands in for a convolution's forward: the quick way where that is one. Does not keep the convolution alive."""

    def __init__(self, conv: nn.Conv2d) -> None:
        self.conv = ref(conv)

    def __call__(self, input: Tensor) -> Tensor:
        conv = self.conv()
        assert conv is not None  # it is being called
        if torch.compiler.is_compiling() or not _is_asked(input):
            return nn.Conv2d.forward(conv, input)
        made: Tensor = Stem.apply(input, conv.weight, conv.bias, conv.stride[0], conv.padding)  # type: ignore[no-untyped-call]
        return made

    def __reduce__(self) -> tuple[Any, ...]:
        return partial, (nn.Conv2d.forward, self.conv())  # a copy that is made meanwhile goes torch's way


_quick: WeakKeyDictionary[nn.Module, _Quick] = WeakKeyDictionary()
"""One for each convolution: a part of the model that is compiled was compiled for this very object."""


def _is_asked(input: Tensor) -> bool:
    """Whether the gradient of these images (B, C, H, W) will be asked for, and comes quicker this way."""
    images = input.ndim == 4 and input.numel() >= LEAST and input.device.type == "cpu" and input.dtype == torch.float32
    return images and input.requires_grad and torch.is_grad_enabled() and not torch.is_autocast_enabled("cpu")


def _is_stem(module: nn.Module) -> TypeGuard[nn.Conv2d]:
    """Whether the module is such a convolution, and its forward is nobody else's."""
    return (
        type(module) is nn.Conv2d
        and "forward" not in module.__dict__
        and all(isinstance(pair, tuple) and len(pair) == 2 for pair in (module.stride, module.padding))
        and module.stride[0] == module.stride[1]
        and module.in_channels <= (FEW if module.stride[0] > 1 else FEWER)
        and (module.stride[0] > 1 or min(module.kernel_size) > 1)
        and module.dilation == (1, 1)
        and module.groups == 1
        and module.padding_mode == "zeros"
    )


@contextmanager
def quick_stems(modules: Iterable[nn.Module]) -> Iterator[None]:
    """Forwards in the block let convolutions of few input channels give image gradients the quick way: float32 on a
    CPU, the same up to rounding. What is compiled stays as it was traced."""
    modules = list(modules)
    stems = [] if any(map(is_compiled, modules)) else [module for module in modules if _is_stem(module)]
    for module in stems:
        module.__dict__["forward"] = _quick.setdefault(module, _Quick(module))
    try:
        yield
    finally:
        for module in stems:
            # not what the model wrapped round it; and another thread may have been done sooner
            if module.__dict__.get("forward") is _quick[module]:
                module.__dict__.pop("forward", None)
