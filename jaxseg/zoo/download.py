"""Downloads a large file: resumes after interruptions, checks it, and never leaves it incomplete.

The part that has arrived is kept next to the target in FILE.part. FILE.part.etag holds the version
of the file that it belongs to. FILE itself appears only when it is complete and checked.
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
from collections.abc import Iterator

import filelock
import rich.console
import rich.filesize
import rich.progress

from jaxseg.errors import CheckpointError

CONNECTIONS = 3  # after so many interrupted connections a download fails
TIMEOUT_SECONDS = 30  # without receiving a byte
CHUNK_BYTES = 1 << 18


def fetch(url: str, target: str | os.PathLike, sha256: str | None = None) -> pathlib.Path:
    """Downloads a file unless it exists, and returns its absolute path.

    The length is checked. The sha256 is checked too if it is known, or if the server announces it,
    as Hugging Face does. An interrupted download is resumed by the next call.

    Args:
      url: where to download it; https, or http on this machine.
      target: the path of the file.
      sha256: the hash of the file in hexadecimal, or its first digits; None if it is not known.

    Raises:
      CheckpointError: if the download fails, with the URL and the path to put the file at by hand.
    """
    target = pathlib.Path(target).absolute()
    if target.exists():
        return target
    try:
        if not _is_safe(url):
            raise urllib.error.URLError("only https is accepted")
        target.parent.mkdir(parents=True, exist_ok=True)
        with one_at_a_time(target.parent):
            if not target.exists():  # another process may have downloaded it meanwhile
                _download(url, target, sha256)
    except (OSError, http.client.HTTPException) as error:
        why = error.reason if type(error) is urllib.error.URLError else error
        if isinstance(error, urllib.error.HTTPError):
            error.close()  # the error is also the server's response
        raise CheckpointError(
            f"{target.name} could not be downloaded: {why}\n"
            f"  Get it some other way from {url}\n"
            f"  and put it at {target}"
        ) from error
    return target


def check(path: pathlib.Path, sha256: str):
    """Checks a file that was put in its place by hand.

    Args:
      path: the file.
      sha256: its hash in hexadecimal, or the first digits.

    Raises:
      CheckpointError: if the file has another hash.
    """
    with path.open("rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if not found.startswith(sha256):
        raise CheckpointError(
            f"{path} has the sha256 {found}, but its authors published {sha256}; it is another"
            " file, or incomplete. Download it again."
        )


@contextlib.contextmanager
def one_at_a_time(folder: pathlib.Path) -> Iterator[None]:
    """Lets one process at a time write into a folder; the others wait."""
    lock = filelock.FileLock(folder / ".lock")
    try:
        lock.acquire(blocking=False)
    except filelock.Timeout:
        _say(f"another process is writing into {folder}; waiting for it")
        lock.acquire()
    try:
        yield
    finally:
        lock.release()


def _download(url, target, published):
    part = target.with_name(f"{target.name}.part")
    for _ in range(CONNECTIONS):
        received, total, announced = _receive(url, part)
        if received == total:
            break
    else:
        raise ConnectionError(
            f"{CONNECTIONS} connections broke off, the last one at {received} of {total} bytes;"
            " the next attempt resumes there"
        )
    if announced or published:
        with part.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
        expected = {announced: "the server announced", published: "its authors published"}
        for wanted, who in expected.items():
            if wanted and not found.startswith(wanted):
                part.unlink()
                _etag_file(part).unlink(missing_ok=True)
                raise OSError(f"the file has the sha256 {found}, but {who} {wanted}")
    part.replace(target)
    _etag_file(part).unlink(missing_ok=True)


def _receive(url, part):
    """Receives the missing bytes of `part` over one connection, as many as arrive.

    Returns:
      The number of bytes received so far, the number of bytes of the whole file, and the announced
      sha256 or None.
    """
    answer, start, sha256 = _request(url, part)
    with answer:
        length = answer.headers.get("Content-Length")
        if length is None:
            raise OSError("the server does not report the length of the file")
        total = start + int(length)
        with part.open("r+b" if start else "wb") as file:
            if not start:  # the old content is removed before the new version is recorded
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
    """Requests the file, or only its missing bytes if the server can resume the same version.

    Returns:
      The server's response, the byte of the file at which it starts, and the announced sha256 or
      None.
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
            answer = error  # the file is now shorter than the part that is here
        if answer.status == http.HTTPStatus.OK:
            return answer, 0, redirects.sha256
        first = answer.headers.get("Content-Range", "").partition("-")[0]
        if first == f"bytes {start}" and answer.headers.get("ETag", etag) == etag:
            return answer, start, redirects.sha256
        answer.close()
    return ask({}), 0, redirects.sha256


class _Redirects(urllib.request.HTTPRedirectHandler):
    """Follows redirects to safe URLs only, and keeps the sha256 that Hugging Face announces.

    Attributes:
      sha256: the announced hash in hexadecimal, or None.
    """

    sha256: str | None = None

    def redirect_request(self, request, file, code, message, headers, url):
        if not _is_safe(url):
            why = f"the server redirects to {url}; only https is accepted"
            raise urllib.error.HTTPError(request.full_url, code, why, headers, file)
        announced = re.fullmatch('"?([0-9a-f]{64})"?', headers.get("X-Linked-ETag", ""))
        if announced:
            self.sha256 = announced[1]
        return super().redirect_request(request, file, code, message, headers, url)


def _is_safe(url):
    """Returns whether a URL is https, or http on this machine."""
    parts = urllib.parse.urlsplit(url)
    local = parts.hostname in ("localhost", "127.0.0.1")
    return parts.scheme == "https" or (parts.scheme == "http" and local)


def _resumable(part):
    """Returns the byte to resume from, 0 for the beginning, and the version of the file."""
    if not part.exists() or not _etag_file(part).exists():
        return 0, ""
    etag = _etag_file(part).read_text()
    if not etag.startswith('"'):  # none, or a weak one, which does not guarantee every byte
        return 0, ""
    # The last byte is fetched again, because a request for bytes after the end is an error.
    return max(part.stat().st_size - 1, 0), etag


def _etag_file(part):
    return part.with_name(f"{part.name}.etag")


def _chunks(answer):
    """Yields received bytes until the end or until the connection breaks off.

    The caller sees from the length which of the two happened.
    """
    with contextlib.suppress(OSError, http.client.HTTPException):
        while chunk := answer.read1(CHUNK_BYTES):  # returns as soon as bytes arrive
            yield chunk


def _say(text):
    rich.console.Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


@contextlib.contextmanager
def _progress(name, start, total):
    """Prints one line, and on a terminal shows a progress bar below it.

    Yields a function that advances the bar by a number of bytes.
    """
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
