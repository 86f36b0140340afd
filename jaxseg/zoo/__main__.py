"""python -m jaxseg.zoo [PATTERN]: lists the published models; all facts of one that is named."""

import argparse
import fnmatch
import shutil
import sys
from collections.abc import Sequence

from jaxseg.zoo.catalogue import BACKBONES, Model, Weights, find_model, list_models, nearest


def _miou(model):
    if model.miou_ss is None:
        return "-"
    return f"{model.miou_ss:.2f}/" + ("-" if model.miou_ms is None else f"{model.miou_ms:.2f}")


# What the table shows: heading, alignment, cell; the last ones only where there is room for them.
COLUMNS = (
    ("model", str.ljust, lambda model: model.name),
    ("mIoU ss/ms", str.rjust, _miou),
    ("params", str.rjust, lambda model: f"{model.params_m}M"),
    ("FLOPs", str.rjust, lambda model: f"{model.flops_g}G" if model.flops_g else "-"),
    ("training", str.rjust, lambda model: model.train_time or "-"),
    ("config", str.ljust, lambda model: model.config),
)


def table(models: Sequence[Model], width: int) -> str:
    """The models as aligned text of at most `width` columns, as far as the names allow."""
    columns = []
    for heading, justify, cell in COLUMNS:
        cells = [heading, *map(cell, models)]
        columns.append([justify(text, max(map(len, cells))) for text in cells])
    while len(columns) > 1 and sum(len(cells[0]) + 2 for cells in columns) - 2 > width:
        columns.pop()
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def facts(model: Weights) -> str:
    """All that is known of one model or backbone, a line each."""
    known = {name: fact for name, fact in vars(model).items() if fact is not None}
    return "\n".join(f"{name:15}  {fact}" for name, fact in known.items())


def _hint(pattern):
    """What to look for in the place of a pattern that nothing matches."""
    wider = f"*{pattern.strip('*')}*"
    if list_models(wider):
        return f"try {wider!r}"
    return f"the nearest are {nearest(pattern, list_models())}"


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="python -m jaxseg.zoo",
        description="The published models; one that is named in full, with all its facts.",
    )
    parser.add_argument("pattern", nargs="?", default="*", help="such as '*internimage*cityscapes'")
    pattern = parser.parse_args(arguments).pattern
    models = [find_model(name) for name in list_models(pattern)]
    backbones = [row for row in BACKBONES if fnmatch.fnmatchcase(row.name, pattern)]
    if not models and not backbones:
        sys.exit(f"jaxseg: no published model matches {pattern!r}; {_hint(pattern)}")
    named = [row for row in (*models, *backbones) if row.name == pattern]
    if named:
        print(facts(named[0]))
        return
    if models:
        # A file or a filter gets all columns.
        terminal = sys.stdout.isatty()
        print(table(models, shutil.get_terminal_size().columns if terminal else sys.maxsize))
    if backbones:
        print("\npre-trained backbones, to start from (--config.init=zoo:NAME):")
        print("\n".join(row.name for row in backbones))


if __name__ == "__main__":
    main()
