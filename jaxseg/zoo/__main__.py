"""Lists the published models, or prints all facts of a single one.

Usage: `jaxseg zoo [--json] [PATTERN]`.
"""

import argparse
import dataclasses
import fnmatch
import json
import shutil
import sys
from collections.abc import Iterable, Sequence

from jaxseg.zoo.catalogue import BACKBONES, MODELS, WITHOUT_WEIGHTS, nearest
from jaxseg.zoo.weights import Model, Weights


def score(model: Model) -> str:
    """Returns the published score at a single scale and at several, "-" for an unknown one."""
    if model.mdice is not None:
        return f"Dice {model.mdice:.2f}"
    if model.miou_ss is None:
        return "-"
    return f"{model.miou_ss:.2f}/" + ("-" if model.miou_ms is None else f"{model.miou_ms:.2f}")


# The columns of the table: heading, alignment, cell. The last ones are dropped on narrow terminals.
COLUMNS = (
    ("model", str.ljust, lambda model: model.name),
    ("mIoU ss/ms", str.rjust, score),
    ("params", str.rjust, lambda model: f"{model.params_m}M" if model.params_m else "-"),
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
    known = {**vars(model), "url": model.url or "not published; the recipe can be trained"}
    return "\n".join(f"{name:15}  {fact}" for name, fact in known.items() if fact is not None)


def as_json(rows: Iterable[Weights]) -> str:
    """Returns a JSON list with an object for each model or backbone.

    All objects have the same keys in the same order. null stands for an unknown fact, and for one
    that a backbone does not have.
    """
    nothing = {field.name: None for field in dataclasses.fields(Model)}
    objects = [
        {"kind": "model" if isinstance(row, Model) else "backbone", **nothing, **vars(row)}
        for row in rows
    ]
    return json.dumps(objects, indent=2)


def _text(models, without_weights, backbones):
    """Returns tables of all rows, in blocks with a title each."""
    # A file or a pipe gets all columns.
    width = shutil.get_terminal_size().columns if sys.stdout.isatty() else sys.maxsize
    blocks = []
    if models:
        blocks.append(table(models, width))
    if without_weights:
        title = "without published weights; the recipe can be trained:"
        blocks.append(f"{title}\n{table(without_weights, width)}")
    if backbones:
        title = "pre-trained backbones, to start from (--config.init=zoo:NAME):"
        blocks.append("\n".join([title, *(row.name for row in backbones)]))
    return "\n\n".join(blocks)


def _hint(pattern):
    """Suggests what to search for instead of a pattern that matches nothing."""
    names = [row.name for row in (*MODELS, *WITHOUT_WEIGHTS, *BACKBONES)]
    wider = f"*{pattern.strip('*')}*"
    if fnmatch.filter(names, wider):
        return f"try {wider!r}"
    return f"the nearest are {nearest(pattern, names)}"


def main(arguments: Sequence[str] | None = None):
    parser = argparse.ArgumentParser(
        prog="jaxseg zoo",
        description="Lists the published models, or all facts of a model named in full.",
    )
    parser.add_argument("pattern", nargs="?", default="*", help="such as '*internimage*cityscapes'")
    parser.add_argument("--json", action="store_true", help="print all facts of all rows as JSON")
    options = parser.parse_args(arguments)
    pattern = options.pattern
    groups = [
        [row for row in rows if fnmatch.fnmatchcase(row.name, pattern)]
        for rows in (MODELS, WITHOUT_WEIGHTS, BACKBONES)
    ]
    found = [row for rows in groups for row in rows]
    if not found:
        sys.exit(f"jaxseg: no published model matches {pattern!r}; {_hint(pattern)}")
    if options.json:
        print(as_json(found))
    elif [row.name for row in found] == [pattern]:
        print(facts(found[0]))
    else:
        print(_text(*groups))


if __name__ == "__main__":
    main()
