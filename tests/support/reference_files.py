"""Where the recorded numbers of the PyTorch models lie, and how tests read them.

Another recording of the same form is checked by pointing JAXSEG_REFERENCE at it.
"""

import json
import os
import pathlib

import numpy as np

from converters.fill import fill

REFERENCE = pathlib.Path(
    os.environ.get("JAXSEG_REFERENCE", pathlib.Path(__file__).parents[1] / "reference")
)


class Recording:
    """One .npz file: arrays by name, `hparams` decoded, groups of names as dicts."""

    def __init__(self, path: pathlib.Path):
        with np.load(path, allow_pickle=False) as file:
            self.arrays = {name: file[name] for name in file.files}
        self.hparams = self.json("hparams") if "hparams" in self.arrays else {}

    def __getitem__(self, name: str) -> np.ndarray:
        return self.arrays[name]

    def __contains__(self, name: str) -> bool:
        return name in self.arrays

    def json(self, name: str):
        """A field that holds JSON, as text or as bytes."""
        value = self.arrays[name]
        return json.loads(value.tobytes() if value.dtype == np.uint8 else str(value))

    def group(self, prefix: str) -> dict[str, np.ndarray]:
        """The arrays whose names start with `prefix`, without it."""
        return {k.removeprefix(prefix): v for k, v in self.arrays.items() if k.startswith(prefix)}

    def params(self) -> dict[str, np.ndarray]:
        """Parameters and batch statistics by PyTorch name: as stored, or made from their shapes.

        Not the buffers that models compute.
        """
        params = self.group("params/")
        meta = self.json("meta") if "meta" in self else {}
        if meta.get("params_from_fill"):
            params |= {name: fill(name, shape) for name, shape in meta["param_shapes"].items()}
        computed = ("relative_position_index", "bias_mask")
        return {k: v for k, v in params.items() if not k.endswith(computed)}


def recordings(folder: str) -> list[pathlib.Path]:
    """Every recorded file of a folder; an empty folder is an error, not a test less."""
    found = sorted((REFERENCE / folder).glob("*.npz"))
    if not found:
        raise FileNotFoundError(f"no recorded numbers in {REFERENCE / folder}")
    return found


def relative_error(actual, expected) -> float:
    """Largest absolute difference as a share of the largest expected value."""
    actual, expected = np.asarray(actual, np.float64), np.asarray(expected, np.float64)
    assert actual.shape == expected.shape, f"shape {actual.shape}, recorded {expected.shape}"
    largest = np.max(np.abs(expected), initial=1e-30)
    return float(np.max(np.abs(actual - expected), initial=0.0) / largest)
