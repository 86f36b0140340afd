"""Decides what becomes of every tensor of a PyTorch file and every variable of a model.

Nothing is skipped silently. A tensor is used, or a named rule leaves it out. A variable is read, or
it stays fresh for a named reason. Anything else is an error.
"""

import collections
import dataclasses
import difflib
import re
from collections.abc import Iterable, Mapping

from converters import pretrained, rules
from jaxseg.errors import CheckpointError
from jaxseg.models.transfer import HEADS, Shape, fresh_variables

LISTED = 8  # names that an error message lists per kind
LISTED_BRIEFLY = 2


@dataclasses.dataclass(frozen=True)
class Plan:
    """Describes how a file fits a model.

    Attributes:
      used: PyTorch name -> path of the variable that it becomes.
      derived: path of a variable that the file does not contain as it is -> the rule that derives
        it.
      tables: path of a derived table of relative positions -> what it is made from.
      ignored: PyTorch name -> why the tensor is left out.
      fresh: path of a variable that the file does not contain -> why it keeps its fresh value.
    """

    used: dict[str, str]
    derived: dict[str, str]
    tables: dict[str, pretrained.Table]
    ignored: dict[str, str]
    fresh: dict[str, str]

    @property
    def initial(self) -> dict[str, str]:
        """Returns, by path, why a variable keeps the model's initial value."""
        reasons = self.derived | self.fresh
        return {path: why for path, why in reasons.items() if path not in self.tables}

    def table(self) -> str:
        """Counts the used, derived, ignored and fresh tensors, with a line for every reason."""
        lines = []
        for kind in ("used", "derived", "ignored", "fresh"):
            reasons = getattr(self, kind)
            causes = ["of the file"] * len(reasons) if kind == "used" else reasons.values()
            counts = collections.Counter(causes) or {"": 0}
            lines += [f"  {kind:<8}{count:>6}  {why}".rstrip() for why, count in counts.items()]
        return "\n".join(lines)


def make_plan(
    tensors: Mapping[str, Shape],
    wanted: Mapping[str, Shape],
    *,
    source: str,
    model: str,
    transfer: bool = False,
    window: tuple[int, int] | None = None,
    file_names: Mapping[str, str] | None = None,
) -> Plan:
    """Matches tensors (PyTorch name -> shape) with variables (path -> shape).

    A file without a decode head is a pre-trained backbone. The heads, and whatever the model adds
    to the backbone, then stay fresh.

    Args:
      tensors: the shapes of the file's tensors, by PyTorch name.
      wanted: the shapes of the model's variables, by path.
      source: what messages call the file.
      model: what messages call the model.
      transfer: also accept heads of another kind or number of classes (`jaxseg.models.transfer`),
        and tables of relative positions for another window, as with a pre-trained backbone.
      window: (height, width) of the model's tables of relative positions, in patches; None for
        square windows.
      file_names: the names in the file, by those of `tensors`, if they differ; for messages.

    Raises:
      CheckpointError: if a tensor or a variable has no counterpart. The message lists these names
        with the nearest ones.
    """
    backbone_alone = not any(name.startswith("decode_head.") for name in tensors)
    # Files that hold only a backbone name their tensors without the segmentor's prefix.
    full = {
        name: f"backbone.{name.removeprefix('backbone.')}" if backbone_alone else name
        for name in tensors
    }
    paths = {rules.to_name(path): path for path in wanted}
    expected = {
        name: rules.channels_first_shape(wanted[path], path) for name, path in paths.items()
    }
    reasons = rules.IGNORED + (rules.IGNORED_OF_PRETRAINED if backbone_alone else ())
    ignored = {
        name: why
        for name in tensors
        if full[name] not in expected and (why := _first(reasons, full[name]))
    }
    available = {full[name]: shape for name, shape in tensors.items() if name not in ignored}

    derived, tables, fresh = pretrained.rotary_buffers(available, paths), {}, {}
    if backbone_alone:
        derived |= pretrained.without_layer_scale(available, paths)
        fresh = pretrained.parts_added(available, paths)
    if backbone_alone or transfer:
        fresh |= _fresh_heads(available, wanted)
        file_name = {name: own for own, name in full.items()}
        for name, table in pretrained.relative_tables(available, expected, window).items():
            tables[paths[name]] = dataclasses.replace(table, source=file_name[table.source])
        derived |= {path: table.why for path, table in tables.items()}
    given = wanted.keys() - derived.keys() - fresh.keys()
    fits = {n for n, shape in available.items() if expected.get(n) == shape and paths[n] in given}
    if backbone_alone or transfer:
        dropped = [n for n in available if n.startswith(HEADS) and n not in fits]
        ignored |= {n: f"{n.split('.')[0]} not taken over" for n in dropped}
    used = {name: paths[full[name]] for name in tensors if full[name] in fits}

    sources = {table.source for table in tables.values()}
    placed = used.keys() | ignored.keys() | sources
    unplaced = [full[name] for name in tensors if name not in placed]
    missing = [name for name, path in paths.items() if path in given and name not in fits]
    if unplaced or missing:
        another = 2 * len(used) < len(given)
        verdict = "is of another model than" if another else "does not fit"
        share = f"{len(used)} of the {len(given)} tensors that the model takes are in it"
        own = {full[name]: (file_names or {}).get(name, name) for name in tensors}
        problems = _problems(unplaced, missing, available, expected, own, brief=another)
        advice = [*pretrained.other_grids(available, expected, source)]
        if not backbone_alone and "backbone.patch_embed.proj.weight" in missing:
            advice += [
                "If the file holds all but the backbone, name that file, too: --backbone FILE"
            ]
        if all(name.startswith(HEADS) for name in unplaced + missing):
            advice += [f"To train another head on it, start from it: --config.init={source}"]
        lines = "\n".join([problems, *advice])
        raise CheckpointError(f"{source} {verdict} {model} ({share}):\n{lines}")
    return Plan(used, derived, tables, ignored, fresh)


def _first(reasons, name: str) -> str | None:
    """Returns the reason of the first pattern that occurs in the name."""
    return next((why for pattern, why in reasons if re.search(pattern, name)), None)


def _fresh_heads(available, wanted):
    shapes = {}
    for name, shape in available.items():
        path = rules.to_path(name, len(shape))
        shapes[path] = rules.channels_last_shape(shape, path)
    return fresh_variables(shapes, wanted)


def _problems(
    unplaced: list[str], missing: list[str], available, expected, own, brief: bool
) -> str:
    """Lists what does not fit, kind by kind, by PyTorch name, with the nearest names.

    Tensors of the file have the file's `own` names. If `brief` is true, fewer names are listed,
    without nearest names.
    """
    unknown = [name for name in unplaced if name not in expected]
    absent = [name for name in missing if name not in available]
    limit = LISTED_BRIEFLY if brief else LISTED
    kinds = {
        "of another shape": [
            f"{own[name]}: {list(available[name])} in the file, {list(expected[name])} in the model"
            for name in unplaced
            if name in expected
        ],
        "in the file only": _with_nearest(unknown, [] if brief else absent or missing, own),
        "in the model only": _with_nearest(absent, [] if brief else unknown, own),
    }
    lines = []
    for kind, entries in kinds.items():
        if entries:
            lines += [f"  {len(entries)} {kind}:", *(f"    {entry}" for entry in entries[:limit])]
            lines += [f"    and {len(entries) - limit} more"] * (len(entries) > limit)
    return "\n".join(lines)


def _with_nearest(names: Iterable[str], others: list[str], own: Mapping[str, str]) -> list[str]:
    lines = []
    for name in names:
        near = [own.get(other, other) for other in difflib.get_close_matches(name, others, n=2)]
        lines.append(own.get(name, name) + (f" (nearest: {', '.join(near)})" if near else ""))
    return lines
