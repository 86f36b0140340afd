"""The server over real sockets: a page, an endpoint, and what it refuses."""

import contextlib
import http.client
import io
import json
import socket
import sys

import numpy as np
import pytest
from PIL import Image, features
from starlette.exceptions import HTTPException

from jaxseg.errors import DataError
from jaxseg.serve.__main__ import main
from jaxseg.serve.server import bind, url_of
from jaxseg.serve.uploads import Upload, decode
from support.serving import (
    IMAGE,
    LIMITS,
    UPLOAD,
    error,
    lives,
    of_uri,
    pixels,
    png,
    serving,
    smallest_segmenter,
)


@pytest.fixture(scope="module")
def segmenter():
    return smallest_segmenter()


@pytest.fixture(scope="module")
def ask(segmenter):
    with serving(segmenter) as ask:
        yield ask


def test_the_page_takes_nothing_from_elsewhere(ask):
    for path, kind in [("/", "html"), ("/page.css", "css"), ("/page.js", "javascript")]:
        status, headers, content = ask("GET", path)
        assert status == 200
        assert headers["Content-Type"] == f"text/{kind}; charset=utf-8"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["Content-Security-Policy"].startswith("default-src 'none'")
        assert b"http:" not in content
        assert b"https:" not in content


def test_the_model_is_described(ask, segmenter):
    status, _, content = ask("GET", "/model")
    facts = json.loads(content)
    assert status == 200
    assert facts["name"] == "tiny"
    assert [entry["name"] for entry in facts["classes"]] == list(segmenter.dataset.classes)
    assert facts["classes"][0]["color"] == np.asarray(segmenter.dataset.palette)[0].tolist()
    assert (facts["most_bytes"], facts["most_pixels"]) == LIMITS[:2]


def test_the_class_map_is_that_of_the_segmenter(ask, segmenter):
    expected = segmenter(IMAGE).classes
    assert len(np.unique(expected)) > 3
    status, headers, content = ask("POST", "/segment", UPLOAD, Accept="image/png")
    assert (status, headers["Content-Type"]) == (200, "image/png")
    np.testing.assert_array_equal(pixels(content), expected)


def test_the_overlay_is_that_of_the_segmenter(ask, segmenter):
    status, _, content = ask("POST", "/segment?overlay", UPLOAD)
    assert status == 200
    np.testing.assert_array_equal(pixels(content), segmenter(IMAGE).overlay())


def test_json_has_shares_class_map_and_confidence(ask, segmenter):
    status, headers, content = ask("POST", "/segment", UPLOAD)
    assert (status, headers["Content-Type"]) == (200, "application/json")
    facts, expected = json.loads(content), segmenter(IMAGE)
    assert (facts["height"], facts["width"]) == IMAGE.shape[:2]
    assert {row["name"]: row["share"] for row in facts["classes"]} == expected.shares()
    assert [row["name"] for row in facts["classes"]] == list(expected.shares())
    names = segmenter.dataset.classes
    assert all(names[row["id"]] == row["name"] for row in facts["classes"])
    np.testing.assert_array_equal(of_uri(facts["class_map"]), expected.classes)
    largest = 255 * expected.probabilities().max(-1)
    np.testing.assert_allclose(of_uri(facts["confidence_map"]), largest, atol=0.51)


def test_an_image_with_too_many_probabilities_has_no_confidence(segmenter):
    limits = LIMITS._replace(probabilities=IMAGE[..., 0].size * 19 - 1)
    with serving(segmenter, limits=limits) as ask:
        facts = json.loads(ask("POST", "/segment", UPLOAD)[2])
    assert facts["confidence_map"] is None
    np.testing.assert_array_equal(of_uri(facts["class_map"]), segmenter(IMAGE).classes)


def npy(array):
    content = io.BytesIO()
    np.save(content, array)
    return content.getvalue()


REFUSED = {
    "a text file": (b"this is no picture\n" * 50, {}, 400, "its format is unknown"),
    "half a file": (UPLOAD[: len(UPLOAD) // 2], {}, 400, "the upload cannot be read"),
    "an array": (npy(IMAGE), {}, 400, "not an image"),
    "nothing": (b"", {}, 400, "no body"),
    "a form": (b"--x", {"Content_Type": "multipart/form-data; boundary=x"}, 415, "not a form"),
    "many pixels": (png(np.zeros((400, 300, 3), np.uint8)), {}, 413, "300 x 400 pixels"),
    "a large file": (bytes(10**6 + 1), {}, 413, "larger than 1 MB"),
    "an unknown kind of answer": (UPLOAD, {"Accept": "text/html"}, 406, "image/png"),
    "another site's page": (UPLOAD, {"Sec_Fetch_Site": "cross-site"}, 403, "other sites"),
    "another host": (UPLOAD, {"Host": "example.org:7860"}, 400, "localhost"),
}


@pytest.mark.parametrize(("body", "headers", "status", "words"), REFUSED.values(), ids=REFUSED)
def test_what_is_refused_and_why(ask, body, headers, status, words):
    found, kind, content = ask("POST", "/segment", body, **headers)
    assert (found, kind["Content-Type"]) == (status, "application/json")
    assert words in error(content)
    assert kind["X-Content-Type-Options"] == "nosniff"
    assert lives(ask)


@pytest.mark.filterwarnings("ignore")  # Pillow's, of damaged files
@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "PPM", "AVIF"])
def test_a_damaged_image_is_read_or_refused(kind):
    if kind == "AVIF" and not features.check("avif"):
        pytest.skip("this Pillow has no AVIF")
    random, whole = np.random.default_rng(0), io.BytesIO()
    Image.fromarray(IMAGE).save(whole, kind)
    for _ in range(100):
        damaged = np.frombuffer(whole.getvalue(), np.uint8).copy()
        places = random.integers(0, random.choice([64, len(damaged)]), 2)
        damaged[places] = random.integers(0, 256, 2)
        try:
            height, width, _ = decode(Upload(damaged.tobytes()), LIMITS).shape
            assert height * width <= LIMITS.pixels
        except (DataError, HTTPException):
            pass


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/segment", 405), ("GET", "/etc", 404)]
)
def test_other_methods_and_paths_are_refused(ask, method, path, status):
    found, _, content = ask(method, path)
    assert found == status
    assert error(content)


def test_the_names_of_this_machine_are_hosts(ask):
    for host in ("localhost", "LOCALHOST:80", "127.0.0.1:1", "[::1]:7860", "[::1]"):
        assert ask("GET", "/", Host=host)[0] == 200
    for host in ("", "[::1", "localhost.example.org", "127.0.0.1.example.org:7860"):
        assert ask("GET", "/", Host=host)[0] == 400


def test_any_host_is_taken_if_the_server_is_public(segmenter):
    with serving(segmenter, hosts=None) as ask:
        assert ask("GET", "/", Host="example.org")[0] == 200


def test_an_upload_of_200_mb_is_refused_before_it_is_sent(ask):
    with socket.create_connection(("127.0.0.1", ask.port), timeout=60) as connection:
        connection.sendall(
            b"POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 200000000\r\n\r\n"
        )
        answer = http.client.HTTPResponse(connection)
        answer.begin()
        assert answer.status == 413
        assert "larger than 1 MB" in error(answer.read())
        with contextlib.suppress(ConnectionError):
            for _ in range(200):
                connection.sendall(bytes(10**6))
    assert lives(ask)


def test_an_upload_without_length_is_refused_when_it_is_too_large(ask):
    def zeros():
        for _ in range(200):
            yield bytes(10**6)

    with contextlib.suppress(ConnectionError):
        status, _, content = ask("POST", "/segment", zeros(), Transfer_Encoding="chunked")
        assert status == 413
        assert "larger than 1 MB" in error(content)
    assert lives(ask)


def test_an_upload_without_length_is_taken(ask):
    status, _, _ = ask("POST", "/segment", iter([UPLOAD[:99], UPLOAD[99:]]))
    assert status == 200


def test_a_slow_upload_is_refused(segmenter):
    with serving(segmenter, limits=LIMITS._replace(upload_seconds=0.2)) as ask:
        with socket.create_connection(("127.0.0.1", ask.port), timeout=60) as connection:
            connection.sendall(
                b"POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx"
            )
            answer = http.client.HTTPResponse(connection)
            answer.begin()
            assert answer.status == 408
        assert lives(ask)


def test_an_address_that_is_taken_is_named(tmp_path):
    with bind("127.0.0.1", 0) as bound:
        bound.listen()
        port = bound.getsockname()[1]
        assert url_of(bound) == f"http://127.0.0.1:{port}"
        with pytest.raises(SystemExit, match=f"--port {port}: .*; choose another"):
            main(["--model", str(tmp_path), "--port", str(port)])


def test_an_unknown_model_is_named(tmp_path):
    with pytest.raises(SystemExit, match="jaxseg serve: "):
        main(["--model", str(tmp_path), "--port", "0"])


def test_missing_packages_are_named_with_their_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.delitem(sys.modules, "jaxseg.serve.server")
    with pytest.raises(SystemExit, match=r"uvicorn is missing.*pip install 'jaxseg\[serve\]'"):
        main(["--model", "any"])


@pytest.mark.parametrize(
    "wrong", [["--port", "70000"], ["--max-megabytes", "0"], ["--max-megapixels", "inf"]]
)
def test_impossible_options_are_refused(wrong, capsys):
    with pytest.raises(SystemExit):
        main(["--model", "any", *wrong])
    assert wrong[0] in capsys.readouterr().err
