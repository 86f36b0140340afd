"""Requests wait in turn for a device, one at a time on each."""

import contextlib
import json
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import pytest

from jaxseg.segmenter import Segmenter
from support.serving import (
    IMAGE,
    LIMITS,
    UPLOAD,
    error,
    lives,
    pixels,
    png,
    serving,
    smallest_segmenter,
)


class Counted(Segmenter):
    """Counts the images that are computed at a time; they wait for `go`."""

    def __init__(self, segmenter):
        self.__dict__ |= segmenter.__dict__
        self.now, self.most, self.go = 0, 0, threading.Event()
        self.go.set()

    def stream(self, images):
        with self.counting():
            yield from super().stream(images)

    def probabilities(self, image):
        with self.counting():
            return super().probabilities(image)

    @contextlib.contextmanager
    def counting(self):
        self.now += 1
        self.most = max(self.most, self.now)
        self.go.wait(30)
        try:
            yield
        finally:
            self.now -= 1


@pytest.fixture(scope="module")
def segmenter():
    return smallest_segmenter()


def test_twenty_requests_at_once_are_answered_one_at_a_time(segmenter):
    images = [np.roll(IMAGE, 5 * k, axis=(0, 1)) for k in range(20)]
    expected = segmenter(images)  # before, because a model serves one thread at a time
    counted = Counted(segmenter)
    with serving(counted) as ask, ThreadPoolExecutor(20) as pool:
        answers = pool.map(
            lambda image: ask("POST", "/segment", png(image), Accept="image/png"), images
        )
        for found, (status, _, content) in zip(expected, answers, strict=True):
            assert status == 200
            np.testing.assert_array_equal(pixels(content), found.classes)
    assert counted.most == 1


def test_a_full_queue_is_refused_while_the_page_is_answered(segmenter):
    counted = Counted(segmenter)
    counted.go.clear()
    limits = LIMITS._replace(requests=1)
    with serving(counted, limits=limits) as ask, ThreadPoolExecutor(1) as pool:
        admitted = pool.submit(ask, "POST", "/segment", UPLOAD)
        while not counted.now:
            time.sleep(0.01)
        status, headers, content = ask("POST", "/segment", UPLOAD)
        assert status == 503
        assert headers["Retry-After"].isdecimal()
        assert "the queue is full: 1 of 1" in error(content)
        assert ask("GET", "/")[0] == 200
        counted.go.set()
        assert admitted.result()[0] == 200
        assert lives(ask)


def test_every_device_answers_one_request_at_a_time(segmenter):
    devices = jax.local_devices()[:2]
    counted = [Counted(segmenter.on([device])) for device in devices]
    for one in counted:
        one.go.clear()
    with serving(*counted) as ask, ThreadPoolExecutor(6) as pool:
        waiting = [pool.submit(ask, "POST", "/segment", UPLOAD) for _ in range(6)]
        while [one.now for one in counted] != [1, 1]:
            time.sleep(0.01)
        for one in counted:
            one.go.set()
        contents = [json.loads(answer.result()[2]) for answer in waiting]
    assert [one.most for one in counted] == [1, 1]
    assert len({content["class_map"] for content in contents}) == 1


def test_who_leaves_the_queue_is_not_computed(segmenter):
    counted = Counted(segmenter)
    counted.go.clear()
    head = f"POST /segment HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(UPLOAD)}\r\n\r\n"
    with serving(counted) as ask, ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, "POST", "/segment", UPLOAD)
        while not counted.now:
            time.sleep(0.01)
        computed = []
        counted.counting = lambda: computed.append(1) or contextlib.nullcontext()
        for _ in range(3):
            with socket.create_connection(("127.0.0.1", ask.port)) as connection:
                connection.sendall(head.encode() + UPLOAD)
                connection.shutdown(socket.SHUT_WR)
                assert not connection.recv(1)  # the server knows
        counted.go.set()
        assert first.result()[0] == 200
        assert lives(ask)
    assert computed == [1]


def test_a_failure_of_the_model_is_answered_and_logged(segmenter, caplog):
    counted = Counted(segmenter)
    counted.probabilities = lambda image: 1 / 0
    with serving(counted) as ask:
        status, headers, content = ask("POST", "/segment", UPLOAD)
        assert (status, error(content)) == (500, "the server failed; its terminal shows why")
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert lives(ask)
