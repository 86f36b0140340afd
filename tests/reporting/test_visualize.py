"""Pictures show what they claim, at any size."""

import numpy as np
import pytest

from jaxseg.reporting import fonts, visualize

PALETTE = np.array([[128, 64, 128], [0, 0, 142], [107, 142, 35]])
CLASSES = ("road", "car", "vegetation")


def scene(height, width):
    """An image with a car and a tree on a road, and an ignored bottom row of pixels."""
    labels = np.zeros((height, width), np.int32)
    labels[height // 4 : height // 2, : width // 3] = 1
    labels[: height // 2, width // 2 :] = 2
    labels[-1] = 255
    image = np.random.default_rng(0).integers(0, 256, (height, width, 3), np.uint8)
    return image, labels


def count_color(picture, color):
    return int((picture == np.array(color)).all(axis=-1).sum())


@pytest.mark.parametrize("dtype", [np.uint8, np.int32, np.int64])
def test_every_class_gets_its_color_and_everything_else_is_black(dtype):
    labels = np.array([[0, 1, 2], [3, 255, 0]], np.uint8).astype(dtype)
    picture = visualize.colorize(labels, PALETTE)
    assert picture.dtype == np.uint8
    black = [0, 0, 0]
    expected = [[PALETTE[0], PALETTE[1], PALETTE[2]], [black, black, PALETTE[0]]]
    np.testing.assert_array_equal(picture, expected)


def test_negative_labels_are_black_too():
    assert not visualize.colorize(np.array([[-1]]), PALETTE).any()


def test_an_overlay_mixes_color_and_image_and_leaves_ignored_pixels_alone():
    image = np.full((1, 2, 3), 100, np.uint8)
    picture = visualize.overlay(image, np.array([[1, 255]]), PALETTE, alpha=0.5)
    np.testing.assert_array_equal(picture[0], [[50, 50, 121], [100, 100, 100]])


def test_a_full_overlay_is_the_class_map_and_an_empty_one_the_image():
    image, labels = scene(8, 12)
    full = visualize.overlay(image, labels, PALETTE, alpha=1.0)
    np.testing.assert_array_equal(full[:-1], visualize.colorize(labels, PALETTE)[:-1])
    np.testing.assert_array_equal(visualize.overlay(image, labels, PALETTE, alpha=0.0), image)


def test_a_legend_names_the_present_classes_only():
    strip = visualize.legend(CLASSES, PALETTE, present=[0, 2], width=400)
    assert strip.shape[1] == 400
    assert count_color(strip, PALETTE[0]) > 100
    assert count_color(strip, PALETTE[2]) > 100
    assert count_color(strip, PALETTE[1]) == 0


def test_a_legend_of_nothing_takes_no_room():
    assert visualize.legend(CLASSES, PALETTE, present=[], width=400).shape == (0, 400, 3)


def test_a_long_legend_wraps_into_rows_and_loses_no_class():
    palette = np.stack([np.arange(150), np.full(150, 7), np.arange(150)[::-1]], axis=1)
    names = [f"class number {i}" for i in range(150)]
    strip = visualize.legend(names, palette, range(150), width=500)
    one_row = visualize.legend(names, palette, range(2), width=500)
    assert strip.shape[0] > 10 * one_row.shape[0]
    assert all(count_color(strip, color) > 100 for color in palette)


@pytest.mark.parametrize("size", [(32, 64), (128, 256), (1024, 2048), (96, 64), (40, 700)])
def test_a_panel_has_a_readable_size_whatever_the_image(size):
    image, labels = scene(*size)
    panel = visualize.evaluation_panel(image, labels, labels, PALETTE, CLASSES)
    assert panel.dtype == np.uint8
    assert 500 < max(panel.shape) < 4300
    assert panel.shape[1] >= 1000


def test_a_panel_shows_wrong_pixels_in_red_and_a_right_prediction_without():
    image, labels = scene(64, 128)
    image //= 2
    wrong = labels.copy()
    wrong[:32, :64] = 2
    redness = [
        int(((panel[..., 0] > 190) & (panel[..., 1] < 70) & (panel[..., 2] < 70)).sum())
        for panel in (
            visualize.evaluation_panel(image, labels, labels, PALETTE, CLASSES),
            visualize.evaluation_panel(image, labels, wrong, PALETTE, CLASSES),
        )
    ]
    # The image is enlarged four times; what is red without an error is the legend's chip.
    assert redness[1] - redness[0] == pytest.approx(32 * 64 * 16, rel=0.01)


@pytest.mark.parametrize("size", [(64, 128), (300, 700), (1500, 2999), (96, 64), (2111, 37)])
def test_the_pictures_of_a_panel_can_be_cut_out_again(size):
    image, labels = scene(*size)
    panel = visualize.evaluation_panel(image, labels, labels, PALETTE, CLASSES)
    shown, truth, prediction, errors = visualize.cut_panel(panel, size)
    np.testing.assert_array_equal(shown, visualize._fit(image))
    overlay = visualize._fit(visualize.overlay(image, labels, PALETTE, 0.7))
    np.testing.assert_array_equal(truth, overlay)
    np.testing.assert_array_equal(prediction, overlay)
    assert errors.shape == shown.shape
    with pytest.raises(ValueError, match="a panel of"):
        visualize.cut_panel(panel[: panel.shape[0] // 3], size)


def test_ignored_pixels_are_never_wrong():
    image, labels = scene(64, 128)
    prediction = np.where(labels == 255, 1, labels)
    right = visualize.evaluation_panel(image, labels, labels, PALETTE, CLASSES)
    ignored = visualize.evaluation_panel(image, labels, prediction, PALETTE, CLASSES)
    half = right.shape[1] // 2  # the errors are at the right; the legend is the same
    np.testing.assert_array_equal(right[:, half:], ignored[:, half:])


def test_a_sheet_holds_every_sample_and_its_overlay():
    samples = [scene(64, 128) for _ in range(5)]
    images, labels = zip(*samples, strict=True)
    sheet = visualize.contact_sheet(images, labels, PALETTE, columns=2)
    # Two columns and three rows of pairs, enlarged twice, with a frame and gaps of 8 pixels.
    assert sheet.shape == (8 + 3 * (2 * 128 + 4 + 8), 8 + 2 * (256 + 8), 3)
    enlarged = images[4].repeat(2, axis=0).repeat(2, axis=1)
    top = 8 + 2 * (2 * 128 + 4 + 8)
    np.testing.assert_array_equal(sheet[top : top + 128, 8 : 8 + 256], enlarged)


def test_a_sheet_of_large_samples_stays_small():
    image, labels = scene(512, 1024)
    sheet = visualize.contact_sheet([image] * 4, [labels] * 4, PALETTE)
    assert sheet.shape[1] < 2200


def test_a_prediction_keeps_its_pixels_and_gets_a_legend_below():
    image, labels = scene(300, 600)
    picture = visualize.prediction_picture(image, labels, CLASSES, PALETTE)
    np.testing.assert_array_equal(picture[:300], visualize.overlay(image, labels, PALETTE))
    assert all(count_color(picture[300:], color) > 100 for color in PALETTE)


@pytest.mark.usefixtures("unchecked_types")
@pytest.mark.parametrize(
    ("image", "labels", "message"),
    [
        (np.zeros((4, 4, 3), np.float32), np.zeros((4, 4), int), "uint8.*float32"),
        (np.zeros((4, 4), np.uint8), np.zeros((4, 4), int), r"\(4, 4\)"),
        (np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5), int), r"\(4, 5\).*\(4, 4\)"),
    ],
)
def test_what_is_no_image_with_its_labels_is_refused(image, labels, message):
    with pytest.raises(ValueError, match=message):
        visualize.overlay(image, labels, PALETTE)


def test_a_sheet_needs_as_many_label_maps_as_images():
    image, labels = scene(8, 8)
    with pytest.raises(ValueError, match="2 images and 1 label maps"):
        visualize.contact_sheet([image, image], [labels], PALETTE)


SCRIPTS = {"Latin": "Straße", "Spanish": "árbol", "Greek": "δρόμος", "Cyrillic": "дорога"}


@pytest.mark.parametrize("name", SCRIPTS.values(), ids=SCRIPTS)
def test_names_in_these_scripts_are_drawn_as_such(name):
    assert visualize.drawn_names([name]) == [name]
    picture = visualize.legend([name], PALETTE, [0])
    boxes = visualize.legend(["\ufffe" * len(name)], PALETTE, [0])
    assert not np.array_equal(picture, boxes)


def test_a_name_without_a_font_is_a_number_and_listed(monkeypatch):
    monkeypatch.setattr(fonts, "_system_fonts", tuple)
    fonts._file_with.cache_clear()
    classes = ["road", "地面", "tree"]
    assert visualize.drawn_names(classes) == ["road", "class 1", "tree"]
    assert visualize.numbered_names(classes) == ["class 1: 地面"]
    found = visualize.legend(classes, PALETTE, [0, 1])
    np.testing.assert_array_equal(
        found, visualize.legend(["road", "class 1", "tree"], PALETTE, [0, 1])
    )
    fonts._file_with.cache_clear()
