"""A bucket of Google Cloud Storage on 127.0.0.1, in memory, for gcsfs and for TensorStore."""

import contextlib
import pathlib
import socket
import subprocess
import sys
import time
from collections.abc import Iterator

from support.runs import free_port

BUCKET = "gs://bucket"


@contextlib.contextmanager
def serving_bucket() -> Iterator[dict[str, str]]:
    """Yields the variables of the environment that lead to the bucket."""
    port = free_port()
    program = pathlib.Path(sys.executable).with_name("gcp-storage-emulator")
    options = ["--host=127.0.0.1", f"--port={port}", "--in-memory", "--default-bucket=bucket"]
    with subprocess.Popen([program, "start", *options], stderr=subprocess.DEVNULL) as server:
        try:
            while not _answers(port):
                assert server.poll() is None
                time.sleep(0.05)
            url = f"http://127.0.0.1:{port}"
            yield {
                "STORAGE_EMULATOR_HOST": url,  # for gcsfs
                "TENSORSTORE_GCS_HTTP_URL": url,
                "GOOGLE_AUTH_TOKEN_FOR_TESTING": "none",  # for TensorStore
                "NO_GCE_CHECK": "true",  # there is no metadata server
                "no_proxy": "*",
            }
        finally:
            server.kill()


def _answers(port):
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0
