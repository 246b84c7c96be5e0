"""What a user puts round a model so that an attack sees one input tensor in, logits (B, C) out."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

Model = nn.Module | Callable[..., Any]
Context = Mapping[str, Tensor]


class _Wrapper(nn.Module):
    """Holds a model; a plain callable is held without being registered."""

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model

    def extra_repr(self) -> str:
        return "" if isinstance(self.model, nn.Module) else f"model={self.model!r}"


class Held(_Wrapper):
    """A plain callable as a module."""

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)


class Normalized(_Wrapper):
    """`model((x − mean) / std)`, one mean and std for each channel (dimension 1), or one for all."""

    mean: Tensor
    std: Tensor

    def __init__(self, model: Model, mean: Sequence[float] | float, std: Sequence[float] | float) -> None:
        super().__init__(model)
        self.register_buffer("mean", torch.as_tensor(mean, dtype=torch.float64).flatten(), persistent=False)
        self.register_buffer("std", torch.as_tensor(std, dtype=torch.float64).flatten(), persistent=False)
        if not bool((self.std > 0).all()) or len(self.mean) != len(self.std):
            raise ValueError(f"mean={mean!r}, std={std!r}: expected as many means as stds, every std above 0")

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Any:
        if len(self.mean) not in (1, x.shape[1]):
            raise ValueError(f"{len(self.mean)} means for inputs with {x.shape[1]} channels (shape {tuple(x.shape)})")
        shape = (1, -1, *[1] * (x.ndim - 2))
        return self.model((x - self.mean.to(x).view(shape)) / self.std.to(x).view(shape), *args, **kwargs)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Normalized:
        # .half() and friends reach the model; mean and std stay exact and are cast to the input's dtype when used
        mean, std = self.mean, self.std
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        self.mean, self.std = mean.to(self.mean.device), std.to(self.std.device)
        return self


class Output(_Wrapper):
    """Picks the logits from what a model returns: a key of a mapping, an attribute, or a position in a tuple."""

    def __init__(self, model: Model, key: str | int) -> None:
        super().__init__(model)
        self.key = key

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        out = self.model(*args, **kwargs)
        if isinstance(out, Mapping):
            if self.key not in out:
                raise ValueError(f"output {self.key!r}: the model returned a dict with keys {sorted(map(str, out))}")
            return out[self.key]
        if isinstance(self.key, int):
            if not isinstance(out, (tuple, list)) or not -len(out) <= self.key < len(out):
                many = f" of {len(out)}" if isinstance(out, (tuple, list)) else ""
                raise ValueError(f"output {self.key}: the model returned a {type(out).__name__}{many}")
            return out[self.key]
        if not hasattr(out, self.key):
            raise ValueError(f"output {self.key!r}: the model returned {type(out).__name__} without that name")
        return getattr(out, self.key)


class FromProbabilities(_Wrapper):
    """See `from_probabilities`."""

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        out: Tensor = self.model(*args, **kwargs)
        if not isinstance(out, Tensor) or not out.is_floating_point():
            raise TypeError(f"from_probabilities: the model returned {type(out).__name__}, expected a tensor of floats")
        if not bool((out.detach() >= 0).all() & (out.detach() <= 1 + 1e-3).all()):
            raise ValueError("from_probabilities: the model returned numbers outside 0 to 1: are they logits already?")
        wide = out.float() if out.dtype in (torch.float16, torch.bfloat16) else out
        return wide.clamp_min(torch.finfo(wide.dtype).tiny).log()


class FromLabels(_Wrapper):
    """See `from_labels`."""

    def __init__(self, model: Model, classes: int) -> None:
        super().__init__(model)
        self.classes = classes

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        with torch.no_grad():
            return decided(self.model(*args, **kwargs), self.classes)


def decided(answer: Any, classes: int | None) -> Any:
    """(B, C) float32 with all the weight on one class, from labels (B,) of whole numbers, or from scores (B, C); rows of
    scores that are not finite are NaN. What is neither comes back as it is, for others to refuse."""
    if not isinstance(answer, Tensor) or answer.ndim not in (1, 2):
        return answer
    if answer.ndim == 1:
        if answer.is_floating_point() or answer.dtype == torch.bool:
            raise TypeError(f"the model returned {answer.dtype} (B,): expected the classes' numbers, an integer tensor")
        if classes is None:
            raise ValueError(
                "the model returned labels (B,), and nothing says how many classes there are: give class_names, or wrap "
                "it, sp.from_labels(model, classes=10)"
            )
        if len(answer) and not 0 <= int(answer.min()) <= int(answer.max()) < classes:
            raise ValueError(
                f"the model returned labels from {int(answer.min())} to {int(answer.max())}, of {classes} classes"
            )
        label, sound = answer.long(), torch.ones_like(answer, dtype=torch.bool)
    else:
        classes = answer.shape[1]
        top, label = answer.detach().max(1)
        sound = top.isfinite()
    weight = 100.0 * torch.nn.functional.one_hot(label, classes).float()  # as logits: certain
    return weight.masked_fill(~sound[:, None], torch.nan)


class AttackedInput(_Wrapper):
    """A model of several inputs of which one is attacked; `x` is then a dict, or a tuple, of per-sample tensors."""

    def __init__(self, model: Model, which: str | int) -> None:
        super().__init__(model)
        self.which = which

    def split(self, x: Mapping[str, Tensor] | Sequence[Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        """The attacked tensor, and the others by name (positions become ``"0"``, ``"1"``, …)."""
        if isinstance(x, Tensor) or isinstance(x, Mapping) != isinstance(self.which, str):
            kind = "a dict of tensors" if isinstance(self.which, str) else "a tuple of tensors"
            raise TypeError(f"attacked_input(model, {self.which!r}) takes x as {kind}, not {type(x).__name__}")
        parts = dict(x) if isinstance(x, Mapping) else {str(i): part for i, part in enumerate(x)}
        name = str(self.which)
        if name not in parts:
            raise ValueError(f"attacked input {self.which!r}: the inputs given are {', '.join(parts)}")
        for other, part in parts.items():
            if not isinstance(part, Tensor):
                raise TypeError(f"input {other!r} is {type(part).__name__}: expected a tensor with one row a sample")
            if part.ndim == 0 or len(part) != len(parts[name]):
                rows = len(part) if part.ndim else "no"
                raise ValueError(
                    f"input {other!r} has {rows} rows, the attacked input {name!r} has {len(parts[name])}: "
                    "expected one row a sample in each"
                )
        return parts.pop(name), parts

    def forward(self, x: Tensor, **context: Tensor) -> Any:
        if isinstance(self.which, str):
            return self.model(**{self.which: x}, **context)
        return self.model(*[x if i == self.which else context[str(i)] for i in range(len(context) + 1)])


class _Replaced(torch.autograd.Function):
    """`value` on the way forward; on the way back the gradient goes to `path`, as if it had been returned."""

    generate_vmap_rule = True

    @staticmethod
    def forward(path: Tensor, value: Tensor) -> Tensor:
        return value.clone()

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient, None


class StraightThrough(nn.Module):
    """See `straight_through`."""

    def __init__(self, function: Callable[[Tensor], Any], backward: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        for what, given in {"function": function, "backward": backward}.items():
            if not callable(given) and not (what == "backward" and given is None):
                raise TypeError(f"straight_through({what}={given!r}): expected a function of x")
        self.function, self.stand_in = function, backward

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            value = self.function(x.detach())
        if not isinstance(value, Tensor):
            raise TypeError(f"straight_through: the function returned {type(value).__name__}, expected a tensor")
        path = x if self.stand_in is None else self.stand_in(x)
        if path.shape != value.shape:
            what = "its input has" if self.stand_in is None else "`backward` returned"
            raise ValueError(
                f"straight_through: the function returned shape {tuple(value.shape)}, {what} {tuple(path.shape)}: give "
                "as `backward` a differentiable function that returns the function's shape"
            )
        replaced: Tensor = _Replaced.apply(path, value.to(path.device, path.dtype))  # type: ignore[no-untyped-call]
        return replaced

    def extra_repr(self) -> str:
        held = {"function": self.function, "backward": self.stand_in}
        return ", ".join(f"{name}={part!r}" for name, part in held.items() if part and not isinstance(part, nn.Module))


def normalized(model: Model, mean: Sequence[float] | float, std: Sequence[float] | float) -> Normalized:
    """The model with its input normalisation inside, so that attacks work in [0, 1] and eps is in pixel units.

    mean, std: one for each channel, or one number for all. ValueError where their numbers differ or a std is not above 0.

    >>> net = normalized(nn.Flatten(), mean=[0.5], std=[0.25])
    >>> net(torch.ones(1, 1, 1, 2))
    tensor([[2., 2.]])
    """
    return Normalized(model, mean, std)


def output(model: Model, key: str | int) -> Output:
    """The model with its logits picked from a returned dict (key), object (attribute) or tuple (position).

    >>> output(lambda x: {"logits": x, "features": 2 * x}, "logits")(torch.ones(1, 2))
    tensor([[1., 1.]])
    """
    return Output(model, key)


def from_probabilities(model: Model) -> FromProbabilities:
    """The model that returns probabilities (B, C), as one that returns logits: their logarithms, so that softmax gives
    the same probabilities and margins are those of logits. A probability of 0 counts as the dtype's smallest number.

    >>> from_probabilities(lambda x: x)(torch.tensor([[0.25, 0.75]])).softmax(1)
    tensor([[0.2500, 0.7500]])
    """
    return FromProbabilities(model)


def from_labels(model: Model, classes: int) -> FromLabels:
    """The model that returns the numbers (B,) of the classes that it decides for, out of `classes`, as one that returns
    logits (B, classes): all on that class. For attacks that ask for decisions only, as `sp.HopSkipJump`.

    >>> from_labels(lambda x: (x[:, 0] > 0.5).long(), classes=2)(torch.tensor([[0.7]])).argmax(1)
    tensor([1])
    """
    if classes < 2:
        raise ValueError(f"from_labels(classes={classes}): expected at least 2")
    return FromLabels(model, classes)


def attacked_input(model: Model, which: str | int) -> AttackedInput:
    """The model of several inputs, of which `which` is attacked: a name (x is then a dict) or a position (a tuple).

    The other inputs have a leading batch dimension too; they stay as they are.
    """
    return AttackedInput(model, which)


def straight_through(
    function: Callable[[Tensor], Any], backward: Callable[[Tensor], Tensor] | None = None
) -> StraightThrough:
    """A preprocessing step that has no useful gradient (JPEG, quantisation, thermometer code), made differentiable.

    Forward: function(x) as it is. Backward: as if `backward`, a differentiable approximation, had been in its place (its
    vector-Jacobian product at x), or the identity. Backward pass differentiable approximation, Athalye et al. (2018): put
    it where the step stood, attack that, and report on the model as it was: their answers are the same.

    function: x (B, *S) → a tensor, on any device and of any dtype; it is asked without a graph and its answer is cast to
    the dtype of the path back. TypeError where it returns no tensor; ValueError where its shape is not that of the path.

    >>> bits = straight_through(lambda x: (x * 3).round() / 3)  # two bits a pixel
    >>> x = torch.tensor([[0.4, 0.9]], requires_grad=True)
    >>> bits(x)
    tensor([[0.3333, 1.0000]], grad_fn=<_ReplacedBackward>)
    >>> torch.autograd.grad(bits(x).sum(), x)[0]
    tensor([[1., 1.]])
    """
    return StraightThrough(function, backward)
