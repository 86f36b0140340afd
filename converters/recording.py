"""Reads recorded inputs and outputs of a model from an .npz, for `converters.verify`."""

import dataclasses
import pathlib
import zipfile

import numpy as np

from jaxseg.errors import CheckpointError

# Names of the tensors here -> their names in the recordings of ViT-Adapter.
NAMES = {
    "backbone/0": "f1",
    "backbone/1": "f2",
    "backbone/2": "f3",
    "backbone/3": "f4",
    "logits": "head_out",
    "output": "encode_decode",
    # Recorded only for some models: the auxiliary head, and Mask2Former's predictions before the
    # first layer of the decoder and after each layer.
    "auxiliary": "aux_out",
    **{f"class_logits/{i}": f"cls_logits/{i}" for i in range(10)},
    **{f"mask_logits/{i}": f"mask_logits/{i}" for i in range(10)},
}
OPTIONAL = ("auxiliary", "class_logits", "mask_logits")


@dataclasses.dataclass(frozen=True)
class Samples:
    """Holds some elements of a tensor.

    Attributes:
      shape: the shape of the tensor, channels first.
      index: the positions of the elements in the flattened tensor.
      values: the elements, in float64 if they were recorded so.
      largest: the largest absolute value of the whole tensor.
    """

    shape: tuple[int, ...]
    index: np.ndarray
    values: np.ndarray
    largest: float


@dataclasses.dataclass(frozen=True)
class Recording:
    """Holds the input that a model was given and its outputs.

    Attributes:
      images: [n, h, w, 3], standard normal.
      tensors: by name: features `backbone/0` to `backbone/3`, `logits`, and `output` (logits at the
        size of the input). Some recordings also have `auxiliary` (logits of the auxiliary head),
        and `class_logits/I` and `mask_logits/I` (prediction I of Mask2Former).
      pixels: the positions of some pixels in the flattened class maps.
      classes: the classes of these pixels.
      margins: by how much the logit of each class exceeds the second best.
    """

    images: np.ndarray
    tensors: dict[str, Samples]
    pixels: np.ndarray
    classes: np.ndarray
    margins: np.ndarray


def read_recording(path: pathlib.Path) -> Recording:
    """Reads a recording in either naming scheme of `NAMES`; nothing in the file is executed.

    Raises:
      CheckpointError: if the file is not an .npz, or lacks an entry, which the message names.
    """
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise CheckpointError(f"{path} is no recording: it cannot be read as an .npz") from error
    try:
        return _recording(arrays)
    except KeyError as error:
        raise CheckpointError(f"{path}: the recording has no entry {error}") from error


def _recording(arrays):
    of_vit_adapter = "f1/shape" in arrays
    index = "idx" if of_vit_adapter else "index"
    names = {name: other if of_vit_adapter else name for name, other in NAMES.items()}
    names = {
        name: other
        for name, other in names.items()
        if not name.startswith(OPTIONAL) or f"{other}/shape" in arrays
    }
    shape = tuple(arrays["input_shape"].tolist())
    generator = np.random.default_rng(int(arrays["input_seed"]))
    images = generator.standard_normal(shape).astype(np.float32)
    return Recording(
        images=np.moveaxis(images, 1, -1),
        tensors={name: _samples(arrays, other, index) for name, other in names.items()},
        pixels=arrays[f"argmax/{index}"],
        classes=arrays["argmax/values"],
        margins=arrays["argmax/margin"],
    )


def _samples(arrays, name, index):
    values = f"{name}/values"
    exact = f"{values}_f64"
    statistics = f"{name}/stats"  # mean, standard deviation, largest absolute value
    largest = arrays[statistics][2] if statistics in arrays else arrays[f"{name}/absmax"]
    return Samples(
        shape=tuple(arrays[f"{name}/shape"].tolist()),
        index=arrays[f"{name}/{index}"],
        values=arrays[exact if exact in arrays else values],
        largest=float(largest),
    )
