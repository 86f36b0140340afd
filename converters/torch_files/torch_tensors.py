"""Stands in for PyTorch's names in a pickle, and turns tensors into views of mapped memory.

A tensor is a storage (a run of bytes) and a view of it: offset, size and stride, in elements. The
pickle holds the views. The file's format determines where a storage lies, and persistent ids refer
to it.
"""

from dataclasses import dataclass

import ml_dtypes
import numpy as np

from converters.torch_files.restricted_pickle import ForeignError, Function

STORAGE_DTYPES = {
    "DoubleStorage": np.dtype("<f8"),
    "FloatStorage": np.dtype("<f4"),
    "HalfStorage": np.dtype("<f2"),
    "BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "LongStorage": np.dtype("<i8"),
    "IntStorage": np.dtype("<i4"),
    "ShortStorage": np.dtype("<i2"),
    "CharStorage": np.dtype("i1"),
    "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
    "UntypedStorage": np.dtype("u1"),
}
DTYPES = {
    **{name: np.dtype(name) for name in ("float64", "float32", "float16", "bool")},
    **{name: np.dtype(name) for name in ("int64", "int32", "int16", "int8")},
    **{name: np.dtype(name) for name in ("uint64", "uint32", "uint16", "uint8")},
    "bfloat16": np.dtype(ml_dtypes.bfloat16),
}


@dataclass(frozen=True)
class StorageType:
    """Stands in for `torch.FloatStorage` and the other storage types."""

    dtype: np.dtype


@dataclass(frozen=True, eq=False)
class Storage:
    """Holds the bytes that tensors of a file are views of.

    Attributes:
      dtype: the type of the elements.
      data: the bytes; None if their place is not known yet, and then tensors are None too.
    """

    dtype: np.dtype
    data: memoryview | None


@dataclass(frozen=True)
class StorageId:
    """Identifies a storage as a pickle names it.

    Attributes:
      dtype: the type of the elements.
      key: the name of the bytes.
      count: the number of elements in these bytes.
      part: offset and count, in elements, of a storage view in the legacy format.
    """

    dtype: np.dtype
    key: str
    count: int
    part: tuple[int, int] | None

    @property
    def nbytes(self) -> int:
        return self.count * self.dtype.itemsize

    def look_into(self, data: memoryview) -> Storage:
        """Returns the storage, given the bytes of its key.

        Raises:
          ValueError: if the storage is larger than its data.
        """
        offset, count = self.part or (0, self.count)
        if min(offset, count) < 0 or offset + count > self.count or self.nbytes > len(data):
            raise ValueError(f"storage {self.key} is larger than its data")
        start = offset * self.dtype.itemsize
        return Storage(self.dtype, data[start : start + count * self.dtype.itemsize])


def storage_id(persistent_id: object) -> StorageId:
    """Parses a persistent id: ("storage", type, key, device, count), plus a view in legacy files.

    Raises:
      ValueError: if the persistent id does not identify a storage.
    """
    match persistent_id:
        case ("storage", StorageType(dtype), str(key), str(), int(count), *view) if count >= 0:
            match view:
                case [] | [None]:
                    return StorageId(dtype, key, count, None)
                case [(str(), int(offset), int(size))]:
                    return StorageId(dtype, key, count, (offset, size))
    raise ValueError("a persistent id that names no storage")


def tensor(storage: Storage, offset: int, size: tuple, stride: tuple) -> np.ndarray | None:
    """Returns a view of a storage as a read-only array, like `torch.Tensor.set_` with checks.

    Args:
      storage: the storage.
      offset: the offset of the first element, in elements.
      size: the shape of the tensor.
      stride: the step along each axis, in elements.

    Returns:
      The array; None if the place of the storage's bytes is not known yet.

    Raises:
      ValueError: if the tensor is malformed or reaches outside its storage.
    """
    return _view(storage.data, storage.dtype, offset, size, stride)


def _view(
    data: memoryview | None, dtype: np.dtype, offset: int, size: tuple, stride: tuple
) -> np.ndarray | None:
    if len(size) != len(stride) or any(type(n) is not int or n < 0 for n in (offset, *size)):
        raise ValueError(f"a tensor of offset {offset}, size {size} and stride {stride}")
    if data is None:
        return None
    if 0 in size:
        return np.ndarray(size, dtype, buffer=b"")
    # An axis of length one takes no step, so its stride does not matter.
    steps = [step if length > 1 else 0 for length, step in zip(size, stride, strict=True)]
    if any(type(step) is not int or step < 0 for step in steps):
        raise ValueError(f"a tensor of stride {stride}")
    last = offset + sum((length - 1) * step for length, step in zip(size, steps, strict=True))
    if (last + 1) * dtype.itemsize > len(data):
        raise ValueError(
            f"a tensor of offset {offset}, size {size} and stride {stride} reaches outside its "
            f"storage of {len(data) // dtype.itemsize} elements"
        )
    itemsize = dtype.itemsize
    strides = [step * itemsize for step in steps]
    return np.ndarray(size, dtype, buffer=data, offset=offset * itemsize, strides=strides)


# Stand-ins with the names and arguments of torch._utils.


def _rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks, metadata=None):
    if metadata:  # lazy conjugation or negation, which the bytes do not show
        raise ForeignError(f"a tensor with the metadata {sorted(metadata)}")
    return tensor(storage, offset, size, stride)


def _rebuild_tensor_v3(storage, offset, size, stride, requires_grad, hooks, dtype, metadata=None):
    """Rebuilds a tensor whose dtype has no storage type of its own; the storage is untyped."""
    if metadata:
        raise ForeignError(f"a tensor with the metadata {sorted(metadata)}")
    if not isinstance(dtype, np.dtype):
        raise TypeError("a tensor without a dtype")
    return _view(storage.data, dtype, offset, size, stride)


def _parameter(data=None, requires_grad=True, hooks=None, state=None):
    return data


def _rebuild_from_type(function, kind, arguments, state):
    """Rebuilds a tensor that has Python attributes, which are left out."""
    if function not in REBUILDERS.values():
        raise TypeError("a tensor rebuilt by something else")
    return function.call(*arguments)


def _device(kind, index=None):
    return str(kind) if index is None else f"{kind}:{index}"


REBUILDERS = {
    "torch._utils._rebuild_tensor": Function(tensor),
    "torch._utils._rebuild_tensor_v2": Function(_rebuild_tensor_v2),
    "torch._utils._rebuild_tensor_v3": Function(_rebuild_tensor_v3),
    "torch._utils._rebuild_parameter": Function(_parameter),
    "torch._utils._rebuild_parameter_with_state": Function(_parameter),
}
TORCH_NAMES = {
    **REBUILDERS,
    "torch._tensor._rebuild_from_type_v2": Function(_rebuild_from_type),
    "torch.nn.parameter.Parameter": Function(_parameter),
    "torch.Tensor": "torch.Tensor",
    "torch.Size": Function(lambda sizes=(): tuple(sizes)),
    "torch.device": Function(_device),
    **{
        f"{module}.{name}": StorageType(dtype)
        for name, dtype in STORAGE_DTYPES.items()
        for module in ("torch", "torch.storage")
    },
    **{f"torch.{name}": dtype for name, dtype in DTYPES.items()},
}
