"""Lists the published models, or prints all facts of a single one.

Usage: `jaxseg zoo [PATTERN]`.
"""

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


# The columns of the table: heading, alignment, cell. The last ones are dropped on narrow terminals.
COLUMNS = (
    ("model", str.ljust, lambda model: model.name),
    ("mIoU ss/ms", str.rjust, _miou),
    ("params", str.rjust, lambda model: f"{model.params_m}M"),
    ("FLOPs", str.rjust, lambda model: f"{model.flops_g}G" if model.flops_g else "-"),
    ("training", str.rjust, lambda model: model.train_time or "-"),
    ("config", str.ljust, lambda model: model.config),
)


def table(models: Sequence[Model], width: int) -> str:
    """Returns the models as aligned text, at most `width` characters wide.

    Only the names of the models may exceed the width.
    """
    columns = []
    for heading, justify, cell in COLUMNS:
        cells = [heading, *map(cell, models)]
        columns.append([justify(text, max(map(len, cells))) for text in cells])
    while len(columns) > 1 and sum(len(cells[0]) + 2 for cells in columns) - 2 > width:
        columns.pop()
    return "\n".join("  ".join(row).rstrip() for row in zip(*columns, strict=True))


def facts(model: Weights) -> str:
    """Returns all known facts of one model or backbone, one per line."""
    known = {name: fact for name, fact in vars(model).items() if fact is not None}
    return "\n".join(f"{name:15}  {fact}" for name, fact in known.items())


def _hint(pattern):
    """Suggests what to search for instead of a pattern that matches nothing."""
    wider = f"*{pattern.strip('*')}*"
    if list_models(wider):
        return f"try {wider!r}"
    return f"the nearest are {nearest(pattern, list_models())}"


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="jaxseg zoo",
        description="Lists the published models, or all facts of a model named in full.",
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
        # A file or a pipe gets all columns.
        terminal = sys.stdout.isatty()
        print(table(models, shutil.get_terminal_size().columns if terminal else sys.maxsize))
    if backbones:
        print("\npre-trained backbones, to start from (--config.init=zoo:NAME):")
        print("\n".join(row.name for row in backbones))


if __name__ == "__main__":
    main()
