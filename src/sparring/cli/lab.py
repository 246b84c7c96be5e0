"""``sparring lab``: the page in the browser, on this machine."""

# No `from __future__ import annotations`: cyclopts reads the annotations of inherited fields as they stand.

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from cyclopts import Group, Parameter

from sparring.cli import models
from sparring.cli.app import Outcome
from sparring.cli.console import note, say
from sparring.cli.settings import DATA, MANY, MODEL, RUN, ModelSettings, Settings

if TYPE_CHECKING:
    from sparring.lab import Lab, Network

SERVER = Parameter(group=Group("Server", sort_key=4))
EXTRA = "the lab needs its extra: pip install 'sparring[lab]'"
DEMO = {"small-cnn": "small-cnn.safetensors", "small-cnn, robust": "small-cnn-robust.safetensors"}
SAMPLES = 10


@Parameter(name="*")
@dataclass(frozen=True, kw_only=True)
class LabSettings(Settings):
    """Settings of ``sparring lab``."""

    models: Annotated[list[str], MODEL, MANY, Parameter(name=["--models", "--model"])] = field(default_factory=list)
    """Networks beside the built-in ones: package.module:factory, file.py:factory, timm:NAME, torchvision:NAME or a zoo
    name; NAME=SPEC calls one by a name."""
    weights: Annotated[list[str], MODEL, MANY] = field(default_factory=list)
    """One file for each of these, in their order; none for one that needs none."""
    unsafe_pickle: Annotated[bool, MODEL] = False
    """Allow full pickles as --weights. They can run any code: only for files that you made."""
    normalize: Annotated[tuple[str, str] | None, MODEL] = None
    """MEAN STD of all of these, one number or one a channel: each gets (x - mean) / std."""
    size: Annotated[int | None, MODEL] = None
    """Side in pixels of the pictures that these take; left out, it is found by trying."""
    data: Annotated[str | None, DATA] = None
    """As for sparring evaluate: its first images are offered on the page, and its class names used."""
    runs: Annotated[list[Path], DATA, MANY] = field(default_factory=list)
    """Result folders of sparring evaluate, or folders of such, to look through."""
    host: Annotated[str, SERVER] = "127.0.0.1"
    """Where to listen. Anything but the loopback lets others on the network use this machine: there are no passwords."""
    port: Annotated[int, SERVER] = 8765
    """Where to listen; 0 takes any free one."""
    allow_host: Annotated[list[str], SERVER, MANY] = field(default_factory=list)
    """Names, beside localhost, under which browsers may reach it."""
    browser: Annotated[bool, SERVER, Parameter(negative="--no-browser")] = True
    """Open the page in a browser."""
    device: Annotated[str, RUN] = "auto"
    """cpu, cuda, cuda:1, mps; auto takes the fastest there is."""
    seconds: Annotated[float, RUN] = 180.0
    """How long one attack may take."""


_SETTINGS = LabSettings()


def lab(settings: LabSettings = _SETTINGS) -> Outcome:
    """Watch a network being fooled, live in the browser, and look through result folders."""
    try:
        import uvicorn

        from sparring.lab import create_app
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] not in ("fastapi", "uvicorn", "pydantic", "starlette"):
            raise
        raise ModuleNotFoundError(EXTRA) from None
    import torch

    torch.set_num_threads(1)  # each attack has a thread of its own
    here = _loopback(settings.host)
    socket = _listen(settings.host, settings.port)
    bench = build(settings)
    app = create_app(bench, hosts=settings.allow_host, anywhere=not here)
    port = socket.getsockname()[1]
    shown = f"[{settings.host}]" if ":" in settings.host else settings.host
    address = f"http://{'127.0.0.1' if settings.host in ('0.0.0.0', '::') else shown}:{port}/"
    say(f"The lab is at {address}  (Ctrl-C stops it)", style="bold")
    if not here:
        note(f"It listens on {settings.host}: whoever reaches this machine can use it. There are no passwords.")
    if settings.browser:
        _open(address)
    config = uvicorn.Config(
        app, log_level="warning", access_log=False, timeout_graceful_shutdown=2, server_header=False
    )
    threading.Thread(target=_prepare, daemon=True).start()

    class Server(uvicorn.Server):
        async def shutdown(self, sockets: Any = None) -> None:
            bench.jobs.stop()  # first: the page's stream, open as long as an attack runs, would be waited for
            await super().shutdown(sockets)

    with contextlib.suppress(KeyboardInterrupt):  # which uvicorn raises again once all is closed
        Server(config).run(sockets=[socket])
    return Outcome({"address": address})


def build(settings: LabSettings) -> "Lab":
    """The lab of these settings. ValueError where there is nothing in it."""
    from sparring.lab import Lab
    from sparring.lab.jobs import Limits
    from sparring.lab.results import open_runs

    runs = open_runs(settings.runs)
    networks = list(_networks(settings))
    if not networks and not runs:
        raise ValueError(
            "there is no network to attack: pip install 'sparring[imagenet]', run sparring demo here first, or give --model"
        )
    for network in networks:
        channels, height, width = network.shape
        note(f"{network.name}: {channels}×{height}×{width}, {len(network.classes)} classes")
    bench = Lab(networks, runs, Limits(seconds=settings.seconds))
    try:
        _samples(bench, settings)
    except BaseException:
        bench.close()
        raise
    return bench


def _networks(settings: LabSettings) -> "Iterator[Network]":
    """EfficientNet-Lite0 where its weights are installed, the demo's networks where it was run, and those given."""
    from sparring import data, zoo
    from sparring.lab import Network
    from sparring.zoo.efficientnet import weights_path

    device = models.pick_device(settings.device)
    given = list(_given(settings, device))
    yield from given
    try:
        weights_path()
    except ModuleNotFoundError as error:
        note(str(error))
    else:
        model = zoo.build("efficientnet-lite0").to(device)
        shapes = [(3, 224, 224)]
        arguments = ["--model", "efficientnet-lite0"]
        if all(network.name != "EfficientNet-Lite0" for network in given):
            yield Network.of("EfficientNet-Lite0", model, shapes=shapes, arguments=arguments, device=device)
    for name, file in DEMO.items():
        path = Path("sparring-demo") / file
        if path.is_file() and all(network.name != name for network in given):
            model = zoo.load_weights(zoo.build("small-cnn"), path).to(device)
            arguments = ["--model", "small-cnn", "--weights", str(path)]
            classes = data.open("fashion-mnist:bundled").classes
            yield Network.of(name, model, shapes=[(1, 28, 28)], classes=classes, arguments=arguments, device=device)


def _given(settings: LabSettings, device: Any) -> "Iterator[Network]":
    from sparring import data
    from sparring.lab import Network
    from sparring.lab.networks import SHAPES

    if settings.weights and len(settings.weights) != len(settings.models):
        raise ValueError(
            f"--weights: {len(settings.weights)} files for {len(settings.models)} models; give one each, or none"
        )
    images = None if settings.data is None else data.open(settings.data)
    for number, typed in enumerate(settings.models):
        called, equals, rest = typed.partition("=")
        spec = rest if equals else typed
        file = settings.weights[number] if settings.weights else "none"
        one = ModelSettings(
            model=spec,
            weights=None if file == "none" else Path(file),
            unsafe_pickle=settings.unsafe_pickle,
            normalize=settings.normalize,
        )
        shapes = list(SHAPES) if images is None else [images.shape]
        if settings.size is not None:
            shapes = [(3, settings.size, settings.size), (1, settings.size, settings.size)]
        arguments = ["--model", spec, *(["--weights", file] if file != "none" else [])]
        if settings.normalize:
            arguments += ["--normalize", *settings.normalize]
        classes = None if images is None else images.classes
        name = called if equals else spec.rsplit(":", 1)[-1]
        yield Network.of(
            name, models.load(one, device), shapes=shapes, classes=classes, arguments=arguments, device=device
        )


def _samples(bench: "Lab", settings: LabSettings) -> None:
    """The bundled photograph; images of --data, or of clothes where a network takes those."""
    from sparring import data

    if any(network.shape[0] == 3 for network in bench.networks.values()):
        bench.pictures.add_sample(data.photograph(), "a cat")
    source = settings.data
    if source is None and any(network.shape == (1, 28, 28) for network in bench.networks.values()):
        source = "fashion-mnist:bundled"
    if source is None:
        return
    images = data.open(source)
    for index in range(min(SAMPLES, len(images))):
        x, label = images[index]
        if x.shape[0] not in (1, 3):
            return
        path = bench.pictures.folder / f"{images.name.split(' ')[0]}-{index}.png"
        data.save_png(x, path)
        bench.pictures.add_sample(path, images.classes[label] if images.classes else f"class {label}")


def _prepare() -> None:
    """What the first optimiser of torch.optim that is made brings in, which takes seconds: meanwhile a person reads the page."""
    import importlib

    importlib.import_module("torch._dynamo")


def _loopback(host: str) -> bool:
    import ipaddress

    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def _listen(host: str, port: int) -> Any:
    import socket

    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
    except (OSError, OverflowError) as error:
        listening.close()
        raise OSError(f"--host {host} --port {port}: {error}; another --port, or 0 for any free one") from None
    return listening


def _open(address: str) -> None:
    import webbrowser

    threading.Timer(0.8, webbrowser.open, [address]).start()
