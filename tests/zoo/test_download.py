"""Downloads from a server on this machine that breaks off, changes its mind and lies."""

import contextlib
import dataclasses
import hashlib
import http.server
import re
import threading

import pytest
import rich.console

from jaxseg.errors import CheckpointError
from jaxseg.zoo import catalogue, download
from jaxseg.zoo.download import fetch

CONTENT = bytes(range(256)) * 40
CHANGED = CONTENT[::-1] + b"changed"


class Handler(http.server.BaseHTTPRequestHandler):
    """/redirect/FILE leads to /FILE as on Hugging Face; /FILE is the server's `content`."""

    def do_GET(self):
        server = self.server
        server.seen.append((self.path, self.headers.get("Range"), self.headers.get("If-Range")))
        if self.path.startswith("/redirect/"):
            self.send_response(302)
            self.send_header("Location", server.location or self.path.removeprefix("/redirect"))
            self.send_header("X-Linked-ETag", f'"{server.sha256}"')
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif self.path == "/missing":
            self.send_error(404)
        else:
            self.send_content()

    def send_content(self):
        server, content, start = self.server, self.server.content, 0
        asked = re.fullmatch(r"bytes=(\d+)-", self.headers.get("Range", ""))
        same = self.headers.get("If-Range") == server.etag or not server.compares
        if asked and same and server.ranges:
            start = int(asked[1])
            if start >= len(content):
                self.send_error(416)
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        if server.etag:
            self.send_header("ETag", server.etag)
        if server.tells_length:
            self.send_header("Content-Length", str(len(content) - start))
        self.end_headers()
        stop = server.breaks_off.pop(0) if server.breaks_off else len(content)
        with contextlib.suppress(ConnectionError):
            self.wfile.write(content[start:stop])

    def log_message(self, *_):
        pass


@pytest.fixture
def server(monkeypatch):
    monkeypatch.setenv("no_proxy", "*")
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        server.url = f"http://127.0.0.1:{server.server_port}"
        server.content, server.etag, server.location = CONTENT, '"one"', None
        server.sha256 = hashlib.sha256(CONTENT).hexdigest()
        server.ranges = server.compares = server.tells_length = True
        server.breaks_off = []  # at these bytes of the file, one for each connection
        server.seen = []
        thread = threading.Thread(target=server.serve_forever, args=(0.005,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()


@pytest.fixture
def target(tmp_path):
    return tmp_path / "deep" / "model.pth"


def files(target):
    return sorted(path.name for path in target.parent.iterdir() if path.name != ".lock")


def broken_off(server, target, at=5000):
    """Leaves the first bytes of the file, as a program that was killed does."""
    server.breaks_off = [at] * download.CONNECTIONS
    with pytest.raises(CheckpointError, match=f"at {at} of {len(CONTENT)} bytes"):
        fetch(f"{server.url}/file", target)
    assert target.with_name("model.pth.part").read_bytes() == CONTENT[:at]
    assert not target.exists()
    server.seen.clear()


def test_file_is_there_whole_and_alone(server, target):
    assert fetch(f"{server.url}/file", target) == target
    assert target.read_bytes() == CONTENT
    assert files(target) == ["model.pth"]
    assert server.seen == [("/file", None, None)]


def test_empty_file(server, target):
    server.content = b""
    assert fetch(f"{server.url}/file", target).read_bytes() == b""


def test_existing_file_needs_no_network(target):
    target.parent.mkdir()
    target.write_bytes(b"by hand")
    assert fetch("https://nowhere.invalid/file", target).read_bytes() == b"by hand"


def test_broken_connection_is_gone_on_with_at_once(server, target):
    server.breaks_off = [3000, 7000]
    fetch(f"{server.url}/redirect/file", target)
    assert target.read_bytes() == CONTENT
    ranges = [(asked, condition) for path, asked, condition in server.seen if path == "/file"]
    assert ranges == [(None, None), ("bytes=2999-", '"one"'), ("bytes=6999-", '"one"')]


@pytest.mark.parametrize("at", [1, 5000, len(CONTENT) - 1])
def test_later_call_goes_on_where_the_first_stood(server, target, at):
    broken_off(server, target, at)
    fetch(f"{server.url}/file", target)
    assert target.read_bytes() == CONTENT
    assert files(target) == ["model.pth"]
    assert server.seen[0][1] == (f"bytes={at - 1}-" if at > 1 else None)


def test_killed_just_before_the_end(server, target):
    broken_off(server, target)
    target.with_name("model.pth.part").write_bytes(CONTENT)
    fetch(f"{server.url}/file", target)
    assert target.read_bytes() == CONTENT
    assert server.seen == [("/file", f"bytes={len(CONTENT) - 1}-", '"one"')]


@pytest.mark.parametrize("compares", [True, False], ids=["If-Range", "If-Range ignored"])
@pytest.mark.parametrize("content", [CHANGED, CHANGED[:100]], ids=["longer", "shorter"])
def test_changed_file_starts_over(server, target, content, compares):
    broken_off(server, target)
    server.content, server.etag, server.compares = content, '"two"', compares
    fetch(f"{server.url}/file", target)
    assert target.read_bytes() == content
    assert files(target) == ["model.pth"]


@pytest.mark.parametrize("etag", [None, 'W/"weak"'])
def test_without_a_strong_etag_nothing_is_resumed(server, target, etag):
    server.etag, server.breaks_off = etag, [5000]
    fetch(f"{server.url}/file", target)
    assert target.read_bytes() == CONTENT
    assert [asked for _, asked, _ in server.seen] == [None, None]


def test_server_without_ranges_starts_over(server, target):
    server.ranges, server.breaks_off = False, [5000]
    fetch(f"{server.url}/file", target)
    assert target.read_bytes() == CONTENT


def test_sha256_of_the_redirect_is_checked(server, target):
    fetch(f"{server.url}/redirect/file", target)
    assert [path for path, _, _ in server.seen] == ["/redirect/file", "/file"]

    wrong = target.with_name("wrong.pth")
    server.sha256 = "0" * 64
    with pytest.raises(CheckpointError, match=f"announced {'0' * 64}"):
        fetch(f"{server.url}/redirect/file", wrong)
    assert files(wrong) == ["model.pth"]  # the next attempt starts over


def test_no_length_is_no_answer(server, target):
    server.tells_length = False
    with pytest.raises(CheckpointError, match="does not report the length"):
        fetch(f"{server.url}/file", target)
    assert not target.exists()


def test_errors_say_where_from_and_where_to(server, target):
    url = f"{server.url}/missing"
    with pytest.raises(CheckpointError) as caught:
        fetch(url, target)
    message = str(caught.value)
    assert "404" in message
    assert f"from {url}\n" in message
    assert message.endswith(f"put it at {target}")


def test_no_network(server, target):
    server.shutdown()
    server.server_close()
    with pytest.raises(CheckpointError, match=f"refused(.|\n)*{target}"):
        fetch(f"{server.url}/file", target)


@pytest.mark.parametrize("url", ["http://example.com/f", "file:///etc/hostname", "ftp://a/f"])
def test_only_https(server, target, url):
    with pytest.raises(CheckpointError, match="only https"):
        fetch(url, target)
    server.location = url
    # urllib itself refuses a redirect to a file.
    with pytest.raises(CheckpointError, match=r"only https|not allowed"):
        fetch(f"{server.url}/redirect/file", target)
    assert not target.exists()


def test_of_several_at_once_one_downloads(server, target):
    threads = [
        threading.Thread(target=fetch, args=(f"{server.url}/file", target)) for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert target.read_bytes() == CONTENT
    assert len(server.seen) == 1


def test_progress_is_one_line_and_on_a_terminal_a_bar(server, target, capsys, monkeypatch):
    fetch(f"{server.url}/file", target)
    assert capsys.readouterr() == ("", "downloading model.pth, 10.2 kB\n")
    target.unlink()
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(rich.console.Console, "is_terminal", True)
    fetch(f"{server.url}/file", target)
    assert "10.2/10.2 kB" in capsys.readouterr().err


def test_a_gated_file_is_put_in_its_place_by_hand(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path))
    target = tmp_path / "checkpoints" / "dinov3_vits16_pretrain_lvd1689m-08c60483.pth"
    with pytest.raises(CheckpointError) as refused:
        catalogue.fetch_weights("dinov3_vits16_lvd1689m")
    for part in ("ask for access at https://github.com/facebookresearch/dinov3", str(target)):
        assert part in str(refused.value)
    target.parent.mkdir()
    target.write_bytes(b"not these weights")
    with pytest.raises(CheckpointError, match="its authors published 08c60483; it is another file"):
        catalogue.fetch_weights("dinov3_vits16_lvd1689m")
    content = b"these weights"
    row = dataclasses.replace(
        catalogue.find_model("dinov3_vit7b16_ade20k_m2f"),
        sha256=hashlib.sha256(content).hexdigest()[:8],
    )
    monkeypatch.setattr(catalogue, "MODELS", (row,))
    head = target.with_name("dinov3_vit7b16_ade20k_m2f_head-bf307cb1.pth")
    head.write_bytes(content)
    assert catalogue.fetch_weights(row.name) == head
    with pytest.raises(CheckpointError, match="dinov3_vit7b16_pretrain_lvd1689m-a955f4ea"):
        catalogue.fetch_backbone(row.name)
