"""Verifies the checksums of PNG files, and extracts the first rows without the others.

A PNG is compressed from top to bottom. This module decompresses only as much as the first rows
need, with a library that is faster than those of the decoders. It puts the decompressed data as
they are into a PNG of these rows alone. A decoder then undoes the filters of the rows.
"""

import itertools
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from isal import isal_zlib

SIGNATURE = b"\x89PNG\r\n\x1a\n"
_CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}  # by color type
_HEADER = ">IIBBBBB"  # width, height, bits, color type, compression, filters, interlacing


def fault(content: bytes) -> str | None:
    """Returns what is wrong with a file, by its checksums, or None.

    The checksums cover everything except the lengths of the blocks.
    """
    for kind, start, end in _blocks(content):
        checksum = int.from_bytes(content[end - 4 : end])
        if isal_zlib.crc32(memoryview(content)[start + 4 : end - 4]) != checksum:
            return f"its {kind.decode('latin-1')} block at byte {start} fails its checksum"
        if kind == b"IEND":
            return None
    return f"it ends early, after {len(content)} bytes"


@dataclass(frozen=True)
class PngRows:
    """Holds a PNG file, taken apart so that its first rows can be extracted.

    Attributes:
      header: the header's fields, in the order of `_HEADER`.
      before: the blocks between the header and the compressed data.
      data: the compressed data.
      after: the blocks after the compressed data.
    """

    header: tuple[int, ...]
    before: bytes
    data: bytes
    after: bytes

    @property
    def bits(self) -> int:
        """The bits of each value."""
        return self.header[2]

    @property
    def hw(self) -> tuple[int, int]:
        """The (height, width) of the picture."""
        width, height = self.header[:2]
        return height, width

    def first(self, count: int) -> bytes | None:
        """Returns an uncompressed PNG file of the first `count` rows, or None for damaged data.

        Damage further down in the data goes unnoticed.
        """
        width, height, bits, color_type, *methods = self.header
        count = min(count, height)
        # Each row begins with the number of its filter.
        size = count * (1 + (width * bits * _CHANNELS[color_type] + 7) // 8)
        inflate = isal_zlib.decompressobj()
        try:
            filtered = inflate.decompress(self.data, size)
        except isal_zlib.error:  # pyright: ignore[reportGeneralTypeIssues]  (its stub says less)
            return None
        if len(filtered) < size or (count == height and not inflate.eof):
            return None
        header = struct.pack(_HEADER, width, count, bits, color_type, *methods)
        blocks = (*_block(b"IHDR", header), self.before, *_block(b"IDAT", *_stored(filtered)))
        return b"".join((SIGNATURE, *blocks, self.after))


def rows(content: bytes) -> PngRows | None:
    """Takes an undamaged PNG file apart, so that its first rows can be extracted.

    Returns:
      The parts of the file. None if it is not a PNG, or if its rows are not stored in the order in
      which they are shown: because it is interlaced, animated, or rotated by its metadata.
    """
    if not content.startswith(SIGNATURE + b"\0\0\0\rIHDR"):
        return None
    blocks = list(_blocks(content))
    header = struct.unpack_from(_HEADER, content, blocks[0][1] + 8)
    data = [block for block in blocks if block[0] == b"IDAT"]
    if (
        not data
        or any(before[2] != after[1] for before, after in itertools.pairwise(data))
        or any(kind in (b"eXIf", b"acTL") for kind, _, _ in blocks)
        or header[3] not in _CHANNELS
        or header[6] != 0
    ):
        return None
    return PngRows(
        header,
        before=content[blocks[0][2] : data[0][1]],
        data=b"".join(content[start + 8 : end - 4] for _, start, end in data),
        after=content[data[-1][2] :],
    )


def uncompressed(content: bytes) -> bytes:
    """Returns the same picture as an uncompressed PNG file, which decodes faster.

    If `rows` cannot take the file apart, `content` itself is returned.
    """
    found = rows(content)
    return (found and found.first(found.hw[0])) or content


def _blocks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """Yields (kind, start, end) of every complete block, which PNG calls a chunk.

    A block consists of length, kind, data and checksum.
    """
    start = len(SIGNATURE)
    while start + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        if end > len(content):
            return
        yield kind, start, end
        start = end


def _block(kind: bytes, *parts: bytes | memoryview) -> Iterator[bytes | memoryview]:
    """Yields the pieces of a block in order."""
    checksum = isal_zlib.crc32(kind)
    for part in parts:
        checksum = isal_zlib.crc32(part, checksum)
    yield struct.pack(">I4s", sum(map(len, parts)), kind)
    yield from parts
    yield struct.pack(">I", checksum)


def _stored(data: bytes) -> Iterator[bytes | memoryview]:
    """Yields the pieces of a zlib stream (RFC 1950, 1951) whose parts are not compressed."""
    yield b"\x78\x01"
    longest, view = 2**16 - 1, memoryview(data)
    for start in range(0, len(data), longest):
        part = view[start : start + longest]
        last = start + longest >= len(data)
        yield struct.pack("<BHH", last, len(part), len(part) ^ 0xFFFF)
        yield part
    yield struct.pack(">I", isal_zlib.adler32(data))
