"""Prints docs/reference/config.md: every key of the base config, its default and its comment."""

import ast
import io
import tokenize
from collections.abc import Iterator, Mapping
from pathlib import Path

from jaxseg.recipes import base

HEAD = """\
# Configuration

A recipe is a file with `get_config(variant)`. `jaxseg/recipes/base.py` holds what all recipes start
from; a recipe changes some of it. Any key can be set on the command line:
`--config.optim.lr=3e-5`. `jaxseg show --config FILE:VARIANT` prints the resolved config.

This page is generated from `jaxseg/recipes/base.py` and `configs/custom.py`.
"""
SECTIONS = {
    "data": "Data",
    "loss": "Loss",
    "optim": "Optimizer",
    "mesh": "Devices",
    "checkpoint": "Checkpoints",
    "eval": "Evaluation",
    "profile": "Profile",
}


def comments(source: str) -> dict[int, str]:
    """Returns the comments of a file by line number."""
    tokens = tokenize.generate_tokens(io.StringIO(source).readline)
    return {t.start[0]: t.string[1:].strip() for t in tokens if t.type == tokenize.COMMENT}


def meaning(lines: list[str], notes: Mapping[int, str], first: int, last: int) -> str:
    """Returns the comment behind an entry, or else the lines of comments above it."""
    if last in notes and not lines[last - 1].lstrip().startswith("#"):
        return notes[last]
    above = first - 1
    found = []
    while above in notes and lines[above - 1].lstrip().startswith("#"):
        found.insert(0, notes[above])
        above -= 1
    return " ".join(found)


def entries(file: Path, name: str, prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yields the dotted keys of the dictionary `name` in a file, and their comments."""
    source = file.read_text()
    lines, notes = source.splitlines(), comments(source)
    assigned = {
        target.id: node.value
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }

    def walk(node, prefix):
        for key, value in zip(node.keys, node.values, strict=True):
            path = f"{prefix}{key.value}"
            if isinstance(value, ast.Dict) and value.keys and key.lineno != value.end_lineno:
                yield from walk(value, f"{path}.")
            else:
                yield path, meaning(lines, notes, key.lineno, value.end_lineno)

    yield from walk(assigned[name], prefix)


def row(key: str, default: object, text: str) -> str:
    cell = f"`{default!r}`" if default != "" else '`""`'
    cell, text = (part.replace("|", r"\|") for part in (cell, text))
    return f"| `{key}` | {cell} | {text} |"


def lookup(config: Mapping, key: str) -> object:
    for part in key.split("."):
        config = config[part]
    return config


def page() -> str:
    """Returns the whole page."""
    file = Path(base.__file__)
    rows = {"": []}
    for key, text in entries(file, "BASE"):
        value = lookup(base.BASE, key)
        if key == "model":
            continue
        section = key.partition(".")[0] if "." in key or key in SECTIONS else ""
        if key in ("eval.ss", "eval.ms"):
            rows[section].append(row(key, "see below", text).replace("`'see below'`", "see below"))
        else:
            rows.setdefault(section, []).append(row(key, value, text))
    head = ["| key | default | meaning |", "|---|---|---|"]
    parts = [HEAD, "## The run\n", *head, *rows.pop("")]
    for section, found in rows.items():
        parts += [f"\n## {SECTIONS[section]}\n", *head, *found]
    parts += ["\n## Views of an image in evaluation\n", "The keys of `eval.ss` and `eval.ms`.\n"]
    views = [row(key, base.SINGLE_SCALE[key], text) for key, text in entries(file, "SINGLE_SCALE")]
    parts += [*head, *views]
    custom = file.parents[2] / "configs" / "custom.py"
    parts += ["\n## Your own data\n", "Further keys of `data` in `configs/custom.py`.\n"]
    values = ast.literal_eval(
        next(
            ast.get_source_segment(custom.read_text(), node.value)
            for node in ast.parse(custom.read_text()).body
            if isinstance(node, ast.Assign) and node.targets[0].id == "DATA"
        )
    )
    own = [
        row(key, values[key.removeprefix("data.")], text)
        for key, text in entries(custom, "DATA", "data.")
        if key.removeprefix("data.") not in base.BASE["data"]
    ]
    return "\n".join([*parts, *head, *own]) + "\n"


if __name__ == "__main__":
    print(page(), end="")
