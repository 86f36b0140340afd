"""Segments from hand-made queries, whose result follows by reasoning; and from a checkpoint."""

import sys

import jax
import numpy as np
import pytest

from jaxseg.checkpoints.weights import save_weights
from jaxseg.data import transforms
from jaxseg.data.source import evaluated_on
from jaxseg.errors import ConfigError
from jaxseg.inference.segments import Segments, instance_segments, panoptic_segments
from jaxseg.models.segmentation_model import apply_model, build_model, variable_shapes
from jaxseg.ops.resize import resize_bilinear
from jaxseg.recipes import base
from jaxseg.segmenter import Segmenter
from support.small_mask2former import HEAD
from support.tiny import tiny_config


def read(how, shares, masks, num_classes=2, hw=None, **options):
    """Segments of queries with these probabilities of classes [q, k + 1] and pixels [q, h, w]."""
    shares, masks = np.array(shares, np.float32), np.array(masks, np.float32)
    hw = hw or masks.shape[1:]
    with np.errstate(divide="ignore"):
        logits = np.log(masks) - np.log1p(-masks)
        return how(np.log(shares), logits, hw, hw, num_classes, **options)


def test_each_pixel_goes_to_the_largest_product_of_class_and_mask():
    shares = [[0.9, 0.05, 0.05], [0.05, 0.85, 0.1]]
    masks = [[[0.9, 0.9, 0.9, 0.6, 0.1]], [[0.1, 0.1, 0.1, 0.9, 0.9]]]  # 0.54 < 0.765
    masks, classes, confidences = read(panoptic_segments, shares, masks, min_kept=0.7)
    np.testing.assert_array_equal(masks[:, 0], [[1, 1, 1, 0, 0], [0, 0, 0, 1, 1]])
    np.testing.assert_array_equal(classes, [0, 1])
    np.testing.assert_allclose(confidences, [0.9, 0.85], rtol=1e-6)
    assert masks.dtype == bool


def test_a_segment_needs_its_share_of_its_own_mask():
    shares = [[0.85, 0.05, 0.1], [0.05, 0.95, 0.0]]
    won = np.array([0.9, 0.9, 0.9, 0.9, 0.6])  # four of five pixels
    rival = np.array([0.1, 0.1, 0.1, 0.1, 0.9])
    enough = read(panoptic_segments, shares, [[won], [rival]])
    np.testing.assert_array_equal(enough.classes, [1, 0])
    np.testing.assert_array_equal(enough.masks.sum((1, 2)), [1, 4])
    # Three of five; the other does not get what is left over.
    won[3], rival[3] = 0.6, 0.9
    fewer = read(panoptic_segments, shares, [[won], [rival]])
    np.testing.assert_array_equal(fewer.masks, [[[0, 0, 0, 1, 1]]])
    np.testing.assert_array_equal(fewer.classes, [1])
    assert len(read(panoptic_segments, shares, [[won], [rival]], min_kept=0.6).classes) == 2


def test_a_segment_ends_where_its_mask_does():
    masks, *_ = read(panoptic_segments, [[0.9, 0.05, 0.05]], [[[0.9, 0.5, 0.4, 0.0]]])
    np.testing.assert_array_equal(masks, [[[1, 1, 0, 0]]])


def test_unsure_queries_and_those_without_an_object_take_nothing():
    shares = [[0.1, 0.05, 0.85], [0.78, 0.12, 0.1], [0.05, 0.82, 0.13]]
    masks = [[[0.99, 0.99]], [[0.99, 0.99]], [[0.6, 0.6]]]
    found = read(panoptic_segments, shares, masks)
    np.testing.assert_array_equal(found.classes, [1])
    np.testing.assert_array_equal(found.masks, [[[1, 1]]])
    # With a lower bar the second takes both pixels, and nothing is left of the third.
    np.testing.assert_array_equal(
        read(panoptic_segments, shares, masks, min_confidence=0.7).classes, 0
    )
    # One without an object never takes part.
    found = read(panoptic_segments, shares[:1], masks[:1], min_confidence=0.0)
    assert found.masks.shape == (0, 1, 2)
    assert found.classes.shape == found.confidences.shape == (0,)


def test_of_equal_queries_the_first_gets_the_pixels():
    shares = [[0.9, 0.05, 0.05]] * 2
    found = read(panoptic_segments, shares, [[[0.9, 0.9]], [[0.9, 0.9]]])
    np.testing.assert_array_equal(found.masks, [[[1, 1]]])


def test_overlapping_segments_keep_all_of_their_masks():
    shares = [[0.2, 0.3, 0.5], [0.9, 0.05, 0.05], [0.9, 0.05, 0.05]]
    masks = [[[1.0, 0.75, 0.5, 0.4]], [[0.6, 0.6, 0.1, 0.1]], [[0.4, 0.1, 0.1, 0.1]]]
    found = read(instance_segments, shares, masks)
    # The last mask is empty. The first query has a class though "no object" is likelier.
    np.testing.assert_array_equal(found.classes, [0, 1])
    np.testing.assert_array_equal(found.masks[:, 0], [[1, 1, 0, 0], [1, 1, 1, 0]])
    np.testing.assert_allclose(found.confidences, [0.9 * 0.6, 0.3 * 0.75], rtol=1e-6)


def test_outputs_beyond_the_classes_are_not_looked_at():
    shares = [[0.05, 0.02, 0.9, 0.03], [0.9, 0.03, 0.05, 0.02]]  # two classes and one output more
    masks = [[[0.9, 0.9]], [[0.6, 0.6]]]
    found = read(panoptic_segments, shares, masks)
    np.testing.assert_array_equal(found.classes, [0])
    np.testing.assert_array_equal(found.masks, [[[1, 1]]])
    found = read(instance_segments, shares, masks)
    np.testing.assert_allclose(found.confidences, [0.9 * 0.6, 0.05 * 0.9], rtol=1e-6)


@pytest.mark.parametrize("how", [panoptic_segments, instance_segments])
def test_logits_are_resized_and_not_probabilities(how):
    # A quarter of the way from 0.9 to 0.001 probabilities would be 0.675, and logits are below 0.
    found = read(how, [[0.9, 0.05, 0.05]], [[[0.9, 0.001]]], hw=(2, 4))
    np.testing.assert_array_equal(found.masks, [[[1, 0, 0, 0]] * 2])
    found = read(how, [[0.9, 0.05, 0.05]], [[[0.9, 0.01]]], hw=(2, 4))
    np.testing.assert_array_equal(found.masks, [[[1, 1, 0, 0]] * 2])


def test_resized_to_the_input_and_then_to_the_image():
    mask_logits = np.random.default_rng(0).normal(size=(3, 6, 8)).astype(np.float32)
    class_logits = np.array([[9, 0, 0], [0, 7, 0], [8, 0, 0]], np.float32)
    found = instance_segments(class_logits, mask_logits, (20, 30), (50, 45), 2)

    maps = np.moveaxis(mask_logits, 0, -1)[None]
    whole = resize_bilinear(resize_bilinear(maps, (20, 30)), (50, 45))
    logits = np.moveaxis(np.asarray(whole[0]), -1, 0)
    means = [np.mean(1 / (1 + np.exp(-x[x >= 0]))) for x in logits]
    confidences = np.max(np.asarray(jax.nn.softmax(class_logits)), axis=1) * means
    order = np.argsort(-confidences)
    np.testing.assert_allclose(found.confidences, confidences[order], rtol=1e-5)
    differ = found.masks != (logits[order] >= 0)
    assert np.all(np.abs(logits[order][differ]) < 1e-5)
    # Resized at once, they would be others.
    at_once = np.moveaxis(np.asarray(resize_bilinear(maps, (50, 45))[0]), -1, 0)[order]
    assert np.mean(found.masks != (at_once >= 0)) > 0.002


@pytest.fixture
def mask2former(tmp_path):
    """A run's directory, config and model with random weights; evaluated in windows."""
    config = tiny_config(**{"data.test_multiple": 32, "eval.crop_hw": (32, 32)})
    config.eval.update({"mode": "slide", "stride_hw": (32, 32)})
    size = {**HEAD, "decoder_layers": 1}
    backbone = config.model.backbone.to_dict()
    config.model = base.mask2former(backbone, num_classes=25, num_queries=8, size=size)
    config.model.dtype = "float32"
    model = build_model(config.model)
    rng = np.random.default_rng(0)

    def of_shape(leaf):
        scale = np.prod(leaf.shape[:-1]) ** -0.5
        drawn = rng.normal(0, scale, leaf.shape) if leaf.ndim > 1 else rng.random(leaf.shape)
        return drawn.astype(np.float32)

    variables = jax.tree.map(of_shape, variable_shapes(model))
    save_weights(tmp_path / "run", variables, config.to_dict())
    return tmp_path / "run", config, model, variables


def test_segments_of_an_image_from_a_checkpoint(mask2former):
    path, config, model, variables = mask2former
    segmenter = Segmenter.from_checkpoint(path)
    image = np.random.default_rng(0).integers(0, 256, (70, 110, 3)).astype(np.uint8)
    masks, classes, confidences = segmenter.segments(image, overlapping=True)
    assert masks.shape == (len(classes), 70, 110)
    assert len(confidences) > 1
    assert classes.max() < 19  # of 25 outputs
    assert np.all(np.diff(confidences) <= 0)

    # The image in one piece, though the model is evaluated in windows.
    prepared = transforms.test_transform(np.ascontiguousarray(image[..., ::-1]), config.data)
    output, _ = jax.jit(apply_model, static_argnums=0)(model, variables, prepared[None])
    last = output.masks.class_logits[-1, 0], output.masks.mask_logits[-1, 0]
    expected = instance_segments(*last, prepared.shape[:2], (70, 110), 19)
    np.testing.assert_allclose(confidences, expected.confidences, rtol=1e-4)
    assert np.mean(masks == expected.masks) > 0.999

    # Random weights are sure of nothing.
    assert segmenter.segments(image).masks.shape == (0, 70, 110)


def test_a_model_without_queries_is_refused():
    config = tiny_config()
    dataset = evaluated_on(config.data).dataset
    segmenter = Segmenter(config, dataset, build_model(config.model), {})
    with pytest.raises(ConfigError, match=r"mask2former head.*kind=uper"):
        segmenter.segments(np.zeros((64, 64, 3), np.uint8))


def three_segments():
    masks = np.zeros((3, 20, 30), bool)
    masks[0, 5:8, 10:20], masks[1, :, 0], masks[2, 19, 29] = True, True, True
    return Segments(masks, np.array([4, 0, 4]), np.array([0.9, 0.85, 0.8], np.float32))


def test_supervision_gets_masks_boxes_classes_and_confidences():
    from supervision import mask_to_xyxy

    segments = three_segments()
    detections = segments.to_supervision()
    np.testing.assert_array_equal(detections.xyxy, mask_to_xyxy(segments.masks))
    np.testing.assert_array_equal(detections.xyxy[0], [10, 5, 19, 7])
    np.testing.assert_array_equal(detections.mask, segments.masks)
    np.testing.assert_array_equal(detections.class_id, segments.classes)
    np.testing.assert_array_equal(detections.confidence, segments.confidences)
    nothing = Segments(*(part[:0] for part in segments)).to_supervision()
    assert len(nothing) == 0


def test_without_supervision_its_package_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "supervision", None)
    with pytest.raises(ConfigError, match="pip install supervision"):
        three_segments().to_supervision()
