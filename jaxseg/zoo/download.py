"""A large file from the web: resumed where it broke off, checked, and never there in part.

What has arrived is kept beside the target in FILE.part, and in FILE.part.etag which version of the
file it is a part of. FILE itself appears when everything is there and the checks hold.
"""

import contextlib
import hashlib
import http.client
import os
import pathlib
import re
import urllib.error
import urllib.parse
import urllib.request

import filelock
import rich.console
import rich.filesize
import rich.progress

from jaxseg.errors import CheckpointError

CONNECTIONS = 3  # how many may break off before a download is given up
TIMEOUT_SECONDS = 30  # without a byte
CHUNK_BYTES = 1 << 18


def fetch(url: str, target: str | os.PathLike) -> pathlib.Path:
    """The path of the file `target`, downloaded from `url` unless it exists.

    The length is checked, and the sha256 where the server tells it, as Hugging Face does. A
    download that was interrupted, by whatever, goes on where it stood at the next call.

    Raises:
      CheckpointError: where it cannot be had, with the URL and the place to put the file by hand.
    """
    target = pathlib.Path(target).absolute()
    if target.exists():
        return target
    try:
        if not _is_safe(url):
            raise urllib.error.URLError("only https is taken")
        target.parent.mkdir(parents=True, exist_ok=True)
        with _one_at_a_time(target.parent):
            if not target.exists():  # another process may just have been at it
                _download(url, target)
    except (OSError, http.client.HTTPException) as error:
        why = error.reason if type(error) is urllib.error.URLError else error
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # it is the server's answer, too
        raise CheckpointError(
            f"{target.name} could not be downloaded: {why}\n"
            f"  Get it some other way from {url}\n"
            f"  and put it at {target}"
        ) from error
    return target


@contextlib.contextmanager
def _one_at_a_time(folder):
    """Of all processes, one downloads into a folder; the others wait here for their turn."""
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        _say(f"another process is downloading into {folder}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download(url, target):
    part = target.with_name(f"{target.name}.part")
    for _ in range(CONNECTIONS):
        received, total, sha256 = _receive(url, part)
        if received == total:
            break
    else:
        raise ConnectionError(
            f"{CONNECTIONS} connections broke off, the last one at {received} of {total} bytes;"
            " the next attempt goes on from there"
        )
    if sha256:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        if found != sha256:
            part.unlink()
            _etag_file(part).unlink()
            raise OSError(f"what arrived has the sha256 {found}, the server announced {sha256}")
    part.replace(target)
    _etag_file(part).unlink(missing_ok=True)


def _receive(url, part):
    """Takes over one connection as much as comes of what is missing of `part`.

    Returns how many bytes are there, how many there should be, and the sha256 announced or None.
    """
    answer, start, sha256 = _request(url, part)
    with answer:
        length = answer.headers.get("Content-Length")
        if length is None:
            raise OSError("the server does not say how long the file is")
        total = start + int(length)
        with part.open("r+b" if start else "wb") as file:
            if not start:  # the old content is gone before the new version is noted
                _etag_file(part).write_text(answer.headers.get("ETag", ""))
            file.seek(start)
            with _progress(part.stem, start, total) as advance:
                for chunk in _chunks(answer):
                    file.write(chunk)
                    advance(len(chunk))
            file.flush()
            os.fsync(file.fileno())
            return file.tell(), total, sha256


def _request(url, part):
    """The server's answer, at which byte of the file it starts, and the sha256 announced or None.

    It goes on from what is there, if that is of the same version and the server can do so.
    """
    redirects = _Redirects()
    opener = urllib.request.build_opener(redirects)

    def ask(headers):
        request = urllib.request.Request(url, headers={"User-Agent": "jaxseg", **headers})
        return opener.open(request, timeout=TIMEOUT_SECONDS)

    start, etag = _resumable(part)
    if start:
        try:
            answer = ask({"Range": f"bytes={start}-", "If-Range": etag})
        except urllib.error.HTTPError as error:
            if error.code != http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
                raise
            answer = error  # the file has become shorter than what is here
        if answer.status == http.HTTPStatus.OK:
            return answer, 0, redirects.sha256
        first = answer.headers.get("Content-Range", "").partition("-")[0]
        if first == f"bytes {start}" and answer.headers.get("ETag", etag) == etag:
            return answer, start, redirects.sha256
        answer.close()
    return ask({}), 0, redirects.sha256


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Goes only to safe places, and keeps the sha256 that Hugging Face sends along."""

    sha256: str | None = None

    def redirect_request(self, request, file, code, message, headers, url):
        if not _is_safe(url):
            why = f"the server leads to {url}; only https is taken"
            raise urllib.error.HTTPError(request.full_url, code, why, headers, file)
        announced = re.fullmatch('"?([0-9a-f]{64})"?', headers.get("X-Linked-ETag", ""))
        if announced:
            self.sha256 = announced[1]
        return super().redirect_request(request, file, code, message, headers, url)


def _is_safe(url):
    """https anywhere, http within this machine."""
    parts = urllib.parse.urlsplit(url)
    local = parts.hostname in ("localhost", "127.0.0.1")
    return parts.scheme == "https" or (parts.scheme == "http" and local)


def _resumable(part):
    """The byte from which to go on (0: from the beginning), and the version of the file."""
    if not part.exists() or not _etag_file(part).exists():
        return 0, ""
    etag = _etag_file(part).read_text()
    if not etag.startswith('"'):  # none, or a weak one, which does not vouch for every byte
        return 0, ""
    # The last byte is fetched again: to ask for what comes after the end would be an error.
    return max(part.stat().st_size - 1, 0), etag


def _etag_file(part):
    return part.with_name(f"{part.name}.etag")


def _chunks(answer):
    """What comes, until the end or until the connection breaks off; the length tells which."""
    with contextlib.suppress(OSError, http.client.HTTPException):
        while chunk := answer.read1(CHUNK_BYTES):  # as soon as it comes
            yield chunk


def _say(text):
    rich.console.Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _progress(name, start, total):
    """Yields a function to be told of bytes that came. One line, and on a terminal a bar below."""
    console = rich.console.Console(stderr=True)
    _say(f"downloading {name}, {rich.filesize.decimal(total - start)}")
    columns = (
        rich.progress.BarColumn(bar_width=None),
        rich.progress.DownloadColumn(),
        rich.progress.TransferSpeedColumn(),
        rich.progress.TimeRemainingColumn(),
    )
    disable = not console.is_interactive
    with rich.progress.Progress(*columns, console=console, disable=disable, expand=True) as bar:
        task = bar.add_task(name, total=total, completed=start)
        yield lambda count: bar.advance(task, count)
