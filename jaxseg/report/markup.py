"""Builds HTML and SVG as a tree of elements.

Text from files (names of classes, paths, settings) enters the tree as text only. It is escaped when
the page is written, so it can never become markup.
"""

import re
import xml.etree.ElementTree as ET
from collections.abc import Iterable
from typing import Any, TypeAlias

Child: TypeAlias = ET.Element | str | Iterable[Any] | None  # an iterable holds more of the same
Attribute: TypeAlias = str | float | bool | None

CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")  # not allowed in HTML


def element(tag: str, *children: Child, **attributes: Attribute) -> ET.Element:
    """Returns an element of HTML or SVG.

    >>> print(render(element("p", "a < b", element("b", "!"), class_="x", data_step=3)))
    <p class="x" data-step="3">a &lt; b<b>!</b></p>

    Args:
      tag: its name.
      children: elements, texts, or iterables of them. None is left out.
      attributes: an underscore at the end of a name is dropped, others become hyphens. True is an
        attribute without a value; False and None are left out.
    """
    made = ET.Element(tag)
    for name, value in attributes.items():
        if value is True:
            value = ""
        if value is not None and value is not False:
            text = f"{value:.6g}" if isinstance(value, float) else str(value)
            made.set(name.rstrip("_").replace("_", "-"), _clean(text))
    for child in _flatten(children):
        if isinstance(child, ET.Element):
            made.append(child)
        elif len(made):
            made[-1].tail = (made[-1].tail or "") + _clean(child)
        else:
            made.text = (made.text or "") + _clean(child)
    return made


def render(root: ET.Element) -> str:
    """Returns an element as HTML."""
    return ET.tostring(root, encoding="unicode", method="html")


def _flatten(children):
    for child in children:
        if isinstance(child, str | ET.Element):
            yield child
        elif child is not None:
            yield from _flatten(child)


def _clean(text):
    """Replaces what a page cannot hold: control characters, and halves of surrogate pairs."""
    return CONTROL.sub("\N{REPLACEMENT CHARACTER}", text.encode(errors="replace").decode())
