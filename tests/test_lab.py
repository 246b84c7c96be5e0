"""The lab's server: attacks followed step by step, results, and what it refuses."""

# ruff: noqa: E402

from __future__ import annotations

import base64
import io
import json
import shlex
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("fastapi", reason="the lab's tests need sparring[lab]")
httpx = pytest.importorskip("httpx", reason="the lab's tests need httpx")

import sparring as sp
from lab_server import LONG, NAMES, Colours, networks, red_picture, running
from sparring.data.images import decode
from sparring.lab import Lab, Network
from sparring.lab.jobs import Limits
from sparring.lab.requests import ATTACKS, RATES, Order, attack_of, command
from sparring.lab.results import open_runs


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of two result folders."""
    folder = tmp_path_factory.mktemp("runs")
    generator = torch.Generator().manual_seed(0)
    x = 0.45 + 0.1 * torch.rand((60, 3, 8, 8), generator=generator)
    x[torch.arange(60), torch.arange(60) % 3] += torch.linspace(0.02, 0.06, 60)[:, None, None]
    y = torch.arange(60) % 3
    y[::20] = (y[::20] + 1) % 3
    for name, eps in (("small", "2/255"), ("large", "4/255")):
        sp.evaluate(
            Colours(), (x, y), sp.Linf(eps), attacks="pgd", out=folder / name, class_names=list(NAMES), checkup=False
        )
    return folder


@pytest.fixture(scope="module")
def server(runs: Path) -> Iterator[str]:
    with running(Lab(networks(), open_runs([runs]), Limits(alone=1.5, seconds=20))) as address:
        yield address


@pytest.fixture
def client(server: str) -> Iterator[Any]:
    with connected(server) as http:
        yield http


@pytest.fixture
def picture(client: Any) -> str:
    return upload(client, red_picture())


def connected(address: str) -> Any:
    return httpx.Client(base_url=address, timeout=30, verify=False, trust_env=False)  # certificates take long to load


def upload(client: Any, content: bytes, name: str = "red.png") -> str:
    answer = client.post("/api/pictures", content=content, headers={"X-Name": name})
    assert answer.status_code == 201, answer.text
    return str(answer.json()["token"])


def start(http: Any, picture: str, /, **settings: Any) -> dict[str, Any]:
    order = {"network": "colours", "picture": picture, "eps": "16/255", "steps": 5, **settings}
    answer = http.post("/api/jobs", json=order)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def events(client: Any, *jobs: str, last: str | None = None) -> list[tuple[str, str, dict[str, Any]]]:
    """(id, kind, document) of all events, in order."""
    headers = {} if last is None else {"Last-Event-ID": last}
    found, event = [], {}
    with client.stream("GET", "/api/events", params=[("job", job) for job in jobs], headers=headers) as stream:
        assert stream.status_code == 200
        assert stream.headers["content-type"].startswith("text/event-stream")
        for line in stream.iter_lines():
            if not line and event:
                found.append((event["id"], event["event"], json.loads(event["data"])))
                event = {}
            elif line and not line.startswith(":"):
                key, _, value = line.partition(": ")
                event[key] = value
    return found


def told(client: Any, *jobs: str) -> dict[str, list[dict[str, Any]]]:
    kinds: dict[str, list[dict[str, Any]]] = {}
    for _, kind, document in events(client, *jobs):
        kinds.setdefault(kind, []).append(document)
    return kinds


def unpacked(text: str, dtype: Any) -> np.ndarray[Any, Any]:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype)


def seen(content: bytes, side: int = 32) -> torch.Tensor:
    """The picture as a network of that size takes it."""
    image = io.BytesIO(content)
    return torch.tensor(decode_bytes(image, side)).float() / 255


def decode_bytes(file: io.BytesIO, side: int) -> Any:
    import tempfile

    with tempfile.NamedTemporaryFile(suffix=".png") as place:
        place.write(file.getvalue())
        place.flush()
        return decode(place.name, channels=3, size=side)


def test_the_steps_are_those_of_the_attack(client: Any, picture: str) -> None:
    x = seen(red_picture())[None]
    network = Colours()
    label = network(x).argmax(1)
    direct = sp.PGD(sp.Linf("16/255"), steps=5, trace=True)(network, x, label, torch.tensor([2]))
    kinds = told(client, start(client, picture, target=2)["job"])
    frames = kinds["frame"]
    assert [frame["at"] for frame in frames] == list(range(6))
    assert [f["objective"] for f in frames] == pytest.approx(direct.trace.objective[:, 0].tolist(), abs=1e-5)
    answer = kinds["done"][0]["answer"]
    assert answer["success"] == bool(direct.success[0]) is True
    assert answer["norm"] == pytest.approx(float(direct.norm[0]), abs=1e-7)
    # what the page draws: the picture, and the change on it, to half a level of its steps
    pixels = unpacked(kinds["begin"][0]["picture"]["data"], np.uint8).reshape(32, 32, 3)
    assert np.array_equal(pixels, (x[0] * 255).round().byte().permute(1, 2, 0).numpy())
    change = kinds["done"][0]["change"]
    delta = unpacked(change["data"], np.int8).reshape(32, 32, 3) * change["scale"] / 15
    exact = (direct.x[0] - x[0]).permute(1, 2, 0).numpy()
    assert np.abs(delta - exact).max() <= change["scale"] / 30 + 1e-6
    # two looks at the picture, six at the steps, two at the end
    assert (kinds["done"][0]["forwards"], kinds["done"][0]["backwards"]) == (1 + 6 + 2, 5)


@pytest.mark.parametrize("attack", ["square", "hopskipjump"])
def test_an_attack_by_queries_shows_the_best_so_far(client: Any, picture: str, attack: str) -> None:
    """About fifty frames, whatever it asks; the last is what the attack itself finds."""
    x = seen(red_picture())[None]
    network = Colours()
    cls = sp.Square if attack == "square" else sp.HopSkipJump
    direct = cls(sp.Linf("16/255"), queries=400)(network, x, network(x).argmax(1))
    kinds = told(client, start(client, picture, attack=attack, queries=400)["job"])
    begin, frames, answer = kinds["begin"][0], kinds["frame"], kinds["done"][0]["answer"]
    assert (begin["axis"], begin["end"]) == ("query", 400)
    at = [frame["at"] for frame in frames]
    assert at[0] == 1
    assert at == sorted(set(at))
    assert 10 <= len(at) <= 52
    fooling = [frame for frame in frames if frame["fooled"]]
    assert fooling
    assert fooling == frames[-len(fooling) :]  # the best so far never gets worse
    if attack == "square":
        assert [f["objective"] for f in fooling] == sorted(f["objective"] for f in fooling)
    else:
        assert [f["norm"] for f in fooling] == sorted((f["norm"] for f in fooling), reverse=True)
        assert fooling[-1]["norm"] < fooling[0]["norm"] / 2
    assert answer["success"] == bool(direct.success[0]) is True
    assert answer["norm"] == pytest.approx(float(direct.norm[0]), abs=1e-7)
    # what the attack asks, a look at each frame, one at the beginning and two at the end
    assert kinds["done"][0]["forwards"] == direct.forwards + len(frames) + 3
    assert kinds["done"][0]["backwards"] == 0


@pytest.mark.parametrize("attack", list(ATTACKS))
def test_every_attack_runs_and_is_built_as_the_command_line_builds_it(client: Any, picture: str, attack: str) -> None:
    from sparring.cli.attack import AttackSettings, build

    made = start(client, picture, attack=attack, eps="20/255", steps=8, queries=100)
    kinds = told(client, made["job"])
    assert "done" in kinds, kinds
    words = shlex.split(made["command"])
    assert words[:3] == ["sparring", "attack", "red.png"]
    options = {k[2:]: v for k, v in zip(words[3::2], words[4::2], strict=True)}
    typed = {k: int(v) if k in ("steps", "queries", "size", "seed") else v for k, v in options.items()}
    order = Order(network="colours", picture=picture, attack=attack, eps="20/255", steps=8, queries=100)
    assert repr(build(AttackSettings([Path("red.png")], **typed))) == repr(attack_of(order))


def test_every_optimizer_of_the_page_exists() -> None:
    for name in RATES:
        attack_of(Order(network="n", picture="p", attack="optimizer", optimizer=name))


def test_the_command_line_makes_the_same_png(client: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from sparring.cli import main

    place = Path(__file__).parent
    network = networks()[0]
    assert network.arguments == ()
    monkeypatch.chdir(tmp_path)
    content = red_picture((50, 32))
    (tmp_path / "my picture.png").write_bytes(content)
    picture = upload(client, content, "my%20picture.png")
    made = start(client, picture, target=1, steps=6, seed=3)
    kinds = told(client, made["job"])
    line = command(
        Order(network="colours", picture=picture, eps="16/255", target=1, steps=6, seed=3),
        Network(
            "colours", network.model, network.shape, network.classes, ("--model", f"{place / 'lab_server.py'}:Colours")
        ),
        "my picture.png",
    )
    assert "'my picture.png'" in made["command"]
    assert main([*shlex.split(line)[1:], "--device", "cpu"]) == 0
    ours = client.get(f"/api/jobs/{made['job']}/adversarial.png").content
    theirs = np.asarray(Image.open(tmp_path / "sparring-attack" / "my picture-adversarial.png"))
    assert np.array_equal(np.asarray(Image.open(io.BytesIO(ours))), theirs)
    assert kinds["done"][0]["answer"]["success_8bit"]
    x = torch.tensor(theirs).permute(2, 0, 1)[None] / 255
    assert int(network.model(x).argmax()) == 1


def test_rounding_that_undoes_it_is_said(client: Any) -> None:
    """A grey picture, a hair away from red: less than half a level on every value turns it, and 8 bits lose that."""
    pixels = np.full((32, 32, 3), 120, np.uint8)
    pixels[..., 0] = 127
    pixels[::2, :, 0] = 128
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG")
    made = start(client, upload(client, file.getvalue()), attack="ifgsm", eps="0.0017", steps=4)
    answer = told(client, made["job"])["done"][0]["answer"]
    assert answer["success"] is True
    assert answer["success_8bit"] is False
    assert answer["norm"] == pytest.approx(0.0017, rel=1e-3)
    assert answer["norm_8bit"] == 0
    saved = np.asarray(Image.open(io.BytesIO(client.get(f"/api/jobs/{made['job']}/adversarial.png").content)))
    assert np.array_equal(saved, pixels)


def test_an_example_outside_eps_is_told_from_one_inside(client: Any, picture: str) -> None:
    """What looks for the least change may find one that is larger than eps: it fools, and is no success."""
    for attack in ("fmn", "hopskipjump"):
        answers = [
            told(client, start(client, picture, attack=attack, eps=eps, steps=20)["job"])["done"][0]["answer"]
            for eps in ("1/255", "32/255")
        ]
        assert [(answer["success"], answer["fools"]) for answer in answers] == [(False, True), (True, True)]
        assert answers[0]["norm"] == answers[1]["norm"] > 1 / 255


def test_a_sweep_tells_where_the_verdict_flips(client: Any, picture: str) -> None:
    kinds = told(client, start(client, picture, sweep=True, eps="8/255", steps=6)["job"])
    frames = sorted(kinds["frame"], key=lambda frame: frame["at"])
    assert [frame["at"] for frame in frames] == pytest.approx(
        [8 / 255 * 2 ** ((i - 9) / 2) for i in range(12)], rel=1e-6
    )
    fooled = [frame["fooled"] for frame in frames]
    assert fooled == sorted(fooled)
    assert fooled[0] is False
    assert fooled[-1] is True
    assert kinds["done"][0]["flips"] == pytest.approx(frames[fooled.index(True)]["at"])
    # this linear network falls once the change, against its two channels, is as large as half the lead
    x, network = seen(red_picture())[None], Colours()
    for frame in frames:
        assert frame["fooled"] == bool(sp.PGD(sp.Linf(frame["at"]), steps=10)(network, x, torch.tensor([0])).success)


def test_several_jobs_come_as_one_stream_and_a_lost_connection_loses_nothing(client: Any, picture: str) -> None:
    jobs = [start(client, picture, network=name, steps=4)["job"] for name in ("colours", "other colours")]
    whole = events(client, *jobs)
    for job in jobs:
        assert [kind for _, kind, document in whole if document["job"] == job] == ["begin", *["frame"] * 5, "done"]
    parts = [[event[1:] for event in whole if event[2]["job"] == job] for job in jobs]
    for last, _, _ in whole:  # wherever it broke off: what each job still owes, in its order
        again = events(client, *jobs, last=last)
        for job, part, count in zip(jobs, parts, last.split("-"), strict=True):
            assert [event[1:] for event in again if event[2]["job"] == job] == part[int(count) :]


def test_fifty_viewers_lose_nothing(server: str, client: Any, picture: str) -> None:
    job = start(client, picture, network="slow colours", steps=12)["job"]
    found: list[Any] = [None] * 50

    def look(i: int) -> None:
        with connected(server) as http:
            time.sleep(0.01 * i)  # some come in the middle
            found[i] = events(http, job)

    threads = [threading.Thread(target=look, args=(i,)) for i in range(50)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert len(found[0]) == 1 + 13 + 1
    assert all(one == found[0] for one in found)


def test_two_people_are_served_at_once_and_one_persons_row_does_not_keep_the_other_waiting(
    client: Any, picture: str
) -> None:
    row = [start(client, picture, network="slow colours", steps=300, client="first")["job"] for _ in range(4)]
    threads = [threading.Thread(target=lambda job=job: events(client_of(client), job)) for job in row]
    for thread in threads:
        thread.start()
    other = start(client, picture, steps=3, client="second")["job"]
    began = time.monotonic()
    assert "done" in told(client, other)
    states = [client.get(f"/api/jobs/{job}").json()["state"] for job in row]
    assert states.count("running") == 2
    assert states.count("waiting") == 2  # those who came before it still wait
    assert time.monotonic() - began < 10
    for job in row:
        client.delete(f"/api/jobs/{job}")
    for thread in threads:
        thread.join(10)


def client_of(client: Any) -> Any:
    return connected(str(client.base_url))


def test_a_job_can_be_stopped(client: Any, picture: str) -> None:
    job = start(client, picture, network="slow colours", steps=300)["job"]
    threading.Timer(0.3, client_of(client).delete, [f"/api/jobs/{job}"]).start()
    kinds = told(client, job)
    assert kinds["ended"][0]["reason"] == "stopped"
    assert 0 < len(kinds["frame"]) < 100


def test_a_server_that_stops_ends_its_streams_at_once() -> None:
    """In the middle of a step that takes seconds: Ctrl-C waits for nobody's network."""
    slow = Network.of("slow", Colours(0.0), shapes=[(3, 32, 32)], classes=NAMES)
    lab = Lab([slow])
    with running(lab) as address, connected(address) as client:
        token = upload(client, red_picture())
        slow.model.delay = 2.5
        job = start(client, token, network="slow")["job"]
        time.sleep(0.5)  # the first of its steps is being taken
        began = time.monotonic()
        threading.Timer(0.3, lab.jobs.stop).start()
        kinds = told(client, job)
        assert time.monotonic() - began < 1.5
        assert [one["reason"] for one in kinds["ended"]] == ["the server stops"]
        time.sleep(2.5)
        assert told(client, job) == kinds  # what the step brought comes too late


def test_a_closed_tab_frees_its_job(client: Any, picture: str) -> None:
    job = start(client, picture, network="slow colours", steps=300)["job"]
    with client.stream("GET", "/api/events", params={"job": job}) as stream:
        next(stream.iter_lines())
        assert client_of(client).get(f"/api/jobs/{job}").json()["state"] == "running"
    until = time.monotonic() + 5
    while (state := client.get(f"/api/jobs/{job}").json()["state"]) == "running" and time.monotonic() < until:
        time.sleep(0.05)
    assert state == "ended"
    assert "nobody looks" in told(client, job)["ended"][0]["reason"]


def test_jobs_are_bounded_in_number_and_time() -> None:
    limits = Limits(workers=1, waiting=2, of_one=2, seconds=0.4, alone=30, kept=1)
    with running(Lab(networks(), limits=limits)) as address, connected(address) as client:
        token = upload(client, red_picture())
        order = {"network": "slow colours", "steps": 300, "eps": "8/255"}
        first = start(client, token, **order, client="a")["job"]
        start(client, token, **order, client="a")
        refused = client.post("/api/jobs", json={**order, "picture": token, "client": "a"})
        assert refused.status_code == 429
        assert "2 attacks of this page" in refused.json()["error"]
        start(client, token, **order, client="b")
        full = client.post("/api/jobs", json={**order, "picture": token, "client": "c"})
        assert full.status_code == 429
        assert "waiting already" in full.json()["error"]
        assert "more than 0.4 s" in told(client, first)["ended"][0]["reason"]


def test_a_network_that_fails_is_told_and_the_server_goes_on(client: Any, picture: str) -> None:
    kinds = told(client, start(client, picture, network="broken")["job"])
    assert "the network's own mistake" in kinds["failed"][0]["reason"]
    assert "done" in told(client, start(client, picture)["job"])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"eps": "8"}, "did you mean 8/255?"),
        ({"eps": "zero"}, "expected a number such as 0.3 or 8/255"),
        ({"eps": "0"}, "above 0"),
        ({"eps": "1e400"}, "eps"),
        ({"target": 4}, "classes 0 to 3"),
        ({"norm": "none"}, "only an optimiser"),
        ({"attack": "fmn", "sweep": True}, "no eps to sweep"),
        ({"attack": "hopskipjump", "sweep": True}, "no eps to sweep"),
        ({"attack": "hopskipjump", "target": 1}, "no picture of it to begin with"),
        ({"attack": "square", "norm": "l1"}, "l1"),
        ({"attack": "square", "queries": 10_001}, "less than or equal to 10000"),
        ({"attack": "rfgsm", "norm": "l2"}, "no form for l2"),
        ({"steps": 301}, "less than or equal to 300"),
        ({"steps": "5"}, "valid integer"),
        ({"lr": 0, "attack": "optimizer"}, "greater than 0"),
        ({"optimizer": "LBFGS"}, "Input should be"),
        ({"weights": "/etc/passwd"}, "Extra inputs"),
        ({"network": "file.py:factory"}, "no network"),
        ({"network": "../../etc"}, "no network"),
        ({"picture": "/etc/passwd"}, "no longer here"),
    ],
)
def test_orders_that_make_no_sense_get_one_line(
    client: Any, picture: str, settings: dict[str, Any], message: str
) -> None:
    order = {"network": "colours", "picture": picture, **settings}
    answer = client.post("/api/jobs", json=order)
    assert answer.status_code in (404, 422)
    error = answer.json()["error"]
    assert message in error
    assert "\n" not in error
    assert client.get("/api/state").status_code == 200


def test_results_are_listed_sorted_filtered_and_shown(client: Any, runs: Path) -> None:
    listed = client.get("/api/state").json()["runs"]
    assert [run["name"] for run in listed] == ["large", "small"]
    page = client.get("/api/runs/large").json()
    result = sp.load_result(runs / "large")
    assert page["robust"]["count"] == int(result.robust.sum())
    assert page["counts"]["fooled"] == int((result.correct & ~result.robust).sum()) > 0
    assert page["counts"]["wrong"] == int((~result.correct).sum()) > 0
    assert [point["value"] for point in page["curve"]] == [point["value"] for point in result.curve]
    rows = client.get("/api/runs/large/samples", params={"sort": "distance", "show": "fooled"}).json()["rows"]
    distances = [row["distance"] for row in rows]
    assert distances == sorted(distances)
    down = client.get("/api/runs/large/samples", params={"sort": "distance", "down": True}).json()["rows"]
    assert [row["index"] for row in down] == [row["index"] for row in rows][::-1]
    red = client.get("/api/runs/large/samples", params={"label": 0, "show": "all"}).json()
    assert red["total"] == sum(row["label"] == 0 for row in result.samples())
    into = client.get("/api/runs/large/samples", params={"into": rows[0]["seen"]}).json()
    assert into["total"] == sum(row["prediction"] == rows[0]["seen"] for row in rows) > 0
    assert {row["seen_name"] for row in into["rows"]} == {NAMES[rows[0]["prediction"]]}
    index = rows[0]["index"]
    sample = client.get(f"/api/runs/large/samples/{index}").json()
    assert sample["pictured"] is True
    picture = client.get(f"/api/runs/large/samples/{index}/adversarial.png").content
    shown = np.asarray(Image.open(io.BytesIO(picture)))
    assert np.array_equal(shown, (result.picture(index)[1] * 255).round().byte().permute(1, 2, 0).numpy())
    robust = client.get("/api/runs/large/samples", params={"show": "robust"}).json()["rows"][0]["index"]
    assert client.get(f"/api/runs/large/samples/{robust}").json()["pictured"] is False
    assert client.get(f"/api/runs/large/samples/{robust}/adversarial.png").status_code == 404
    assert client.get("/api/runs/large/samples/999").status_code == 404
    assert client.get("/api/runs/..%2F..%2Fetc").status_code == 404


def test_long_lists_come_in_pages(client: Any) -> None:
    first = client.get("/api/runs/large/samples", params={"show": "all"}).json()
    second = client.get("/api/runs/large/samples", params={"show": "all", "first": 48}).json()
    assert (len(first["rows"]), len(second["rows"]), second["total"]) == (48, 12, 60)
    assert [row["index"] for row in first["rows"] + second["rows"]] == list(range(60))


def test_a_folder_without_results_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds no result\.json"):
        open_runs([tmp_path])


def test_class_names_are_those_of_the_network(client: Any) -> None:
    state = client.get("/api/state").json()
    assert {network["name"] for network in state["networks"]} == {"colours", "slow colours", "other colours", "broken"}
    assert [state["classes"][network["classes"]] for network in state["networks"]] == [list(NAMES)] * 4
    assert LONG in state["classes"][0]


def test_of_texts_every_changed_word_is_shown(tmp_path: Path) -> None:
    pytest.importorskip("tokenizers", reason="texts need sparring[text]")
    from bags import LABELS, SYNONYMS, TEXTS, bag

    texts = [f"{text} {i}" for i in range(20) for text in TEXTS]  # more than the document's gallery holds
    sp.evaluate(
        bag(more=texts),
        (texts, LABELS * 20),
        attacks=sp.WordSubstitution(SYNONYMS, max_changed=1.0),
        out=tmp_path / "texts",
    )
    run = open_runs([tmp_path / "texts"])["texts"]
    rows = run.samples("fooled", None, None, "index", False, 0)
    assert rows["total"] > len(run.document["gallery"]) > 0
    for row in rows["rows"]:
        pieces = run.sample(row["index"])["pieces"]
        assert "".join(piece["text"] for piece in pieces if piece["kind"] != "inserted") == texts[row["index"]]
        assert any(piece["kind"] == "inserted" for piece in pieces)


def test_the_bench_of_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The networks given, by name, with the samples and class names of --data; and one line where there is nothing."""
    from sparring.cli.lab import LabSettings, build

    monkeypatch.chdir(tmp_path)
    place = Path(__file__).parent / "lab_server.py"
    with pytest.raises(ValueError, match="2 files for 1 models"):
        build(LabSettings(models=["small-cnn"], weights=["a", "b"]))
    lab = build(LabSettings(models=["plain=small-cnn", f"{place}:Colours"], data=None, device="cpu"))
    try:
        assert lab.networks["plain"].shape == (1, 28, 28)
        assert lab.networks["Colours"].shape == (3, 224, 224)
        assert lab.networks["plain"].arguments == ("--model", "small-cnn")
        assert [picture.name for _, picture in lab.pictures.samples()][:2] == ["chelsea.jpg", "fashion-mnist-0.png"]
        folder = lab.pictures.folder
        assert folder.is_dir()
    finally:
        lab.close()
    assert not folder.exists()


def test_the_page_of_the_documentation_runs() -> None:
    from pages import run

    _, blocks = run("lab.md")
    assert blocks == 1
