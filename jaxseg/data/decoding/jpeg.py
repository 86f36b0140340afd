"""Finds out whether a JPEG file is complete, from its markers alone."""

import re

SIGNATURE = b"\xff\xd8"
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, 0xD9
_ALONE = {0x01, *range(0xD0, 0xD9)}  # markers without a length and without content
# A marker. Within a scan, FF00 is a byte of data, and FFD0 to FFD7 only restart the decoder.
_MARKER = re.compile(rb"\xff+([^\x00\xff])")
_MARKER_AFTER_SCAN = re.compile(rb"\xff+([^\x00\xff\xd0-\xd7])")


def fault(content: bytes) -> str | None:
    """Returns what is wrong with a file, or None.

    JPEG has no checksums, but a complete picture ends with a marker. Data behind it belong to
    something else, such as the video of a motion photo, and are not looked at.
    """
    marker, position = _MARKER, len(SIGNATURE)
    while found := marker.search(content, position):
        kind, position = found[1][0], found.end()
        if kind == _END_OF_IMAGE:
            return None
        if kind not in _ALONE:
            position += int.from_bytes(content[position : position + 2])
        marker = _MARKER_AFTER_SCAN if kind == _START_OF_SCAN else _MARKER
    return f"it ends early, after {len(content)} bytes"
