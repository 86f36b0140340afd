"""Prints docs/models/zoo.md: the published models and backbones of the catalogue."""

from collections.abc import Iterable

from jaxseg.zoo import dinov3, internimage, vit_adapter
from jaxseg.zoo.catalogue import BACKBONES, MODELS, WITHOUT_WEIGHTS
from jaxseg.zoo.weights import Model

HEAD = f"""\
# Zoo

The published models, with the numbers of their authors: those of
[InternImage](https://github.com/OpenGVLab/InternImage),
[ViT-Adapter](https://github.com/czczup/ViT-Adapter) and [DINOv3](dinov3.md). Nothing in these
tables was measured with jaxseg. `jaxseg zoo` prints the same, and `jaxseg zoo --json` prints it for
programs. `jaxseg convert --zoo NAME --output RUN` downloads a model and converts it.

The weights of InternImage are under the license {internimage.LICENSE}, those of ViT-Adapter under
{vit_adapter.LICENSE}. Those of DINOv3 are under [its own]({dinov3.REPOSITORY})
({dinov3.LICENSE}), and are downloaded by hand after one has asked for access. The datasets have
terms of their own.

mIoU is in percent, at a single scale and at several. FLOPs are multiply-adds of one image. *Log* is
the authors' log of a training run. InternImage's logs on ADE20K are of later runs, whose scores
differ slightly.

The second table of each dataset says how the recipe trains: height and width of the crop, images
per step over all devices, steps, and the weights that training starts from. *Time* is the published
time of all steps, with the number of nodes if there were several. Empty cells were not published.

This page is generated from `jaxseg/zoo`.
"""


def cell(value: object) -> str:
    return "" if value is None else str(value)


def link(text: str, url: str | None) -> str:
    return f"[{text}]({url})" if url else ""


def table(header: Iterable[str], alignment: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    """Returns a Markdown table and an empty line."""
    lines = [header, alignment, *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines) + "\n"


def scores(models: Iterable[Model]) -> str:
    """Returns the table of published scores and costs."""
    header = "name", "mIoU", "multi-scale", "parameters (M)", "GFLOPs", "`--config`", "log"
    alignment = "---", "---:", "---:", "---:", "---:", "---", "---"
    rows = (
        (
            f"`{model.name}`",
            cell(model.miou_ss),
            cell(model.miou_ms),
            cell(model.params_m),
            cell(model.flops_g),
            f"`{model.config}`",
            link("log", model.log_url),
        )
        for model in models
    )
    return table(header, alignment, rows)


def training(models: Iterable[Model]) -> str:
    """Returns the table of the settings of the recipes."""
    header = "`--config`", "crop", "batch", "steps", "starts from", "time"
    alignment = "---", "---:", "---:", "---:", "---", "---:"
    rows = (
        (
            f"`{model.config}`",
            "{}x{}".format(*model.crop_hw),
            str(model.batch_size),
            f"{model.steps:,}",
            f"`{model.start}`",
            cell(model.train_time),
        )
        for model in models
    )
    return table(header, alignment, rows)


def without_weights() -> str:
    """Returns the section of the models whose weights were not published."""
    header = "name", "`--config`", "published", "parameters (M)", "log"
    alignment = "---", "---", "---", "---:", "---"
    rows = []
    for model in WITHOUT_WEIGHTS:
        score = "no score"
        if model.miou_ss is not None:
            score = f"mIoU {model.miou_ss}"
        elif model.mdice is not None:
            score = f"mean Dice {model.mdice}"
        row = f"`{model.name}`", f"`{model.config}`", score, cell(model.params_m)
        rows.append((*row, link("log", model.log_url)))
    return (
        "## Without published weights\n\n"
        "The recipes of these models can be trained.\n\n"
        f"{table(header, alignment, rows)}\n{training(WITHOUT_WEIGHTS)}"
    )


def backbones() -> str:
    """Returns the section of the pre-trained backbones."""
    rows = (
        (f"`{row.name}`", cell(row.license), f"`{row.sha256}`" if row.sha256 else "")
        for row in BACKBONES
    )
    return (
        "## Pre-trained backbones\n\n"
        "To start from, with `--config.init=zoo:NAME`. The last column has the first digits of a\n"
        "file's sha256, where its authors published them. Downloads are checked against them.\n"
        "ViT-Adapter released copies of the weights of AugReg and Uni-Perceiver without a license\n"
        "of their authors.\n\n" + table(("name", "license", "sha256"), ("---", "---", "---"), rows)
    )


def page() -> str:
    """Returns the whole page."""
    parts = [HEAD]
    for dataset in dict.fromkeys(model.dataset for model in MODELS):
        models = [model for model in MODELS if model.dataset == dataset]
        parts += [f"## {dataset}\n", scores(models)]
        parts += [
            f"On the test set, `{model.name}` has {model.miou_test} at several scales.\n"
            for model in models
            if model.miou_test is not None
        ]
        parts.append(training(models))
    parts += [without_weights(), backbones()]
    return "\n".join(parts)


if __name__ == "__main__":
    print(page(), end="")
