"""Sliding windows: where they begin, and how their logits are averaged."""

import numpy as np
import pytest

from jaxseg.inference.sliding_window import plan_axis, window_starts


def slide_in_numpy(forward, image, crop_hw, stride_hw):
    """The reference's rule, window by window; returns mean logits and how often a pixel is seen."""
    (height, width), (crop_h, crop_w), (stride_h, stride_w) = image.shape[:2], crop_hw, stride_hw
    total, seen = 0 * forward(image[None])[0], np.zeros((height, width))
    for row in range(max(height - crop_h + stride_h - 1, 0) // stride_h + 1):
        for column in range(max(width - crop_w + stride_w - 1, 0) // stride_w + 1):
            bottom = min(row * stride_h + crop_h, height)
            right = min(column * stride_w + crop_w, width)
            window = np.s_[max(bottom - crop_h, 0) : bottom, max(right - crop_w, 0) : right]
            total[window] += forward(image[window][None])[0]
            seen[window] += 1
    return total / seen[..., None], seen


def differs_by_window(images):
    """Scores of a pixel that depend on the window it is in."""
    return images - images.mean(axis=(1, 2), keepdims=True)


@pytest.mark.parametrize("seed", range(12))
def test_windows_cover_every_pixel_and_are_averaged_as_in_a_plain_loop(seed):
    rng = np.random.default_rng(seed)
    height, width = rng.integers(1, 40, 2).tolist()
    crop = rng.integers(1, 30, 2).tolist()
    stride = [int(rng.integers(1, side + 1)) for side in crop]
    image = rng.standard_normal((height, width, 3)).astype(np.float32)
    expected, seen = slide_in_numpy(differs_by_window, image, crop, stride)
    assert seen.min() >= 1

    crop = np.minimum(crop, (height, width)).tolist()
    rows, columns = (
        plan_axis(size, size, size, *rest, logits)
        for size, *rest, logits in zip((height, width), crop, stride, crop, strict=True)
    )
    windows = [
        [
            differs_by_window(image[None, y : y + crop[0], x : x + crop[1]])[0]
            for x in columns.starts
        ]
        for y in rows.starts
    ]
    logits = np.concatenate([np.concatenate(row, axis=1) for row in windows])
    dense = rows.matrix.toarray(), columns.matrix.toarray()
    found = np.einsum("yp,pqk,xq->yxk", dense[0], logits, dense[1], optimize=True)
    np.testing.assert_allclose(found, expected, atol=1e-5)


@pytest.mark.parametrize(
    ("size", "crop", "stride", "starts"),
    [
        (1024, 896, 512, [0, 128]),  # Cityscapes, ViT-Adapter
        (2048, 896, 512, [0, 512, 1024, 1152]),
        (683, 512, 341, [0, 171]),
        (853, 512, 341, [0, 341]),  # fits: none is moved
        (854, 512, 341, [0, 341, 342]),
        (512, 512, 341, [0]),
    ],
)
def test_window_starts(size, crop, stride, starts):
    assert window_starts(size, crop, stride).tolist() == starts
