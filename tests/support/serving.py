"""A server of a tiny model, and how tests speak with it."""

import base64
import contextlib
import http.client
import io
import json
import threading
import time

import numpy as np
from PIL import Image

from jaxseg.data.source import evaluated_on
from jaxseg.export import test_image as picture
from jaxseg.models.segmentation_model import build_model
from jaxseg.segmenter import Segmenter
from jaxseg.selftest import models as small
from jaxseg.serve.app import make_app
from jaxseg.serve.limits import Limits
from jaxseg.serve.server import bind, make_server
from support.tiny import smallest_config

LIMITS = Limits(upload_bytes=10**6, pixels=10**5, upload_seconds=20)


def smallest_segmenter():
    """A model with random weights whose classes depend on the pixels."""
    config = smallest_config()
    model = build_model(config.model)
    return Segmenter(config, evaluated_on(config.data).dataset, model, small.filled(model))


@contextlib.contextmanager
def serving(*segmenters, **options):
    """Serves a model, once for each device, from a thread; yields what sends a request."""
    server = make_server(make_app(segmenters, "tiny", **{"limits": LIMITS} | options))
    with bind("127.0.0.1", 0) as bound:
        port = bound.getsockname()[1]
        thread = threading.Thread(target=server.run, kwargs={"sockets": [bound]})
        thread.start()
        while not server.started:
            time.sleep(0.01)

        def ask(method, path, body=None, **headers):
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            with contextlib.closing(connection):
                connection.request(method, path, body, headers)
                answer = connection.getresponse()
                return answer.status, answer.headers, answer.read()

        ask.port = port
        try:
            yield ask
        finally:
            server.should_exit = True
            thread.join()


def png(pixels):
    content = io.BytesIO()
    Image.fromarray(pixels).save(content, "PNG")
    return content.getvalue()


def pixels(content):
    return np.asarray(Image.open(io.BytesIO(content)))


def of_uri(uri):
    assert uri.startswith("data:image/png;base64,")
    return pixels(base64.b64decode(uri.partition(",")[2]))


def error(content):
    return json.loads(content)["error"]


IMAGE = picture((50, 90))
UPLOAD = png(IMAGE)


def lives(ask):
    status, _, content = ask("POST", "/segment", UPLOAD, Accept="image/png")
    return status == 200 and pixels(content).shape == IMAGE.shape[:2]
