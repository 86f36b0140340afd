"""Writes a model as one file that runs without jaxseg.

    jaxseg export --model NAME|FILE|RUN --size HxW --out model.stablehlo|model.onnx

The file takes RGB images of that size, uint8 [b, h, w, 3], and gives the class of every pixel,
uint8 [b, h, w]. Resizing, normalization, windows and views are inside. FILE.json beside it names
classes and colors.
"""

import argparse
import json
import pathlib
import re
import types
from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax import export as jax_export
from jaxtyping import UInt8

from jaxseg import configure_cpu, pretrained
from jaxseg.atomic_files import replacing, write_bytes, write_text
from jaxseg.distributed import start
from jaxseg.errors import ConfigError, JaxsegError, exit_with_message
from jaxseg.segmenter import Segmenter

PLATFORMS = ("cpu", "cuda", "tpu")
OPSET = 21  # of ONNX
LARGEST_PROTO = 1_900_000_000  # bytes; larger weights lie beside an ONNX file
AGREEMENT = 0.999  # share of pixels whose class must be that of jaxseg

Run = Callable[[UInt8[np.ndarray, "b h w 3"]], Sequence[np.ndarray]]


class ExportError(JaxsegError):
    """A model cannot be exported, or its file does not give the results of the model."""


def export(
    segmenter: Segmenter,
    out: pathlib.Path,
    hw: tuple[int, int],
    batch: int | None = 1,
    probabilities: bool = False,
    dtype: str = "float32",
) -> float:
    """Writes a model to `out` and checks the file against the model.

    Args:
      segmenter: the model.
      out: the file; its suffix, .stablehlo or .onnx, says which format it gets.
      hw: height and width of the images that the file takes.
      batch: number of images that the file takes at a time, or None for any number.
      probabilities: whether the file also gives the class probabilities, float32 [b, h, w, k].
      dtype: the type of the computation, "float32" or "bfloat16".

    Returns:
      The share of the pixels of a test image that get the class that jaxseg gives them.

    Raises:
      ConfigError: for another suffix, or if a package for the format is missing.
      ExportError: if the file does not give the results of the model.
      OutputError: if the file cannot be written.
    """
    if out.suffix not in FORMATS:
        raise ConfigError(f"--out {out}: the file ends with {' or '.join(FORMATS)}")
    function = segmenter.portable(hw, dtype)

    def run(images):
        classes, scores = function(images)
        return (classes, scores) if probabilities else (classes,)

    write, load = FORMATS[out.suffix]
    write(run, out, hw, batch)
    dataset = segmenter.dataset
    facts = {
        "classes": list(dataset.classes),
        "palette": np.asarray(dataset.palette).tolist(),
        "input": {"images": ["uint8", batch, *hw, 3]},
        "outputs": ["classes", "probabilities"][: 1 + probabilities],
        "recipe": segmenter.config.variant,
    }
    write_text(out.with_name(f"{out.name}.json"), json.dumps(facts, indent=1) + "\n")

    image = test_image(hw)
    found, *_ = load(out)(np.repeat(image[None], batch or 1, axis=0))
    share = float(np.mean(np.asarray(found)[0] == segmenter(image).classes))
    if share < AGREEMENT:
        raise ExportError(
            f"{out}: only {share:.2%} of the pixels of a test image have the class that jaxseg"
            " gives them; do not use this file, and please report the model and the versions"
        )
    return share


def test_image(hw: tuple[int, int]) -> UInt8[np.ndarray, "h w 3"]:
    """Returns a picture with coarse and fine structure, for checks."""
    random = np.random.default_rng(0)
    height, width = hw
    coarse = random.integers(0, 200, (-(-height // 16), -(-width // 16), 3))
    picture = np.kron(coarse, np.ones((16, 16, 1), int))[:height, :width]
    return (picture + random.integers(0, 56, (height, width, 3))).astype(np.uint8)


def _write_stablehlo(run, out, hw, batch):
    count = batch or jax_export.symbolic_shape("batch")[0]
    images = jax.ShapeDtypeStruct((count, *hw, 3), np.uint8)
    exported = jax_export.export(jax.jit(run), platforms=PLATFORMS)(images)
    try:
        content = exported.serialize()
    except ImportError as error:
        raise _missing(error) from error
    write_bytes(out, content)


def _load_stablehlo(file) -> Run:
    return jax_export.deserialize(bytearray(file.read_bytes())).call


def _write_onnx(run, out, hw, batch):
    try:
        import jax2onnx
        import onnx
    except ImportError as error:
        raise _missing(error) from error
    images = types.SimpleNamespace(shape=(batch or "batch", *hw, 3), dtype=np.uint8)
    names = ["classes", "probabilities"]
    model = jax2onnx.to_onnx(
        run,
        inputs=[images],
        model_name="jaxseg",
        opset=OPSET,
        input_names=["images"],
        output_names=names[: len(jax.eval_shape(run, jax.ShapeDtypeStruct((1, *hw, 3), np.uint8)))],
    )
    external = model.ByteSize() > LARGEST_PROTO
    with replacing(out) as partial:
        if external:
            onnx.save(model, partial, save_as_external_data=True, location=f"{out.name}.data")
        else:
            partial.write_bytes(model.SerializeToString())


def _load_onnx(file) -> Run:
    import onnxruntime

    onnxruntime.set_default_logger_severity(3)  # errors; it warns of constants that it removes
    session = onnxruntime.InferenceSession(file, providers=["CPUExecutionProvider"])
    return lambda images: session.run(None, {"images": images})


# By suffix: the function that writes a file, and the one that loads it.
FORMATS = {
    ".stablehlo": (_write_stablehlo, _load_stablehlo),
    ".onnx": (_write_onnx, _load_onnx),
}


def _missing(error):
    return ConfigError(
        f"{error}; install the packages for export: pip install 'jaxseg[export]', and for ONNX also"
        " pip install --no-deps jax2onnx"
    )


def _size(text):
    found = re.fullmatch(r"(\d+)x(\d+)", text)
    if not found or "0" in found.groups():
        raise argparse.ArgumentTypeError(
            f"{text!r} is not HEIGHTxWIDTH in pixels, such as 512x1024"
        )
    return int(found[1]), int(found[2])


def _batch(text):
    if text != "symbolic" and not (text.isdigit() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of images, or 'symbolic'")
    return None if text == "symbolic" else int(text)


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="jaxseg export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    pretrained.add_arguments(parser)
    parser.add_argument(
        "--out", required=True, type=pathlib.Path, help="file that ends with .stablehlo or .onnx"
    )
    parser.add_argument("--size", required=True, type=_size, help="HEIGHTxWIDTH of the images")
    parser.add_argument(
        "--batch", type=_batch, default=1, help="images at a time, or 'symbolic' for any number"
    )
    parser.add_argument("--probabilities", action="store_true", help="also give probabilities")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options = parser.parse_args(arguments)
    configure_cpu()
    with exit_with_message("jaxseg export"):
        start.use_compile_cache()
        start.check_platform()
        segmenter = Segmenter.from_pretrained(options.model, options.config)
        share = export(
            segmenter,
            options.out,
            options.size,
            options.batch,
            options.probabilities,
            options.dtype,
        )
        megabytes = options.out.stat().st_size / 1e6
        print(
            f"{options.out}: {megabytes:.1f} MB; {share:.2%} of a test image's pixels as in jaxseg"
        )


if __name__ == "__main__":
    main()
