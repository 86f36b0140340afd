"""Reads checkpoint files of PyTorch and safetensors without PyTorch and without running anything.

The file is mapped into memory, and every tensor is a read-only view of the mapping. So only those
pages of a large file are read that are used. The content determines the format:

- torch's zip archive (since PyTorch 1.6): `*/data.pkl`, and one member `*/data/<key>` per storage;
- torch's legacy file: five pickles, then the storages one after the other;
- safetensors;
- several of these files, by their index (`*.index.json`, or the folder that holds it);
- a .zip that holds one of these, as some checkpoints are published.
"""

import io
import lzma
import mmap
import os
import pathlib
import re
import shutil
import struct
import tempfile
import zipfile
import zlib

from converters.torch_files import restricted_pickle, safetensors_file, shards
from converters.torch_files.torch_tensors import TORCH_NAMES, Storage, StorageId, storage_id
from jaxseg.errors import CheckpointError

SUFFIXES = (".pth", ".pth.tar", ".pt", ".ckpt", ".bin", ".safetensors")
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
COUNT_BYTES = 8  # of the element count before each storage of a legacy file
ARCHIVES = {b"\x1f\x8b": "gzip", b"BZh": "bzip2", b"\xfd7zXZ": "xz", b"7z\xbc\xaf": "7z"}
ARCHIVES |= {b"Rar!": "rar", b"\x28\xb5\x2f\xfd": "zstandard"}
# A zip member's header: its signature, and the lengths of its name and of its extra fields.
MEMBER_HEADER = struct.Struct("<4s22x2H")
ENCRYPTED = 1  # a flag of a zip member
# Exceptions that a damaged zip directory or member can raise.
BAD_ZIP = (zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, LookupError)
BAD_ZIP += (NotImplementedError, OverflowError, RuntimeError, ValueError)


def read_torch_file(path: str | os.PathLike) -> object:
    """Returns the object that a file holds, with every tensor as a read-only array.

    The arrays have the file's own dtypes. They are the file's bytes and not a copy, so the file
    must not change while they are in use. Python containers, numbers and strings are kept (an
    OrderedDict becomes a dict). An argparse.Namespace becomes a dict of its attributes. Dtypes
    become NumPy's, and devices become strings.

    Args:
      path: the file.

    Raises:
      CheckpointError: if the file is missing, damaged or no checkpoint, or holds something other
        than plain data. The message names the file and what to do.
    """
    where = os.fspath(path)
    given = pathlib.Path(where)
    if where.endswith(shards.SUFFIX):
        return shards.read_shards(given, _read_file)
    if index := shards.index_beside(given):
        if not given.is_dir():
            raise CheckpointError(f"{where}: one of several files. Name their index, {index}.")
        return shards.read_shards(index, _read_file)
    return _read_file(given)


def _read_file(path: pathlib.Path) -> object:
    where = str(path)
    try:
        with open(where, "rb") as file:
            if not os.fstat(file.fileno()).st_size:
                raise CheckpointError(f"{where}: the file is empty. Download it again.")
            data = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except IsADirectoryError:
        raise CheckpointError(f"{where}: a folder. Name the checkpoint file in it.") from None
    except OSError as error:
        raise CheckpointError(f"{where}: cannot be opened: {error.strerror}.") from error
    if bytes(data[:4]) == b"PK\x03\x04":
        return _read_zip(data, where)
    return _read_plain(data, where)


def _read_plain(data: memoryview, where: str) -> object:
    """Reads any file that is not a zip archive."""
    head = bytes(data[:512])
    if head[:1] == b"\x80":
        return _read_legacy(data, where)
    if head[safetensors_file.LENGTH_BYTES :].startswith(b"{"):
        return safetensors_file.read_safetensors(data, where)
    raise CheckpointError(f"{where}: {_what_else(head)}")


def _what_else(head: bytes) -> str:
    """Describes an unreadable file by its first bytes, and says what to do."""
    text = head.lstrip().lower()
    if text.startswith((b"<!doctype", b"<html", b"<?xml")):
        return (
            "a web page, not a checkpoint: the server answered the download with a page. Open the "
            "address in a browser, download the file there, and compare its size."
        )
    if head.startswith(b"version https://git-lfs"):
        return "a Git LFS pointer, not the checkpoint itself. Run `git lfs pull` or download it."
    if head[257:262] == b"ustar":
        return (
            "a tar archive. If checkpoints lie in it, unpack it and name one of them; if PyTorch "
            "before 0.1.10 wrote it, load and save it once with a newer PyTorch."
        )
    for magic, kind in ARCHIVES.items():
        if head.startswith(magic):
            return f"a {kind} archive. Unpack it and name the checkpoint in it."
    return (
        f"no file of PyTorch or safetensors (it begins with {head[:16]!r}). Name a .pth, .pt, .bin "
        "or .safetensors file, or download it again."
    )


# Zip archives: torch's own, and archives around a checkpoint.


def _read_zip(data: memoryview, where: str, *, inside: bool = False) -> object:
    """Reads a zip archive; an archive `inside` another one must be torch's own."""
    try:
        archive = zipfile.ZipFile(_MemoryFile(data))
    except BAD_ZIP as error:
        raise CheckpointError(
            f"{where}: cut short or damaged, its zip directory cannot be read ({error}). Download "
            "the file again."
        ) from error
    pickles = [name for name in archive.namelist() if re.fullmatch(r"([^/]+/)?data\.pkl", name)]
    if len(pickles) == 1:
        return _read_torch_zip(data, archive, pickles[0].removesuffix("data.pkl"), where)
    if inside:
        raise CheckpointError(f"{where}: an archive in an archive. Unpack it first.")
    return _read_zipped_file(data, archive, where)


def _read_torch_zip(data: memoryview, archive: zipfile.ZipFile, folder: str, where: str) -> object:
    members = set(archive.namelist())
    if f"{folder}constants.pkl" in members:
        raise CheckpointError(
            f"{where}: a TorchScript program. Load it with torch.jit.load and save its "
            "state_dict() with torch.save."
        )
    order = f"{folder}byteorder"
    if order in members and bytes(_member(data, archive, order, where)) != b"little":
        raise CheckpointError(_big_endian(where))

    bytes_of: dict[str, memoryview] = {}

    def storage(persistent_id: object) -> Storage:
        it = storage_id(persistent_id)
        if it.key not in bytes_of:
            bytes_of[it.key] = _member(data, archive, f"{folder}data/{it.key}", where)
        return it.look_into(bytes_of[it.key])

    pickled = io.BytesIO(_member(data, archive, f"{folder}data.pkl", where))
    return restricted_pickle.load(pickled, where, TORCH_NAMES, storage)


def _read_zipped_file(data: memoryview, archive: zipfile.ZipFile, where: str) -> object:
    """Reads the only checkpoint in an archive, in whatever folder it is."""
    members = [name for name in archive.namelist() if not name.startswith("__MACOSX/")]
    found = [
        name
        for name in members
        if name.lower().endswith(SUFFIXES) and not name.rpartition("/")[2].startswith(".")
    ]
    if not found:
        raise CheckpointError(
            f"{where}: a zip archive without a checkpoint ({', '.join(SUFFIXES)}); it holds "
            f"{_listed(members)}."
        )
    if len(found) > 1:
        raise CheckpointError(
            f"{where}: a zip archive with several checkpoints: {_listed(found)}. Unpack it and "
            "name one of them."
        )
    inner = _member(data, archive, found[0], where)
    where = f"{where} ({found[0]})"
    if not inner:
        raise CheckpointError(f"{where}: the file in the archive is empty.")
    if bytes(inner[:4]) == b"PK\x03\x04":
        return _read_zip(inner, where, inside=True)
    return _read_plain(inner, where)


def _member(data: memoryview, archive: zipfile.ZipFile, name: str, where: str) -> memoryview:
    """Returns a member's bytes.

    A member that is stored uncompressed is a view of `data`. Any other member is unpacked to a
    temporary file.
    """
    try:
        info = archive.getinfo(name)
        if info.flag_bits & ENCRYPTED:
            raise CheckpointError(f"{where}: {name!r} is encrypted. Unpack it with its password.")
        if not info.file_size:
            return memoryview(b"")
        if info.compress_type != zipfile.ZIP_STORED:
            return _unpack(archive, info, where)
        signature, *lengths = MEMBER_HEADER.unpack_from(data, max(info.header_offset, 0))
        start = info.header_offset + MEMBER_HEADER.size + sum(lengths)
        end = start + info.file_size
        if signature != b"PK\x03\x04" or info.file_size != info.compress_size or end > len(data):
            raise zipfile.BadZipFile("its header does not match the directory")
        return data[start:end]
    except CheckpointError:
        raise
    except BAD_ZIP as error:
        raise CheckpointError(
            f"{where}: cut short or damaged, {name!r} cannot be read from the zip archive "
            f"({error}). Download the file again."
        ) from error


def _unpack(archive: zipfile.ZipFile, info: zipfile.ZipInfo, where: str) -> memoryview:
    """Returns a compressed member, mapped from a nameless file that vanishes with the mapping."""
    try:
        with archive.open(info) as packed, tempfile.TemporaryFile() as file:
            shutil.copyfileobj(packed, file, length=2**20)
            file.flush()
            return memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ))
    except OSError as error:
        raise CheckpointError(
            f"{where}: {info.filename!r} cannot be unpacked to {tempfile.gettempdir()}: "
            f"{error.strerror}. It takes {info.file_size / 1e9:.1f} GB there; the environment "
            "variable TMPDIR names another folder."
        ) from error


class _MemoryFile(io.RawIOBase):
    """Presents mapped memory as a file."""

    def __init__(self, data: memoryview):
        self.data = data
        self.position = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        start = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: len(self.data)}[whence]
        if start + offset < 0:
            raise ValueError("a position before the start of the file")
        self.position = start + offset
        return self.position

    def readinto(self, target: memoryview) -> int:
        part = self.data[self.position : self.position + len(target)]
        target[: len(part)] = part
        self.position += len(part)
        return len(part)


# The legacy format.


def _read_legacy(data: memoryview, where: str) -> object:
    file = io.BufferedReader(_MemoryFile(data))
    if not _is_legacy(data):
        raise CheckpointError(
            f"{where}: a plain pickle, not a file of torch.save. Load it with the code that wrote "
            "it and save the state_dict with torch.save, or as safetensors."
        )

    def load(storage=storage_id):
        return restricted_pickle.load(file, where, TORCH_NAMES, storage)

    _, version, system = load(), load(), load()
    if version != LEGACY_VERSION:
        raise CheckpointError(f"{where}: a torch file of the unknown version {version!r}.")
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise CheckpointError(_big_endian(where))

    # The storages follow the pickle that gives their lengths, so that pickle is read twice.
    start = file.tell()
    sizes: dict[str, StorageId] = {}

    def learn(persistent_id: object) -> Storage:
        it = storage_id(persistent_id)
        sizes[it.key] = it
        return Storage(it.dtype, None)

    load(learn)
    bytes_of = _legacy_storages(data, load(), sizes, file.tell(), where)
    file.seek(start)

    def storage(persistent_id: object) -> Storage:
        it = storage_id(persistent_id)
        return it.look_into(bytes_of[it.key])

    return load(storage)


def _is_legacy(data: memoryview) -> bool:
    """Returns whether the first pickle is the magic number, without reading any pickle."""
    return LEGACY_MAGIC.to_bytes(10, "little") in bytes(data[:32])


def _legacy_storages(
    data: memoryview, keys: object, sizes: dict[str, StorageId], position: int, where: str
) -> dict[str, memoryview]:
    """Returns the bytes of every storage, in the order of the keys.

    Each storage follows its number of elements.
    """
    if not isinstance(keys, list):
        raise CheckpointError(f"{where}: damaged, it does not list its storages.")
    found = {}
    for key in keys:
        if not isinstance(key, str) or key not in sizes:
            raise CheckpointError(f"{where}: damaged, it lists an unknown storage {key!r}.")
        begin = position + COUNT_BYTES
        position = begin + sizes[key].nbytes
        if position > len(data):
            raise CheckpointError(
                f"{where}: cut short, its tensors take {position} bytes or more and the file has "
                f"{len(data)}. Download it again."
            )
        if int.from_bytes(data[begin - COUNT_BYTES : begin], "little") != sizes[key].count:
            raise CheckpointError(f"{where}: damaged, storage {key!r} has another size.")
        found[key] = data[begin:position]
    return found


def _big_endian(where: str) -> str:
    return (
        f"{where}: written on a big-endian machine. Load and save it once with PyTorch on this one."
    )


def _listed(names: list[str]) -> str:
    shown = ", ".join(names[:8]) or "nothing"
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
