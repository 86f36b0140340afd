"""From a name or a file to a model: converted once, and used from then on without a network."""

import contextlib
import dataclasses
import functools
import hashlib
import http.server
import threading

import cv2
import jax
import numpy as np
import pytest
from PIL import Image

from converters import convert, verify
from converters.torch_files import torch_writer
from jaxseg import pretrained
from jaxseg.errors import CheckpointError, ConfigError, DataError, OutputError
from jaxseg.evaluate import evaluate_checkpoint
from jaxseg.predict import main
from jaxseg.segmenter import Segmenter
from jaxseg.zoo import catalogue
from support.tiny import tiny_config

pytestmark = pytest.mark.long

NAME = "upernet_internimage_t_512_160k_ade20k"


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *_):
        pass


@contextlib.contextmanager
def serving(folder):
    handler = functools.partial(Quiet, directory=str(folder))
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.005,))
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """A tiny checkpoint as the originals publish them."""
    path = tmp_path_factory.mktemp("published") / f"{NAME}.pth"
    torch_writer.write_torch_file(path, verify.filled_state_dict(tiny_config()))
    return path


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("JAXSEG_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("no_proxy", "*")
    return tmp_path / "cache"


@pytest.fixture
def publish(monkeypatch, config_file):
    """Publishes the tiny model at a URL under the name of a real one."""

    def publish(url, **changes):
        rows = [
            dataclasses.replace(row, url=f"{url}/{NAME}.pth", config=config_file, **changes)
            if row.name == NAME
            else row
            for row in catalogue.MODELS
        ]
        monkeypatch.setattr(catalogue, "MODELS", tuple(rows))

    return publish


def image_of(hw, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (*hw, 3)).astype(np.uint8)


def test_a_published_model_is_converted_once(published, cache, publish, config_file, tmp_path):
    with serving(published.parent) as url:
        publish(url)
        first = Segmenter.from_pretrained(NAME)
    again = Segmenter.from_pretrained(f"zoo:{NAME}")  # the server is gone
    convert.main(
        ["--checkpoint", str(published), "--config", config_file, "--output", str(tmp_path / "run")]
    )
    by_hand = Segmenter.from_checkpoint(tmp_path / "run")
    image = image_of((64, 128))
    expected = by_hand.probabilities(image)
    np.testing.assert_array_equal(first.probabilities(image), expected)
    np.testing.assert_array_equal(again.probabilities(image), expected)
    assert [path.name for path in (cache / "converted").iterdir() if path.is_dir()] == [NAME]

    cv2.imwrite(str(tmp_path / "photo.png"), image)
    main(["--model", NAME, "--out", str(tmp_path / "out"), str(tmp_path / "photo.png")])
    assert (tmp_path / "out" / "photo_classes.png").exists()


@pytest.mark.full
def test_a_published_model_is_evaluated_by_its_name(published, cache, publish, scenes, tmp_path):
    with serving(published.parent) as url:
        publish(url)
        scores = evaluate_checkpoint(
            f"zoo:{NAME}", tmp_path, None, [f"--config.data.root={scenes}"]
        )
    assert 0 <= scores.miou <= 1
    assert (tmp_path / "metrics.json").exists()


def test_what_is_given_may_be_a_file_an_array_an_image_a_list_or_a_folder(
    published, cache, config_file, tmp_path
):
    segment = Segmenter.from_pretrained(published, config_file)
    images = [image_of((40 + 8 * k, 90), k) for k in range(3)]
    folder = tmp_path / "photos"
    folder.mkdir()
    for k, image in enumerate(images):
        Image.fromarray(image).save(folder / f"{k}.png")
    expected = [segment(image).classes for image in images]
    given = [
        [folder / f"{k}.png" for k in range(3)],
        [str(folder / f"{k}.png") for k in range(3)],
        [Image.fromarray(image) for image in images],
        folder,
        str(folder),
    ]
    for several in given:
        results = segment(several)
        for result, classes in zip(results, expected, strict=True):
            np.testing.assert_array_equal(result.classes, classes)
    result = segment(folder / "1.png")
    np.testing.assert_array_equal(result.image, images[1])
    assert result.path == folder / "1.png"
    assert result.names == segment.dataset.classes
    np.testing.assert_array_equal(result.probabilities().argmax(-1), result.classes)
    assert sum(result.shares().values()) == pytest.approx(1)
    assert result.overlay().shape[2] == 3
    saved = result.save(tmp_path / "masks" / "one")
    assert [path.name for path in saved] == ["one_classes.png", "one_overlay.png"]
    np.testing.assert_array_equal(cv2.imread(str(saved[0]), cv2.IMREAD_UNCHANGED), expected[1])
    with pytest.raises(DataError, match="no images"):
        segment(tmp_path / "masks")  # results alone
    with pytest.raises(ValueError, match="8 bits"):
        segment(Image.new("I;16", (8, 8)))


def test_a_file_is_converted_once_for_each_config(published, cache, config_file, tmp_path):
    paths = [pretrained.find(published, config_file) for _ in range(2)]
    copy = tmp_path / "another.pth"
    copy.write_bytes(published.read_bytes())
    paths.append(pretrained.find(copy, config_file))
    assert paths[0] == paths[1] != paths[2]
    with pytest.raises(ConfigError, match=r"another\.pth does not say which model"):
        pretrained.find(copy)


def test_wrong_names_get_the_nearest(cache):
    with pytest.raises(ConfigError, match="no such file or directory") as raised:
        Segmenter.from_pretrained("upernet_internimage_t_512_160k_ade20")
    assert NAME in str(raised.value)
    with pytest.raises(CheckpointError, match="no checkpoint in"):
        Segmenter.from_pretrained(cache.parent)


def test_without_a_network_the_url_and_the_place_are_named(cache, publish):
    publish("http://127.0.0.1:1")
    with pytest.raises(CheckpointError, match=r"http://127\.0\.0\.1:1") as raised:
        Segmenter.from_pretrained(NAME)
    assert str(cache / "checkpoints") in str(raised.value)
    assert not (cache / "converted").exists()


def test_a_broken_or_another_file_is_refused(published, cache, publish, tmp_path):
    (tmp_path / "broken").mkdir()
    content = published.read_bytes()
    (tmp_path / "broken" / published.name).write_bytes(content[: len(content) // 2])
    digest = hashlib.sha256(content).hexdigest()
    with serving(tmp_path / "broken") as url:
        publish(url, sha256=digest[:8])
        with pytest.raises(CheckpointError, match=f"its authors published {digest[:8]}"):
            Segmenter.from_pretrained(NAME)
        assert not list((cache / "checkpoints").glob("*.pth"))
        publish(url, sha256=None)
        with pytest.raises(CheckpointError, match=NAME):
            Segmenter.from_pretrained(NAME)
        assert not (cache / "converted" / NAME).exists()
    with serving(published.parent) as url:
        publish(url, sha256=digest[:8])
        (cache / "checkpoints" / published.name).unlink()
        Segmenter.from_pretrained(NAME)


def test_a_full_cache_says_so_and_leaves_nothing(published, cache, config_file, monkeypatch):
    def full(*_):
        raise OutputError("cannot write it: No space left on device; free some space")

    monkeypatch.setattr(convert, "save_weights", full)
    with pytest.raises(OutputError, match=r"No space left on device(.|\n)*JAXSEG_CACHE"):
        Segmenter.from_pretrained(published, config_file)
    assert not [path for path in (cache / "converted").iterdir() if path.is_dir()]


def test_a_backbone_alone_segments_nothing(cache, config_file, tmp_path):
    backbone = {
        name.removeprefix("backbone."): value
        for name, value in verify.filled_state_dict(tiny_config()).items()
        if name.startswith("backbone.")
    }
    torch_writer.write_torch_file(tmp_path / "backbone.pth", backbone)
    with pytest.raises(CheckpointError, match=r"no weights for .*decode_head"):
        Segmenter.from_pretrained(tmp_path / "backbone.pth", config_file)


@pytest.mark.full
def test_on_eight_devices_images_are_the_same_bits(published, cache, config_file):
    one = Segmenter.from_pretrained(published, config_file)
    eight = Segmenter.from_pretrained(published, config_file, jax.local_devices())
    sizes = [(64, 128), (60, 90), (90, 60), (50, 100)]
    images = [image_of(sizes[k % 4], k) for k in range(64)]
    for together, image in zip(eight.stream(iter(images)), images, strict=True):
        np.testing.assert_array_equal(together.classes, one(image).classes)
    np.testing.assert_array_equal(eight.probabilities(images[0]), one.probabilities(images[0]))
