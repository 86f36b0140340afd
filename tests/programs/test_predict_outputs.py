"""`jaxseg predict` with formats, colors, videos and several models."""

import functools
import json
from fractions import Fraction

import numpy as np
import pytest
from PIL import Image

from jaxseg.checkpoints.weights import save_weights
from jaxseg.data.datasets.cityscapes import CITYSCAPES
from jaxseg.errors import ConfigError
from jaxseg.inference.segments import panoptic_segments
from jaxseg.predict import Input, main, predict_files, predict_video
from jaxseg.predictions import video
from jaxseg.reporting import visualize
from jaxseg.segmenter import Segmenter
from support.random_segmenters import MASK2FORMER, photo, random_model, random_segmenter

HW = (60, 100)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run's directory."""
    path = tmp_path_factory.mktemp("run")
    config, variables = random_model()
    save_weights(path, variables, config.to_dict())
    return path


@pytest.fixture(scope="module")
def segmenter():
    return random_segmenter()


@pytest.fixture
def image(tmp_path):
    Image.fromarray(photo(HW)).save(tmp_path / "photo.png")
    return tmp_path / "photo.png"


def read(path):
    with Image.open(path) as picture:
        return np.asarray(picture)


def test_all_formats_of_one_call(run, segmenter, image, tmp_path, capsys):
    out = tmp_path / "out"
    colors = tmp_path / "colors.txt"
    colors.write_text("".join(f"#{k:02x}0000\n" for k in range(19)))
    formats = [f"--format={name}" for name in ("png", "color", "npz", "rle", "panoptic")]
    options = ["--probabilities", "--palette", str(colors)]
    main(["--model", str(run), "--out", str(out), *formats, *options, str(image)])
    files = sorted(str(path.relative_to(out)) for path in out.rglob("*") if path.is_file())
    names = ["panoptic.json", "panoptic/photo.png", "photo.npz", "photo_classes.png"]
    assert files == [*names, "photo_color.png", "predictions.json"]

    classes = read(out / "photo_classes.png")
    np.testing.assert_array_equal(classes, segmenter(photo(HW)).classes)
    assert len(np.unique(classes)) > 2
    np.testing.assert_array_equal(read(out / "photo_color.png")[..., 0], classes)
    with np.load(out / "photo.npz") as arrays:
        np.testing.assert_array_equal(arrays["classes"], classes)
        expected = segmenter.probabilities(photo(HW))
        np.testing.assert_allclose(arrays["probabilities"], expected, atol=1e-3)
    scores = {row["category_id"]: row for row in json.loads((out / "predictions.json").read_text())}
    assert sorted(scores) == np.unique(classes).tolist()
    assert all(0 < row["score"] < 1 for row in scores.values())
    assert scores[int(classes[0, 0])]["category_name"] == CITYSCAPES.classes[classes[0, 0]]
    assert "photo_classes.png" in capsys.readouterr().out


def test_a_folder_with_results_of_every_format_is_predicted_again(segmenter, image, tmp_path):
    entry = Input(image, image.with_suffix("").relative_to(tmp_path))
    everything = ("png", "overlay", "color", "npz", "rle", "panoptic")
    predict_files(segmenter, [entry], tmp_path, written=everything)
    assert [result.path for result in segmenter(tmp_path)] == [image]


def test_mask2former_writes_its_segments(image, tmp_path, monkeypatch):
    # Random weights are sure of nothing.
    every = functools.partial(panoptic_segments, min_confidence=0, min_kept=0)
    monkeypatch.setattr("jaxseg.segmenter.panoptic_segments", every)
    segmenter = random_segmenter(MASK2FORMER)
    entry = Input(image, image.with_suffix("").relative_to(tmp_path))
    predict_files(segmenter, [entry], tmp_path / "out", written=["panoptic"])
    content = json.loads((tmp_path / "out" / "panoptic.json").read_text())
    segments = segmenter.segments(photo(HW))
    assert len(segments.classes) > 1
    (annotation,) = content["annotations"]
    found = [row["category_id"] for row in annotation["segments_info"]]
    assert found == segments.classes.tolist()
    assert np.sum(read(tmp_path / "out/panoptic/photo.png") > 0) == np.sum(segments.masks)


def write_video(path, hw=HW, count=20, rate=25):
    with video.writing(path, hw, Fraction(rate)) as write:
        for number in range(count):
            write(np.roll(photo(hw), 3 * number, axis=1))


def frames_of(path):
    with video.reading(path) as film:
        return film, list(film.frames)


@pytest.mark.parametrize("hw", [HW, (61, 99)], ids=str)
def test_a_video_of_twenty_frames_stays_one(segmenter, tmp_path, hw, capsys):
    write_video(tmp_path / "in.mp4", hw)
    assert predict_video(segmenter, tmp_path / "in.mp4", tmp_path / "out.mp4", 0.7) == 20
    (old, before), (new, after) = map(frames_of, (tmp_path / "in.mp4", tmp_path / "out.mp4"))
    assert len(after) == len(before) == 20
    assert (new.hw, new.rate) == (old.hw, old.rate) == (hw, 25)
    palette = segmenter.dataset.palette
    for number in (0, 19):
        classes = segmenter(before[number]).classes
        expected = visualize.overlay(before[number], classes, palette, 0.7)
        assert np.abs(after[number].astype(int) - expected).mean() < 12
    assert f"20 frames of {hw[1]}x{hw[0]} pixels, 25 a second" in capsys.readouterr().out


def test_frames_between_get_the_classes_of_the_last_one(segmenter, tmp_path, monkeypatch):
    write_video(tmp_path / "in.mp4", count=8)
    drawn, overlay = [], visualize.overlay

    def record(image, labels, palette, alpha):
        drawn.append((image, labels))
        return overlay(image, labels, palette, alpha)

    monkeypatch.setattr(visualize, "overlay", record)
    assert predict_video(segmenter, tmp_path / "in.mp4", tmp_path / "out.mp4", every=3) == 8
    _, frames = frames_of(tmp_path / "in.mp4")
    assert len(frames_of(tmp_path / "out.mp4")[1]) == 8
    for number, (image, labels) in enumerate(drawn):
        np.testing.assert_array_equal(image, frames[number])
        segmented = segmenter(frames[number - number % 3]).classes
        np.testing.assert_array_equal(labels, segmented)


def test_a_video_is_segmented_from_the_command_line(run, tmp_path):
    write_video(tmp_path / "in.mp4", count=3, rate=10)
    files = ["--video", str(tmp_path / "in.mp4"), "--out", str(tmp_path / "new" / "out.mp4")]
    main(["--model", str(run), *files, "--every=2", "--alpha=1"])
    film, frames = frames_of(tmp_path / "new" / "out.mp4")
    assert (film.rate, len(frames)) == (10, 3)
    (tmp_path / "in.mp4").write_text("no video")
    with pytest.raises(SystemExit, match=r"in\.mp4 cannot be read as a video"):
        main(["--model", str(run), *files])
    with pytest.raises(SystemExit, match="would replace the video itself"):
        main(["--model", str(run), *files[:3], files[1]])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--alpha=1.5", "a.png"], "1.5 is not between 0 and 1"),
        (["--alpha=nan", "a.png"], "nan is not between 0 and 1"),
        (["--every=0", "--video=a.mp4"], "0 is not 1 or more"),
        (["--every=2", "a.png"], "--every needs --video"),
        (["--probabilities", "a.png"], "--probabilities needs --format npz"),
        (["--format=gif", "a.png"], "invalid choice"),
        (["--format=png", "--video=a.mp4"], "are for images, not for --video"),
        (["--video=a.mp4", "a.png"], "--video takes no images"),
        ([], "images or folders are needed"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, message, capsys):
    with pytest.raises(SystemExit):
        main(["--model=x", "--out=y", *arguments])
    assert message in capsys.readouterr().err


def test_two_models_with_a_comma_between_them_are_averaged(run, segmenter, image, tmp_path):
    config, variables = random_model(seed=1)
    save_weights(tmp_path / "other", variables, config.to_dict())
    models = f"{run},{tmp_path / 'other'}"
    out = ["--out", str(tmp_path / "out"), "--format=npz", "--probabilities"]
    main(["--model", models, *out, str(image)])
    expected = [one.probabilities(photo(HW)) for one in (segmenter, random_segmenter(seed=1))]
    with np.load(tmp_path / "out" / "photo.npz") as arrays:
        np.testing.assert_allclose(arrays["probabilities"], np.mean(expected, axis=0), atol=1e-3)


def test_the_mean_counts_each_model_once_whatever_its_views_are():
    views = {"eval.protocol": "ms", "eval.ms.ratios": (1.0, 1.0, 1.5), "eval.ms.flip": True}
    windows = {"eval.mode": "slide", "eval.crop_hw": (64, 64), "eval.stride_hw": (43, 43)}
    several = [random_segmenter(), random_segmenter(seed=1, **views, **windows)]
    several.append(random_segmenter(seed=2))
    mean = Segmenter.mean_of(several)
    images = [photo(HW), photo((80, 70)), photo(HW, 3)]
    each = [[one.probabilities(image) for one in several] for image in images]
    assert min(np.abs(np.diff(found, axis=0)).max() for found in each) > 0.01
    expected = [np.mean(found, axis=0) for found in each]
    for image, probabilities in zip(images, expected, strict=True):
        np.testing.assert_allclose(mean.probabilities(image), probabilities, atol=1e-6)
    streamed = list(mean.stream(images, probabilities=True))
    for result, plain, probabilities in zip(streamed, mean(images), expected, strict=True):
        np.testing.assert_allclose(result.probabilities(), probabilities, atol=1e-6)
        np.testing.assert_array_equal(result.classes, plain.classes)
        sure = np.ptp(np.sort(probabilities, axis=-1)[..., -2:], axis=-1) > 1e-5
        np.testing.assert_array_equal(result.classes[sure], probabilities.argmax(-1)[sure])
    nested = Segmenter.mean_of([Segmenter.mean_of(several[:2]), several[2]])
    np.testing.assert_array_equal(nested.probabilities(images[0]), mean.probabilities(images[0]))
    assert Segmenter.mean_of(several[:1]) is several[0]


def test_models_of_other_classes_are_not_averaged(segmenter):
    other = random_segmenter(name="potsdam", **{"data.val_dataset": "potsdam"})
    with pytest.raises(ConfigError, match="a model and potsdam cannot be averaged") as raised:
        Segmenter.mean_of([segmenter, other])
    assert "class 0 is 'road' in the first" in str(raised.value)
    with pytest.raises(ConfigError, match="no model is named"):
        Segmenter.from_pretrained([])


def test_a_mean_has_no_segments_and_is_not_exported():
    one = random_segmenter(MASK2FORMER)
    mean = Segmenter.mean_of([one, random_segmenter(MASK2FORMER, name="another")])
    assert one.has_segments
    assert not mean.has_segments
    with pytest.raises(ConfigError, match=r"the mean of a model \+ another"):
        mean.segments(photo(HW))
    with pytest.raises(ConfigError, match="one model can be exported"):
        mean.portable(HW)
