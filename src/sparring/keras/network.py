"""A Keras model as a torch module: its modes, its BatchNorm layers and the layout of its images are those torch knows."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

MISSING = "Keras models need Keras 3: pip install 'sparring[keras]'"


def _keras() -> Any:
    """The keras package, on torch."""
    try:
        import keras
    except ImportError as error:
        raise ImportError(MISSING) from error
    if keras.backend.backend() != "torch":
        raise RuntimeError(
            f"Keras runs on {keras.backend.backend()}: set KERAS_BACKEND=torch in the environment before keras is first imported"
        )
    return keras


class BatchNormalization(_BatchNorm):
    """What stands in for a Keras BatchNormalization layer while its model runs: torch's, over the same four variables.

    As in torch, the running variance is that of the batch with n − 1 in its denominator; Keras divides by n.
    """

    def __init__(self, layer: Any) -> None:
        super().__init__(layer.moving_mean.shape[0], layer.epsilon, 1 - layer.momentum, affine=False)
        self.layer = _Held(layer)
        self.axis = layer.axis
        for name in ("running_mean", "running_var"):
            self.register_buffer(name, self._buffers[name], persistent=False)  # `KerasModel` holds them
        self.tie()

    def tie(self) -> None:
        """Weight, bias and running statistics are the Keras layer's own tensors."""
        layer = self.layer.value
        # not as parameters: `KerasModel` holds them
        self.__dict__["weight"] = layer.gamma.value if layer.scale else None
        self.__dict__["bias"] = layer.beta.value if layer.center else None
        self.running_mean, self.running_var = layer.moving_mean.value.data, layer.moving_variance.value.data

    def _check_input_dim(self, input: Tensor) -> None:
        """Any: Keras has one layer for all of them."""

    def call(self, inputs: Tensor, training: bool | None = None, mask: Tensor | None = None) -> Tensor:
        """As Keras calls a layer; whether it is training is this module's own mode."""
        if mask is not None:
            raise ValueError(
                f"the BatchNormalization layer {self.layer.value.name!r} is masked: only unmasked ones are known"
            )
        answer: Tensor = self(inputs.movedim(self.axis, 1))
        return answer.movedim(1, self.axis)


class _Held:
    """Something that a module knows without owning it."""

    def __init__(self, value: Any) -> None:
        self.value = value


class KerasModel(nn.Module):
    """A Keras 3 model (torch backend) as a torch module of logits, with images (B, C, H, W) as everywhere in sparring.

    By itself a Keras model takes images (B, H, W, C), is told by an argument whether it is training, holds BatchNorm's
    statistics as parameters that nobody sees move, and mostly ends in a softmax. Here `train()` and `eval()` switch it;
    each BatchNormalization layer is a torch BatchNorm over the same variables, so that every policy of `bn=`,
    `recalibrate` and `diagnose` knows it (one with `trainable=False` stays in inference mode); and a softmax at the end is
    left out (`logits=False` keeps it). The Keras model itself is changed by training alone: save it as ever.

    model: built, with one input and one output (B, classes). channels_first: images come as (B, C, H, W);
    False: as the model has them.
    What Keras adds to the loss by itself (regularisers) is not in a strategy's loss. Move it to another device before it is
    wrapped. Raises ImportError without Keras, RuntimeError on another backend, TypeError or ValueError for another model.

        net = sparring.keras.KerasModel(keras_model)
        result = sparring.evaluate(net.eval(), (x, y), sparring.Linf(8 / 255))
        sparring.fit(net, (x, y), sparring.PGDTraining(sparring.Linf(8 / 255)))
        keras_model.save("robust.keras")
    """

    def __init__(self, model: Any, *, channels_first: bool = True, logits: bool = True) -> None:
        super().__init__()
        keras = _keras()
        if not isinstance(model, keras.Model):
            raise TypeError(f"KerasModel was given {type(model).__name__}: expected a Keras model")
        if not model.built:
            raise ValueError("the Keras model has no weights yet: call it once on a batch, or give it an Input")
        self._held = _Held(model)
        # by position, as Keras numbers its names on
        self.variables = nn.ParameterList([variable.value for variable in model.variables])
        self.channels_first = channels_first
        self.logits = logits
        known = [layer for layer in model._flatten_layers() if isinstance(layer, keras.layers.BatchNormalization)]
        self.normalisations = nn.ModuleList(BatchNormalization(layer) for layer in known)
        self.train(self.training)

    @property
    def model(self) -> Any:
        """The Keras model."""
        return self._held.value

    def __deepcopy__(self, memo: dict[int, Any]) -> KerasModel:
        model = _keras().models.clone_model(self.model)
        made = KerasModel(model, channels_first=self.channels_first, logits=self.logits)
        made.load_state_dict(self.state_dict())
        for module, own in zip(made.modules(), self.modules(), strict=True):
            module.training = own.training
        for parameter, mine in zip(made.parameters(), self.parameters(), strict=True):
            parameter.requires_grad_(mine.requires_grad)
        return made

    def train(self, mode: bool = True) -> KerasModel:
        super().train(mode)
        for twin in self._twins:
            if not twin.layer.value.trainable:
                twin.eval()
        return self

    @property
    def _twins(self) -> list[BatchNormalization]:
        return [twin for twin in self.normalisations if isinstance(twin, BatchNormalization)]

    def _apply(self, fn: Callable[..., Any], recurse: bool = True) -> KerasModel:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        for twin in self._twins:
            twin.tie()
        return self

    def forward(self, x: Tensor) -> Tensor:
        """x (B, C, H, W), or of any other rank as the model takes it, to logits (B, classes)."""
        if x.ndim == 4 and self.channels_first and _keras().config.image_data_format() == "channels_last":
            x = x.permute(0, 2, 3, 1)
        with self._standing_in():
            answer: Tensor = self.model(x, training=self.training)
        return answer

    @contextmanager
    def _standing_in(self) -> Iterator[None]:
        """While the model runs: torch's BatchNorm in place of Keras's, and no softmax at the end."""
        with ExitStack() as stack:
            for twin in self._twins:
                stack.enter_context(_replaced(twin.layer.value, "call", twin.call))
            if self.logits:
                stack.enter_context(self._without_softmax())
            yield

    @contextmanager
    def _without_softmax(self) -> Iterator[None]:
        keras, last = _keras(), self.model
        while isinstance(last, keras.Model) and last.layers:
            last = last.layers[-1]
        if isinstance(last, keras.layers.Softmax):
            with _replaced(last, "call", lambda inputs, mask=None: inputs):
                yield
        elif getattr(last, "activation", None) is keras.activations.softmax:
            with _replaced(last, "activation", keras.activations.linear):
                yield
        else:
            yield


@contextmanager
def _replaced(layer: Any, name: str, value: Any) -> Iterator[None]:
    """An attribute of a Keras layer, which would track what is set in the usual way."""
    own = layer.__dict__
    had, before = name in own, own.get(name)
    own[name] = value
    try:
        yield
    finally:
        if had:
            own[name] = before
        else:
            del own[name]
