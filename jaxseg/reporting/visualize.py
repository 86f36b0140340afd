"""Draws class maps in color, overlays, legends, and panels of ground truth and prediction.

Images are RGB uint8 [h, w, 3]. Labels are class indices [h, w] of any integer type. An index
without a color, such as 255 (ignored), is no class. Palettes are RGB [k, 3]. Every public function
returns an image. Text grows with the picture, so a panel is equally readable at 256 and at 2048
pixels.
"""

import math
from collections.abc import Iterable, Sequence

import cv2
import numpy as np
from jaxtyping import Integer, UInt8
from PIL import Image, ImageDraw

from jaxseg.reporting.fonts import drawable, load_font

Picture = UInt8[np.ndarray, "h w 3"]
Canvas = UInt8[np.ndarray, "H W 3"]
Labels = Integer[np.ndarray, "h w"]
Palette = Integer[np.ndarray, "k 3"]

PAPER = 255
INK = (45, 45, 45)
WRONG = (229, 32, 32)
IGNORED = (150, 150, 150)

SMALL, LARGE = 512, 1024  # bounds in pixels of the longer side of a panel's pictures


def colorize(labels: Labels, palette: Palette) -> Picture:
    """Returns a class map with every class in its color and all other pixels black."""
    colors = np.zeros((len(palette) + 1, 3), np.uint8)
    colors[:-1] = palette
    return colors[np.where(_has_class(labels, palette), labels.astype(np.int32), len(palette))]


def overlay(image: Picture, labels: Labels, palette: Palette, alpha: float = 0.5) -> Picture:
    """Blends the colors of the classes over an image.

    Args:
      image: the image.
      labels: the class map.
      palette: the color of each class.
      alpha: the opacity of the colors, from 0 to 1. Pixels without a class stay as they are.

    Raises:
      ValueError: for an image that is not RGB uint8, or labels of another size.
    """
    _check(image, labels)
    blended = cv2.addWeighted(image, 1 - alpha, colorize(labels, palette), alpha, 0)
    return np.where(_has_class(labels, palette)[..., None], blended, image)


def legend(
    classes: Sequence[str],
    palette: Palette,
    present: Iterable[int],
    width: int = 1024,
    extra: Sequence[tuple[str, tuple[int, int, int]]] = (),
) -> Canvas:
    """Draws a strip of color chips with class names, in as many rows as needed.

    A name that no font can draw is replaced by the number of its class (`drawn_names`).

    Args:
      classes: the name of each class.
      palette: the color of each class.
      present: the classes to show.
      width: the width of the strip in pixels.
      extra: names and colors of further chips, drawn after those of the classes.

    Returns:
      An image [*, width, 3], of height 0 if there is nothing to name.
    """
    names = drawn_names(classes)
    entries = [(names[i], tuple(int(c) for c in palette[i])) for i in present]
    entries += extra
    if not entries:
        return np.full((0, width, 3), PAPER, np.uint8)
    size = _font_size(width)
    fonts = {name: load_font(size, name) for name, _ in entries}
    chip, gap, line = round(1.5 * size), round(0.5 * size), round(1.7 * size)
    widest = max(font.getlength(name) for name, font in fonts.items())
    column = min(math.ceil(chip + gap + widest + 1.5 * size), width)
    columns = width // column
    rows = math.ceil(len(entries) / columns)
    strip = Image.new("RGB", (width, size + rows * line), (PAPER,) * 3)
    draw = ImageDraw.Draw(strip)
    for number, (name, color) in enumerate(entries):
        row, place = divmod(number, columns)
        x, y = place * column, size + row * line
        draw.rectangle((x, y, x + chip, y + size), fill=color, outline=INK)
        draw.text((x + chip + gap, y + size / 2), name, INK, fonts[name], anchor="lm")
    return np.asarray(strip)


def drawn_names(classes: Sequence[str]) -> list[str]:
    """Returns the names as they can be drawn: "class 3" if no font here has the characters."""
    return [name if drawable(name) else f"class {k}" for k, name in enumerate(classes)]


def numbered_names(classes: Sequence[str]) -> list[str]:
    """Returns a line "class K: NAME" for each name that pictures show by its number."""
    drawn = drawn_names(classes)
    return [f"{short}: {name}" for short, name in zip(drawn, classes, strict=True) if short != name]


def evaluation_panel(
    image: Picture,
    truth: Labels,
    prediction: Labels,
    palette: Palette,
    classes: Sequence[str],
) -> Canvas:
    """Draws image, ground truth, prediction and errors with captions, and a legend below them.

    The errors are shown over the dimmed image: wrong pixels red, ignored pixels gray. The legend
    names the classes that occur. Small images are enlarged and large ones reduced. Wide pictures
    stand two by two, tall ones in one row of four.

    Raises:
      ValueError: for an image that is not RGB uint8, or labels of another size.
    """
    _check(image, truth)
    _check(image, prediction)
    labeled = _has_class(truth, palette)
    wrong = labeled & (prediction != truth)
    share = wrong.sum() / max(labeled.sum(), 1)
    pictures = {
        "image": image,
        "ground truth": overlay(image, truth, palette, 0.7),
        "prediction": overlay(image, prediction, palette, 0.7),
        f"errors: {share:.1%} of the labeled pixels": _errors(image, labeled, wrong),
    }
    pictures = {caption: _fit(picture) for caption, picture in pictures.items()}
    _, width, _ = pictures["image"].shape
    columns, size = _panel_grid(image.shape[:2])
    cells = [
        np.concatenate([_caption(caption, width, size), picture])
        for caption, picture in pictures.items()
    ]
    sheet = _grid(cells, columns, gap=size)
    present = _present(palette, truth, prediction)
    extra = [("wrong", WRONG), ("ignored", IGNORED)]
    return _frame(
        np.concatenate([sheet, legend(classes, palette, present, sheet.shape[1], extra)]), size
    )


def cut_panel(panel: Canvas, image_hw: tuple[int, int]) -> list[Picture]:
    """Cuts the four pictures of an `evaluation_panel`: image, truth, prediction and errors.

    Args:
      panel: the panel.
      image_hw: height and width of the image that it was drawn from.

    Raises:
      ValueError: if the panel of such an image would be larger.
    """
    (height, width), (columns, size) = _fitted_hw(image_hw), _panel_grid(image_hw)
    caption = _caption_height(size)
    pictures = []
    for number in range(4):
        row, column = divmod(number, columns)
        y = size + row * (caption + height + size) + caption
        x = size + column * (width + size)
        pictures.append(panel[y : y + height, x : x + width])
    if pictures[-1].shape[:2] != (height, width):
        raise ValueError(f"a panel of {panel.shape[:2]} for an image of {tuple(image_hw)}")
    return pictures


def contact_sheet(
    images: Sequence[Picture], labels: Sequence[Labels], palette: Palette, columns: int = 4
) -> Canvas:
    """Draws a grid of training samples, each above the same sample with its labels laid over it.

    The sheet is at most 2048 pixels wide. Samples of different sizes are aligned at the top left.

    Raises:
      ValueError: for no images, or another number of label maps than of images.
    """
    if not images or len(images) != len(labels):
        raise ValueError(f"a sheet of {len(images)} images and {len(labels)} label maps")
    columns = min(columns, len(images))
    high = min(LARGE, 2 * LARGE // columns)
    cells = []
    for image, label in zip(images, labels, strict=True):
        pair = [_fit(image, 192, high), _fit(overlay(image, label, palette), 192, high)]
        cells.append(_grid(pair, 1, gap=4))
    gap = max(8, cells[0].shape[1] // 32)
    return _frame(_grid(cells, columns, gap), gap)


def prediction_picture(
    image: Picture,
    labels: Labels,
    classes: Sequence[str],
    palette: Palette,
    alpha: float = 0.5,
) -> Canvas:
    """Draws the predicted classes over an image, with a legend of them below it.

    The image keeps its size. Images whose longer side is below 512 pixels are enlarged by a whole
    factor, so that the legend is readable.

    Args:
      image: the image.
      labels: the class map.
      classes: the name of each class.
      palette: the color of each class.
      alpha: the opacity of the colors, from 0 to 1.

    Raises:
      ValueError: for an image that is not RGB uint8, or labels of another size.
    """
    picture = _fit(overlay(image, labels, palette, alpha), SMALL, max(image.shape))
    width = picture.shape[1]
    margin = _font_size(width) // 2
    strip = legend(classes, palette, _present(palette, labels), width - 2 * margin)
    strip = np.pad(strip, ((0, 0), (margin, margin), (0, 0)), constant_values=PAPER)
    return np.concatenate([picture, strip])


def _errors(image, labeled, wrong):
    """Returns the image in dim gray, wrong pixels red and unlabeled pixels light gray."""
    gray = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY) * 0.4
    shade = np.repeat(gray[..., None], 3, axis=2)
    shade[wrong] = 0.25 * shade[wrong] + 0.9 * np.array(WRONG)
    shade[~labeled] = 0.25 * shade[~labeled] + 0.9 * np.array(IGNORED)
    return np.clip(shade, 0, 255).astype(np.uint8)


def _has_class(labels, palette):
    return (labels >= 0) & (labels < len(palette))


def _present(palette, *label_maps):
    """Returns the classes that occur in any of the maps, in ascending order."""
    found = [np.unique(labels[_has_class(labels, palette)]) for labels in label_maps]
    return np.unique(np.concatenate(found)).tolist()


def _check(image, labels):
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3:
        raise ValueError(f"expected RGB uint8 [h, w, 3], found {image.dtype} {image.shape}")
    if labels.shape != image.shape[:2]:
        raise ValueError(f"labels of shape {labels.shape} for an image of {image.shape[:2]}")


def _fit(picture, low=SMALL, high=LARGE):
    """Resizes a picture so that its longer side is from `low` to `high` pixels.

    Pictures are enlarged by a whole factor, which keeps pixels sharp, and reduced by any factor.
    """
    height, width, _ = picture.shape
    new_height, new_width = _fitted_hw((height, width), low, high)
    if new_width > width or new_height > height:
        return picture.repeat(new_height // height, axis=0).repeat(new_width // width, axis=1)
    if (new_height, new_width) != (height, width):
        return cv2.resize(picture, (new_width, new_height), interpolation=cv2.INTER_AREA)
    return picture


def _fitted_hw(hw, low=SMALL, high=LARGE):
    """Returns the height and width that `_fit` gives a picture of `hw`."""
    height, width = (int(side) for side in hw)
    longer = max(height, width)
    if longer < low:
        factor = math.ceil(low / longer)
        return height * factor, width * factor
    if longer > high:
        return max(1, round(height * high / longer)), max(1, round(width * high / longer))
    return height, width


def _panel_grid(image_hw):
    """Returns how many pictures stand in a row of a panel, and the size of its font."""
    height, width = _fitted_hw(image_hw)
    columns = 2 if width >= height else 4
    return columns, _font_size(columns * width)


def _font_size(width):
    return min(max(width // 64, 13), 40)


def _caption_height(size):
    return round(1.5 * size)


def _caption(text, width, size):
    """Draws one line of text [*, width, 3], in a smaller font if it would not fit."""
    strip = Image.new("RGB", (width, _caption_height(size)), (PAPER,) * 3)
    length = load_font(size).getlength(text)
    font = load_font(max(8, min(size, int(size * width / length))))
    ImageDraw.Draw(strip).text((0, 0.7 * size), text, INK, font, anchor="lm")
    return np.asarray(strip)


def _grid(cells, columns, gap):
    """Arranges cells in rows of `columns`, `gap` pixels apart, each as large as the largest."""
    rows = math.ceil(len(cells) / columns)
    height = max(cell.shape[0] for cell in cells) + gap
    width = max(cell.shape[1] for cell in cells) + gap
    sheet = np.full((rows * height - gap, columns * width - gap, 3), PAPER, np.uint8)
    for number, cell in enumerate(cells):
        y, x = np.multiply(divmod(number, columns), (height, width))
        sheet[y : y + cell.shape[0], x : x + cell.shape[1]] = cell
    return sheet


def _frame(picture, margin):
    return np.pad(picture, ((margin, margin), (margin, margin), (0, 0)), constant_values=PAPER)
