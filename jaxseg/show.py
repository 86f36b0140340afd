"""Shows what a config means before training (`--mode show`)."""

import collections
import contextlib
import pathlib
from collections.abc import Sequence

import numpy as np
from ml_collections import ConfigDict

from jaxseg import parameter_paths
from jaxseg.atomic_files import write_png, write_text
from jaxseg.config import flatten_config, set_flat
from jaxseg.data.class_proposal import propose_classes
from jaxseg.data.fit import fit_settings
from jaxseg.data.pipeline import training_batches
from jaxseg.data.source import Source, evaluated_on, trained_on
from jaxseg.data.survey import survey
from jaxseg.errors import DataError, OutputError
from jaxseg.inference.image_sizes import check_image_sizes
from jaxseg.models import flops, kernels
from jaxseg.models.segmentation_model import build_model, variable_shapes
from jaxseg.reporting import visualize
from jaxseg.workdir import WorkDirectory
from jaxseg.zoo import catalogue

SAMPLES = 12
PROPOSAL = "names.txt"
WHOLE = "model"  # the last row of the model's table


def show(config: ConfigDict, workdir: str | pathlib.Path):
    """Prints the resolved config, the parameters and a survey of the data; writes `samples.png`.

    For a user's own data without a file of class names, it writes a proposal, `names.txt`, instead.

    Args:
      config: the resolved config.
      workdir: where the files are written.

    Raises:
      ConfigError: for sizes that the model cannot take.
      DataError: if the data are missing or faulty, after the config and the model were printed.
      OutputError: if a file cannot be written.
    """
    if "class_lines" in config.data and not config.data.class_lines:
        propose(config, workdir)
        return
    chosen = {}
    with contextlib.suppress(DataError):  # what is missing is told below, after the model
        chosen = fit_settings(config)
    set_flat(config, chosen)
    check_image_sizes(config)
    print(settings_table(config))
    print(f"kernels: {kernels.describe_kernels(config.model)}")
    print(model_table(config))
    if chosen:
        print("chosen from the data (config.data.fit); give a setting to set it yourself:")
        print("".join(f"  --config.{key}={_argument(value)}\n" for key, value in chosen.items()))
    faults = sum(
        show_data(source) for source in (trained_on(config.data), evaluated_on(config.data))
    )
    if faults:
        raise DataError(
            f"{faults} faults in the data, listed above; training and evaluation would stop at them"
        )
    with WorkDirectory(workdir) as directory:
        write_png(directory.folder / "samples.png", sample_sheet(config))
    print(f"augmented training samples in {directory.path / 'samples.png'}")


def propose(config: ConfigDict, workdir: str | pathlib.Path):
    """Prints a proposal for the file of class names, and writes it to `names.txt`.

    Raises:
      DataError: if there are no labels, or they do not hold classes.
      OutputError: if the file cannot be written, or exists with other content.
    """
    text = "\n".join(propose_classes(config.data)) + "\n"
    print(text, end="")
    with WorkDirectory(workdir) as directory:
        file = directory.folder / PROPOSAL
        if file.exists() and file.read_text("utf-8") != text:
            raise OutputError(
                f"{file} exists with other names, and is kept. To use it, set"
                f" --config.data.classes={file}; for a new proposal, remove it or choose another"
                " --workdir"
            )
        write_text(file, text)
    print(
        f"a proposal for the file of class names is in {directory.path / PROPOSAL}; edit the names,"
        " and set config.data.classes to it"
    )


def settings_table(config: ConfigDict) -> str:
    """Formats a config with a line for each setting, by the key that changes it."""
    flat = sorted(flatten_config(config.to_dict()).items())
    width = max(len(key) for key, _ in flat)
    lines = (f"{f'config.{key}':<{width + 7}}  {_argument(value)}" for key, value in flat)
    return "\n".join(map(str.rstrip, lines))


def _argument(value):
    return ",".join(map(str, value)) if isinstance(value, tuple) else value


def show_data(source: Source) -> int:
    """Prints a survey of the data and returns the number of faults in them."""
    pairs = source.pairs()
    count = len(pairs.samples) + len(pairs.images_alone)
    print(f"{source}: {count} images", flush=True)  # before reading them all, which takes a while
    found = survey(source.dataset, pairs)
    print(found)
    return len(found.faults)


def model_table(config: ConfigDict) -> str:
    """Returns a table of the parameters and FLOPs of the model's parts and their direct children.

    Only shapes are needed. FLOPs are those of one image, counted as in the published tables
    (`jaxseg.models.flops`). If FLOPs of the model are published, they are counted at the published
    image size, so that the same number appears.
    """
    model = build_model(config.model)
    published = catalogue.find_recipe(config.variant, config.data.dataset)
    image_hw = (published and published.flops_hw) or config.data.crop_hw
    parameters, operations = collections.Counter(), collections.Counter()
    for path, leaf in parameter_paths.by_path(variable_shapes(model)["params"]).items():
        for part in parts(path.split("/")):
            parameters[part] += leaf.size
    for path, count in flops.count_flops(model, image_hw).items():
        for part in parts(path):
            operations[part] += count
    height, width = image_hw
    lines = [f"{'':<40}{'parameters':>14}{f'GFLOPs at {height}x{width}':>24}"]
    lines += [
        f"{name:<40}{count:>14,}{operations[name] / 1e9:>24,.2f}"
        for name, count in sorted(parameters.items(), key=lambda item: item[0] == WHOLE)
    ]
    if published:
        flops_g = f"{published.flops_g:g} GFLOPs" if published.flops_g else "no FLOPs"
        lines.append(
            f"published: {published.params_m:g} M parameters, {flops_g}"
            f" ({published.name}; the auxiliary head's parameters count, its FLOPs do not)"
        )
    return "\n".join(lines)


def parts(path: Sequence[str]) -> Sequence[str]:
    """Returns the table rows that a module counts in: its part, the child, and the whole model."""
    part, *below = path
    return part, f"  {part}/{below[0]}" if below else f"  {part}/(itself)", WHOLE


def sample_sheet(config: ConfigDict) -> np.ndarray:
    """Draws the first training samples as the model sees them, RGB uint8, with labels below."""
    data = ConfigDict(config.data)
    data.workers = 0
    batch = next(training_batches(data, batch_size=SAMPLES, seed=config.seed))
    images = batch["image"] * np.float32(data.std) + np.float32(data.mean)
    images = np.clip(np.round(images), 0, 255).astype(np.uint8)
    palette = trained_on(data).dataset.palette
    return visualize.contact_sheet(list(images), list(batch["label"]), palette)
