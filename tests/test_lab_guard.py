"""What the lab refuses: other sites, bad pictures, floods; and every endpoint under random requests."""

from __future__ import annotations

import io
import json
import struct
import zlib
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("fastapi", reason="the lab's tests need sparring[lab]")
pytest.importorskip("httpx", reason="the lab's tests need httpx")

from lab_server import networks, red_picture, running
from sparring.lab import Lab, create_app
from sparring.lab.guard import MAX_JSON
from sparring.lab.jobs import Limits
from sparring.lab.pictures import MAX_BYTES, Pictures, Refused
from test_lab import connected, upload


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with running(Lab(networks(), limits=Limits(alone=1, seconds=2))) as address:
        yield address


@pytest.fixture
def client(server: str) -> Iterator[Any]:
    with connected(server) as http:
        yield http


def png_of(width: int, height: int, rows: bytes = b"") -> bytes:
    """A PNG whose header claims this size."""

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(image: Image.Image, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


BAD = {
    "nothing": (b"", 415),
    "text": (b"GIF is not what this is", 415),
    "html": (b"<html><script>alert(1)</script>", 415),
    "svg": (b'<svg xmlns="http://www.w3.org/2000/svg"/>', 415),
    "pickle": (b"\x80\x04\x95\x1a\x00\x00\x00\x00\x00\x00\x00\x8c\x05posix\x94\x8c\x06system\x94\x93\x94", 415),
    "zip": (b"PK\x03\x04" + bytes(64), 415),
    "postscript, which Pillow would hand to another program": (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        415,
    ),
    "tiff, which is not taken": (saved(Image.new("RGB", (8, 8)), "TIFF"), 415),
    "cut short": (red_picture()[:200], 422),
    "jpeg cut short": (red_picture(kind="JPEG")[:400], 422),
    "only a header": (red_picture()[:33], (415, 422)),
    "bomb: 40,000 × 40,000 in a few bytes": (png_of(40_000, 40_000), (413, 422)),
    "bomb: 7,000 × 7,000 of zeros": (png_of(7_000, 7_000, bytes(1000)), 413),
    "a line": (png_of(3, 3000, bytes(3000 * 10)), 422),
    "one pixel": (saved(Image.new("RGB", (1, 1)), "PNG"), 422),
}


@pytest.mark.parametrize("kind", list(BAD))
def test_bad_pictures_get_one_line(client: Any, kind: str) -> None:
    content, status = BAD[kind]
    answer = client.post("/api/pictures", content=content, headers={"X-Name": "holiday.png"})
    assert answer.status_code in (status if isinstance(status, tuple) else (status,)), answer.text
    error = answer.json()["error"]
    assert error
    assert "\n" not in error
    assert "/tmp" not in error


def test_uploads_are_bounded_announced_or_not(client: Any) -> None:
    def endless() -> Iterator[bytes]:
        for _ in range(2 + (MAX_BYTES >> 20)):
            yield bytes(1 << 20)

    assert client.post("/api/pictures", content=bytes(MAX_BYTES + 1)).status_code == 413
    assert client.post("/api/pictures", content=endless()).status_code == 413
    assert client.post("/api/jobs", content=b"[" * (MAX_JSON + 1)).status_code == 413
    assert client.get("/api/state").status_code == 200


def test_a_photograph_taken_sideways_is_turned(client: Any) -> None:
    image = Image.new("RGB", (48, 32), "black")
    image.paste("white", (0, 0, 24, 32))  # the left half is white
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise: what was left is up
    token = upload(client, saved(image, "JPEG", exif=exif, quality=95))
    thumbnail = np.asarray(Image.open(io.BytesIO(client.get(f"/api/pictures/{token}/thumbnail.png").content)))
    assert thumbnail[:50].mean() > 200
    assert thumbnail[-50:].mean() < 50


def test_odd_but_sound_pictures_are_taken(client: Any) -> None:
    grey = Image.fromarray(np.arange(1024, dtype=np.uint8).reshape(32, 32))
    images = [grey, grey.convert("RGBA"), grey.convert("P"), grey.convert("1"), grey.convert("CMYK")]
    for image, kind in zip(images, ("PNG", "PNG", "PNG", "PNG", "JPEG"), strict=True):
        token = upload(client, saved(image, kind))
        assert client.post("/api/looks", json={"network": "colours", "picture": token}).status_code == 200


def test_file_names_are_only_shown(client: Any) -> None:
    names = {
        "..%2F..%2Fetc%2Fpasswd": "passwd",
        "a%0d%0ab.png": "ab.png",
        "%20": "picture.png",
        "..": "picture.png",
        "-rf.png": "-rf.png",
    }
    for given, kept in names.items():
        answer = client.post("/api/pictures", content=red_picture(), headers={"X-Name": given})
        assert answer.json()["name"] == kept
    order = {"network": "colours", "picture": answer.json()["token"], "steps": 1}
    assert "./-rf.png" in client.post("/api/jobs", json=order).json()["command"]


def test_the_oldest_pictures_make_room() -> None:
    pictures = Pictures(kept=3)
    tokens = [pictures.add(red_picture()) for _ in range(4)]
    with pytest.raises(Refused, match="no longer here"):
        pictures.get(tokens[0])
    assert len(list(pictures.folder.iterdir())) == 3
    pictures.close()


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({"Host": "evil.example"}, 421),
        ({"Host": "127.0.0.1.evil.example"}, 421),
        ({"Host": "localhost:8765@evil.example"}, 421),
        ({"Host": "192.168.0.7"}, 421),
        ({"Host": ""}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Origin": "http://127.0.0.1:1"}, 403),
        ({"Sec-Fetch-Site": "cross-site"}, 403),
        ({"Sec-Fetch-Site": "same-site"}, 403),
        ({"Sec-Fetch-Site": "same-origin"}, 200),
        ({"Host": "localhost"}, 200),
        ({"Host": "[::1]:8765"}, 200),
    ],
)
def test_other_sites_are_refused(client: Any, headers: dict[str, str], status: int) -> None:
    for path in ("/", "/api/state"):
        assert client.get(path, headers=headers).status_code == status


def test_its_own_origin_may_ask(client: Any, server: str) -> None:
    assert client.post("/api/looks", json={}, headers={"Origin": server}).status_code == 422
    assert client.post("/api/looks", json={}, headers={"Origin": server.replace("http", "https")}).status_code == 403


def test_told_to_listen_elsewhere_it_knows_addresses_and_the_names_it_was_given() -> None:
    with running(Lab(networks()), hosts=["lab.example"], anywhere=True) as address, connected(address) as client:
        for host, status in {
            "lab.example:80": 200,
            "LAB.example": 200,
            "192.168.0.7": 200,
            "evil.example": 421,
        }.items():
            assert client.get("/api/state", headers={"Host": host}).status_code == status


def test_every_answer_has_a_strict_policy(client: Any) -> None:
    for path in ("/", "/api/state", "/static/main.js", "/nothing", "/api/jobs/none"):
        policy = client.get(path).headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert "http" not in policy
    page = client.get("/").text
    assert "style=" not in page
    assert "onclick" not in page
    assert "<script>" not in page
    assert "://" not in page  # nothing from elsewhere


def test_only_the_pages_own_files_are_served(client: Any) -> None:
    for path in (
        "/static/../server.py",
        "/static/..%2Fserver.py",
        "/static/server.py",
        "/static/",
        "/openapi.json",
        "/docs",
    ):
        assert client.get(path).status_code == 404


def test_nothing_in_the_static_files_points_elsewhere() -> None:
    from importlib import resources

    for file in resources.files("sparring.lab").joinpath("static").iterdir():
        text = file.read_text("utf-8").replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text, file.name


def test_random_requests_get_answers_that_the_schema_knows() -> None:
    """Property-based requests to every endpoint: never a server error, always JSON where it says so."""
    schemathesis = pytest.importorskip(
        "schemathesis", reason="fuzzing the lab needs schemathesis: pip install schemathesis"
    )
    from hypothesis import HealthCheck, Phase, settings

    lab = Lab(networks(), limits=Limits(alone=0.05, seconds=0.3))
    app = create_app(lab)
    token = lab.pictures.add(red_picture())
    schema = schemathesis.openapi.from_dict(app.openapi())
    operations = [result.ok() for result in schema.get_all_operations()]
    assert {operation.path for operation in operations} >= {"/api/jobs", "/api/pictures", "/api/looks", "/api/events"}
    with running(lab) as address:
        for operation in operations:

            @settings(max_examples=8, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
                      suppress_health_check=list(HealthCheck))  # fmt: skip
            @schemathesis_given(operation)
            def attempt(case: Any) -> None:
                if isinstance(case.body, dict) and "picture" in case.body and case.body.get("steps", 1) != 2:
                    case.body |= {"network": "colours", "picture": token}  # or hardly any would get further
                answer = case.call(base_url=address, timeout=10)
                assert answer.status_code < 500, (case.as_curl_command(), answer.text)
                if answer.headers["content-type"][0].startswith("application/json"):
                    json.loads(answer.content)

            attempt()
        with connected(address) as client:  # and it still works
            order = {"network": "colours", "picture": token, "steps": 1}
            assert client.post("/api/jobs", json=order).status_code == 201


def schemathesis_given(operation: Any) -> Any:
    from hypothesis import given

    return given(case=operation.as_strategy())
