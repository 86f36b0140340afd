"""Reading a pickle without running anything: a stack machine that can only build plain data.

A pickle is a program. Python's own unpickler imports and calls whatever it names, so a checkpoint
from elsewhere could do anything. This machine knows the names in a table, calls nothing but the
stand-ins beside them, and refuses every other name. It never imports, never touches attributes,
and keeps Python's own classes out of reach: `BUILD` is handled here, type by type.
"""

import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import BinaryIO

import numpy as np

from jaxseg.errors import CheckpointError

# Opcodes that push what pickletools has decoded already. Strings of Python 2 come as latin-1,
# which keeps their bytes.
LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
CONTAINERS = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# What an arbitrary sequence of opcodes can raise, in this file, the stand-ins and pickletools,
# which warns of unknown escapes in a name.
DAMAGE = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)
DAMAGE += (DeprecationWarning,)


class ForeignError(Exception):
    """A pickle asks for something that is not plain data; the message is its name."""


@dataclass(frozen=True)
class Function:
    """A stand-in that a pickle may call."""

    call: Callable


class Attributes(dict):
    """What is kept of an object: its attributes, as a dict."""


def load(
    file: BinaryIO,
    where: str,
    names: Mapping[str, object],
    storage: Callable[[object], object],
) -> object:
    """The object of the pickle that starts at the file's position; the position moves behind it.

    Args:
        where: the file's name, for messages.
        names: what stands in for each global "module.name", beside those of Python and NumPy
            below; a `Function` can be called by the pickle, anything else is only a value.
        storage: gives the object for a persistent id.

    Raises:
        CheckpointError: the pickle is damaged, or asks for a name that is not in the table.
    """
    machine = _Machine(PLAIN_NAMES | names, storage)
    try:
        for opcode, argument, _ in pickletools.genops(file):
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except CheckpointError:
        raise
    except ForeignError as error:
        raise CheckpointError(
            f"{where}: it holds {error}, which is no part of a plain state dict; it was refused, "
            "and nothing was run. Load the file with the code that wrote it and save only the "
            "state_dict."
        ) from None
    except DAMAGE as error:
        raise CheckpointError(
            f"{where}: damaged or not a checkpoint, its pickle cannot be followed "
            f"({type(error).__name__}: {error}). Download the file again."
        ) from error


class _Machine:
    """The stack, the stacks set aside at each MARK, and the memo."""

    def __init__(self, names: Mapping[str, object], storage: Callable[[object], object]):
        self.names = names
        self.storage = storage
        self.stack: list = []
        self.marked: list[list] = []
        self.memo: dict[int, object] = {}

    def step(self, name: str, argument: object) -> None:
        """Carries out one opcode."""
        stack = self.stack
        match name:
            case _ if name in LITERALS:
                stack.append(argument)
            case "BINGET" | "LONG_BINGET" | "GET":
                stack.append(self.memo[argument])
            case "BINPUT" | "LONG_BINPUT" | "PUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case _ if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case _ if name in CONTAINERS:
                stack.append(CONTAINERS[name]())
            case "MARK":
                self.marked.append(stack)
                self.stack = []
            case "TUPLE":
                items = self.since_mark()
                self.stack.append(tuple(items))
            case _ if name in SHORT_TUPLES:
                items = [stack.pop() for _ in range(SHORT_TUPLES[name])]
                stack.append(tuple(reversed(items)))
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                _set_items(stack[-1], [key, value])
            case "SETITEMS":
                items = self.since_mark()
                _set_items(self.stack[-1], items)
            case "DICT":
                items = self.since_mark()
                self.stack.append({})
                _set_items(self.stack[-1], items)
            case "APPEND":
                item = stack.pop()
                _of_type(stack[-1], list).append(item)
            case "APPENDS":
                items = self.since_mark()
                _of_type(self.stack[-1], list).extend(items)
            case "LIST":
                items = self.since_mark()
                self.stack.append(items)
            case "ADDITEMS":
                items = self.since_mark()
                _of_type(self.stack[-1], set).update(map(_key, items))
            case "FROZENSET":
                items = self.since_mark()
                self.stack.append(frozenset(map(_key, items)))
            case "GLOBAL":
                stack.append(self.find(argument.replace(" ", ".", 1)))
            case "STACK_GLOBAL":
                attribute, module = _of_type(stack.pop(), str), _of_type(stack.pop(), str)
                stack.append(self.find(f"{module}.{attribute}"))
            case "REDUCE" | "NEWOBJ":
                arguments, function = stack.pop(), stack.pop()
                call = _of_type(function, Function).call
                stack.append(call(*_of_type(arguments, tuple)))
            case "BUILD":
                state = stack.pop()
                _set_state(stack[-1], state)
            case "BINPERSID":
                stack.append(self.storage(stack.pop()))
            case "POP":
                stack.pop()
            case "POP_MARK":
                self.since_mark()
            case "DUP":
                stack.append(stack[-1])
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _:
                raise ForeignError(f"the pickle opcode {name}")

    def since_mark(self) -> list:
        """Takes everything above the last mark off the stack."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def find(self, name: str) -> object:
        """What stands in for "module.name"."""
        if name not in self.names:
            raise ForeignError(name)
        return self.names[name]


def _of_type(value: object, kind: type) -> object:
    if not isinstance(value, kind):
        raise TypeError(f"{type(value).__name__} where a {kind.__name__} belongs")
    return value


def _key(value: object) -> object:
    """A dict's key or a set's item: a number, a string or a tuple of such."""
    # Python hashes nested tuples recursively, without a limit.
    for part in value if isinstance(value, tuple) else (value,):
        if not isinstance(part, str | bytes | int | float | np.generic | None):
            raise TypeError(f"{type(part).__name__} as a key")
    return value


def _set_items(target: object, items: list) -> None:
    keys, values = items[::2], items[1::2]
    _of_type(target, dict).update(zip(map(_key, keys), values, strict=True))


def _set_state(target: object, state: object) -> None:
    """What `BUILD` does: gives an object, made before, its contents."""
    if isinstance(target, Attributes):
        target.update(_of_type(state, dict))
    elif isinstance(target, dict):
        pass  # attributes of a dict, such as the `_metadata` of a state dict
    elif isinstance(target, np.dtype):
        _check_dtype_state(state)
    elif isinstance(target, np.ndarray) and target.flags.owndata and not target.size:
        _fill_array(target, state)
    else:
        raise ForeignError(f"a state for {type(target).__name__}")


# Stand-ins for NumPy: the arrays and scalars that lie beside the weights.


def _numpy_dtype(code: str, align: bool = False, copy: bool = True) -> np.dtype:
    if not re.fullmatch(r"[<|=]?([biufc]\d{1,2}|[SU]\d{1,6})", _of_type(code, str)):
        raise ForeignError(f"the NumPy dtype {code!r}")
    return np.dtype(code)


def _check_dtype_state(state: tuple) -> None:
    """Version, byte order, then subarray, names and fields, then sizes that the code told."""
    _, order, *structure = state[:5]
    if order not in ("<", "|", "=") or any(part is not None for part in structure):
        raise ForeignError("a big-endian or structured NumPy dtype")


def _empty_array(kind: object, shape: tuple, code: object) -> np.ndarray:
    return np.empty(0, np.uint8)


def _fill_array(target: np.ndarray, state: tuple) -> None:
    _, shape, dtype, fortran_order, data = state
    dtype, data = _of_type(dtype, np.dtype), _bytes(data)
    order = "F" if fortran_order else "C"
    # Checks sizes exactly; NumPy's own __setstate__ then meets only what is sound.
    np.ndarray(shape, dtype, buffer=data, order=order)
    target.__setstate__((1, shape, dtype, order == "F", data))
    target.flags.writeable = False


def _numpy_scalar(dtype: np.dtype, data: bytes) -> np.generic:
    return np.ndarray((), _of_type(dtype, np.dtype), buffer=_bytes(data))[()]


def _bytes(data: object) -> bytes:
    """Bytes, which Python 2 wrote as a string."""
    return data.encode("latin-1") if isinstance(data, str) else _of_type(data, bytes)


# Stand-ins for Python: containers become plain ones, objects what they held.


def _dict(*arguments: object) -> dict:
    """OrderedDict(), OrderedDict(pairs), Counter(counts) and the like."""
    items = arguments[0] if arguments else {}
    result: dict = {}
    for key, value in items.items() if isinstance(items, dict) else items:
        result[_key(key)] = value
    return result


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """How protocol 2 writes bytes."""
    if encoding not in ("latin1", "latin-1"):
        raise ForeignError(f"bytes as {encoding!r}")
    return _of_type(text, str).encode("latin-1")


PYTHON_NAMES = {
    "collections.OrderedDict": Function(_dict),
    "collections.Counter": Function(_dict),
    "collections.defaultdict": Function(lambda factory=None: {}),
    "argparse.Namespace": Function(lambda: Attributes()),
    "yacs.config.CfgNode": Function(lambda: {}),
    "_codecs.encode": Function(_encode),
}
BUILTINS = {
    "set": Function(lambda items=(): set(map(_key, items))),
    "frozenset": Function(lambda items=(): frozenset(map(_key, items))),
    "bytes": Function(lambda: b""),
    "complex": Function(lambda real, imag: complex(real, imag)),
    # Only as the factory of a defaultdict.
    **{name: name for name in ("int", "float", "str", "list", "dict")},
}
MULTIARRAY = {"_reconstruct": Function(_empty_array), "scalar": Function(_numpy_scalar)}
PLAIN_NAMES = {
    **PYTHON_NAMES,
    **{f"{m}.{name}": it for m in ("builtins", "__builtin__") for name, it in BUILTINS.items()},
    "numpy.dtype": Function(_numpy_dtype),
    "numpy.ndarray": "numpy.ndarray",
    **{
        f"{core}.multiarray.{name}": it
        for core in ("numpy.core", "numpy._core")
        for name, it in MULTIARRAY.items()
    },
}
