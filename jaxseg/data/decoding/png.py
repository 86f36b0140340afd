"""PNG files: their checksums, and the first rows of one without the others.

The data of a PNG are compressed from the top to the bottom. As much of them as the first rows need
is decompressed here, by a library that is faster at it than those of the decoders, and put as it is
into a PNG of these rows alone; a decoder then undoes the filters of the rows.
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
    """What is wrong with a file, by its checksums; they cover everything but the lengths."""
    for kind, start, end in _blocks(content):
        checksum = int.from_bytes(content[end - 4 : end])
        if isal_zlib.crc32(memoryview(content)[start + 4 : end - 4]) != checksum:
            return f"its {kind.decode('latin-1')} block at byte {start} fails its checksum"
        if kind == b"IEND":
            return None
    return f"it ends early, after {len(content)} bytes"


@dataclass(frozen=True)
class PngRows:
    """The rows of a file: its header's fields, the blocks before and after the compressed data, and
    these."""

    header: tuple[int, ...]
    before: bytes
    data: bytes
    after: bytes

    @property
    def hw(self) -> tuple[int, int]:
        width, height = self.header[:2]
        return height, width

    def first(self, count: int) -> bytes | None:
        """A PNG file of the first `count` rows, uncompressed; None where the data are damaged.

        What is wrong with the data further down goes unnoticed.
        """
        width, height, bits, color_type, *methods = self.header
        count = min(count, height)
        # Each row begins with the number of its filter.
        size = count * (1 + (width * bits * _CHANNELS[color_type] + 7) // 8)
        inflate = isal_zlib.decompressobj()
        try:
            filtered = inflate.decompress(self.data, size)
        except isal_zlib.error:
            return None
        if len(filtered) < size or (count == height and not inflate.eof):
            return None
        header = struct.pack(_HEADER, width, count, bits, color_type, *methods)
        blocks = (*_block(b"IHDR", header), self.before, *_block(b"IDAT", *_stored(filtered)))
        return b"".join((SIGNATURE, *blocks, self.after))


def rows(content: bytes) -> PngRows | None:
    """The rows of a file without a fault; None where it is no PNG, or its rows do not lie one after
    the other as they are shown: interlaced, animated, or turned by its metadata."""
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
    """The same picture without compression, which takes a decoder less time, or `content` itself
    where `rows` cannot take it apart."""
    found = rows(content)
    return (found and found.first(found.hw[0])) or content


def _blocks(content: bytes) -> Iterator[tuple[bytes, int, int]]:
    """(kind, start, end) of all that are whole. Each is length, kind, data, checksum."""
    start = len(SIGNATURE)
    while start + 12 <= len(content):
        length, kind = struct.unpack_from(">I4s", content, start)
        end = start + 12 + length
        if end > len(content):
            return
        yield kind, start, end
        start = end


def _block(kind: bytes, *parts: bytes) -> Iterator[bytes]:
    """A block as the pieces that it is made of."""
    checksum = isal_zlib.crc32(kind)
    for part in parts:
        checksum = isal_zlib.crc32(part, checksum)
    yield struct.pack(">I4s", sum(map(len, parts)), kind)
    yield from parts
    yield struct.pack(">I", checksum)


def _stored(data: bytes) -> Iterator[bytes]:
    """A zlib stream (RFC 1950, 1951) of uncompressed parts, as the pieces that it is made of."""
    yield b"\x78\x01"
    longest, view = 2**16 - 1, memoryview(data)
    for start in range(0, len(data), longest):
        part = view[start : start + longest]
        last = start + longest >= len(data)
        yield struct.pack("<BHH", last, len(part), len(part) ^ 0xFFFF)
        yield part
    yield struct.pack(">I", isal_zlib.adler32(data))
