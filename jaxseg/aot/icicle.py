"""Draws where the time of a program goes as an icicle: modules from left to right, time downwards.

The file is an SVG that any browser shows. Pointing at a rectangle shows the module's path, its time
and its share.
"""

import colorsys
import re
import xml.etree.ElementTree as ET
from collections.abc import Mapping
from dataclasses import dataclass, field

WIDTH, HEIGHT, HEAD = 1200, 900, 30  # pixels; HEAD is the height of the title
COLUMNS = 6  # levels of modules, with the whole
SMALLEST = 0.6  # pixels; a lower rectangle is not drawn
READABLE = 11.0  # pixels; a lower rectangle has no text
CHARACTER = 6.3  # pixels


@dataclass
class Node:
    """A module, or a direction within it.

    Attributes:
      path: the path of the module.
      seconds: its time with that of all children.
      children: the modules in it, by name.
    """

    path: str
    seconds: float = 0.0
    children: dict[str, "Node"] = field(default_factory=dict)

    def add(self, parts: list[str], seconds: float):
        """Adds time to this module, and to the one within it that the parts of a path name."""
        self.seconds += seconds
        if parts:
            path = f"{self.path}/{parts[0]}" if self.path else parts[0]
            self.children.setdefault(parts[0], Node(path)).add(parts[1:], seconds)


def draw_icicle(modules: Mapping[str, Mapping[str, float]], title: str) -> str:
    """Draws the time of every module as the text of an SVG.

    Args:
      modules: the seconds of every module by direction (`profile_summary.summarize`).
      title: the line above the picture.
    """
    root = Node("")
    for path, row in modules.items():
        for direction, seconds in row.items():
            if seconds:
                root.add([*_parts(path), direction], seconds)
    box = f"0 0 {WIDTH} {HEIGHT + HEAD}"
    svg = ET.Element("svg", xmlns="http://www.w3.org/2000/svg", viewBox=box)
    ET.SubElement(svg, "style").text = "text{font:11px sans-serif} rect{stroke:#fff}"
    ET.SubElement(svg, "text", x="4", y="19").text = title
    if root.seconds:
        _draw(svg, root, "whole program", root.seconds, 0, HEAD, "#d8d8d8")
    return ET.tostring(svg, encoding="unicode")


def _parts(path):
    """Returns the parts of a path; below the second one, modules of one kind are one rectangle."""
    parts = path.split("/")[: COLUMNS - 2]
    return parts[:2] + [re.sub(r"_\d+$", "", part) for part in parts[2:]]


def _draw(svg, node, name, whole, column, top, color):
    height = node.seconds / whole * HEIGHT
    if height < SMALLEST:
        return
    left, width = column * WIDTH / COLUMNS, WIDTH / COLUMNS
    group = ET.SubElement(svg, "g")
    milliseconds, share = node.seconds * 1e3, node.seconds / whole
    ET.SubElement(group, "title").text = f"{node.path or name}: {milliseconds:.2f} ms, {share:.1%}"
    box = {"x": left, "y": top, "width": width, "height": height}
    ET.SubElement(group, "rect", {key: f"{value:.2f}" for key, value in box.items()}, fill=color)
    if height >= READABLE:
        text = f"{name} {milliseconds:.1f} ms"
        label = ET.SubElement(group, "text", x=f"{left + 4:.2f}", y=f"{top + height / 2 + 4:.2f}")
        label.text = text[: int((width - 6) / CHARACTER)]
    children = sorted(node.children.items(), key=lambda item: -item[1].seconds)
    for index, (inner, child) in enumerate(children):
        own = _color(index, len(children)) if column == 0 else color
        _draw(svg, child, inner, whole, column + 1, top, own)
        top += child.seconds / whole * HEIGHT


def _color(index, count):
    red, green, blue = colorsys.hls_to_rgb(0.58 + index / max(count, 1), 0.78, 0.5)
    return f"#{round(red * 255):02x}{round(green * 255):02x}{round(blue * 255):02x}"
