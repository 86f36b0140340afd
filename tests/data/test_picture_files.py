"""Which files of a folder are read, and what is said of the others."""

import os

import pytest

from jaxseg.data import picture_files
from jaxseg.data.source import evaluated_on, trained_on
from jaxseg.errors import DataError
from jaxseg.predict import find_images
from support.tiny_datasets import custom_config, write_photograph


def touch(folder, *names):
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).touch()


def reasons(found, folder):
    return {path.relative_to(folder).as_posix(): reason for path, reason in found.skipped}


def test_suffixes_count_in_upper_and_lower_case_and_side_by_side(tmp_path):
    names = ["a.jpg", "b.JPG", "c.jpeg", "d.Png", "deep/e.tif", "f.TIFF", "g.webp", "h.bmp"]
    touch(tmp_path, *names, "notes.txt", "film.mp4")
    found = picture_files.find(tmp_path)
    assert found.names == sorted(names)
    assert not found.skipped
    assert picture_files.find(tmp_path, [".jpg"]).names == ["a.jpg", "b.JPG"]


def test_what_is_hidden_or_left_over_is_skipped_and_named(tmp_path):
    touch(tmp_path, "a.jpg", "._a.jpg", ".ipynb_checkpoints/a-checkpoint.jpg", ".hidden.txt")
    touch(tmp_path, "__MACOSX/a.jpg", "deep/@eaDir/b.jpg", "deep/Thumbs.db", "$RECYCLE.BIN/c.png")
    found = picture_files.find(tmp_path)
    assert found.names == ["a.jpg"]
    assert reasons(found, tmp_path) == {
        "._a.jpg": "hidden",
        ".ipynb_checkpoints": "hidden",
        "__MACOSX": "made by macOS",
        "deep/@eaDir": "thumbnails of a Synology disk station",
        "$RECYCLE.BIN": "the bin of Windows",
    }
    assert f"2 skipped (hidden): {tmp_path / '._a.jpg'}, …" in picture_files.describe(found.skipped)


def test_results_of_an_earlier_prediction_are_skipped(tmp_path):
    touch(tmp_path, "a.jpg", "a_classes.png", "a_overlay.png")
    touch(tmp_path, "masks/b_classes.png", "masks/b_overlay.png", "c_overlay.png")
    found = picture_files.find(tmp_path)
    assert found.names == ["a.jpg", "c_overlay.png"]
    assert set(reasons(found, tmp_path).values()) == {"a result of jaxseg predict"}
    images, _ = find_images([str(tmp_path)])
    assert [str(image.name) for image in images] == ["a", "c_overlay"]


def test_results_below_the_images_are_skipped_and_other_pictures_are_not(tmp_path):
    touch(tmp_path, "x/a.jpg", "masks/x/a_color.png", "masks/x/b_color.png", "depth/c_color.png")
    touch(tmp_path, "masks/panoptic/x/a.png", "masks/panoptic.json", "other/panoptic/d.png")
    found = picture_files.find(tmp_path)
    kept = ["depth/c_color.png", "masks/x/b_color.png", "other/panoptic/d.png", "x/a.jpg"]
    assert found.names == kept
    results = {"masks/x/a_color.png", "masks/panoptic"}
    assert reasons(found, tmp_path) == dict.fromkeys(results, "a result of jaxseg predict")


def test_links_are_followed_but_not_in_circles(tmp_path):
    touch(tmp_path / "elsewhere", "x.jpg")
    touch(tmp_path / "set", "a.jpg")
    (tmp_path / "set/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "set/b.jpg").symlink_to(tmp_path / "elsewhere/x.jpg")
    (tmp_path / "set/round").symlink_to(tmp_path / "set")
    found = picture_files.find(tmp_path / "set")
    assert found.names == ["a.jpg", "b.jpg", "more/x.jpg"]
    assert reasons(found, tmp_path / "set") == {"round": "a link to a folder around it"}


def test_a_link_to_nothing_stays_in_the_list_to_fail_by_its_name(tmp_path):
    (tmp_path / "gone.jpg").symlink_to(tmp_path / "nowhere.jpg")
    assert picture_files.find(tmp_path).names == ["gone.jpg"]


def test_what_would_never_end_is_not_opened(tmp_path):
    touch(tmp_path, "a.jpg")
    os.mkfifo(tmp_path / "pipe.jpg")
    found = picture_files.find(tmp_path)
    assert found.names == ["a.jpg"]
    assert reasons(found, tmp_path) == {"pipe.jpg": "not a regular file"}


@pytest.fixture
def mixed(tmp_path):
    """Images of three kinds with masks, one of them hidden, and a mask too many."""
    pairs = {"a.jpg": "a.png", "b.JPG": "b.PNG", "c.png": "c.png"}
    for image, label in pairs.items():
        for split in ("train", "val"):
            write_photograph(tmp_path, f"images/{split}/{image}", f"masks/{split}/{label}")
    write_photograph(
        tmp_path,
        "images/train/.ipynb_checkpoints/a-checkpoint.jpg",
        "masks/train/.ipynb_checkpoints/a-checkpoint.png",
    )
    write_photograph(tmp_path, "images/spare/x.jpg", "masks/train/x.png")
    return custom_config(tmp_path, "a\nb\n")


def test_training_and_evaluation_find_every_kind_of_picture(mixed):
    for source in (trained_on(mixed.data), evaluated_on(mixed.data)):
        assert [sample.name for sample in source.samples()] == ["a", "b", "c"]


def test_the_header_of_a_run_says_what_was_left_out(mixed):
    said = trained_on(mixed.data).summary()
    assert "3 images" in said
    assert "labels without an image (1): " in said
    assert "x.png" in said
    assert "2 skipped (hidden)" in said


def test_pictures_that_a_suffix_leaves_out_are_counted(mixed):
    mixed.data.image_suffix = ".jpg"
    pairs = trained_on(mixed.data).pairs()
    assert [sample.name for sample in pairs.samples] == ["a", "b"]
    assert "it does not end with .jpg" in trained_on(mixed.data).summary()


def test_two_images_for_one_label_are_refused(tmp_path):
    for name in ("a.jpg", "a.png"):
        write_photograph(tmp_path, f"images/train/{name}", "masks/train/a.png")
    with pytest.raises(DataError, match=r"a\.jpg and .*a\.png have the same name"):
        trained_on(custom_config(tmp_path, "a\nb\n").data).samples()


def test_masks_beside_their_images_are_no_images(tmp_path):
    write_photograph(tmp_path, "train/a.png", "train/a_mask.png")
    layout = {"images": "{split}", "labels": "{split}", "label_suffix": "_mask.png"}
    (sample,) = trained_on(custom_config(tmp_path, "a\nb\n", **layout).data).samples()
    assert sample.name == "a"
