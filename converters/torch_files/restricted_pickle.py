"""Reads a pickle without running anything: a stack machine that can only build plain data.

A pickle is a program. Python's own unpickler imports and calls whatever the pickle names, so a
checkpoint from elsewhere could do anything. This machine knows only the names in a table, and calls
nothing but their stand-ins. What it should make of any other name becomes an `Inert` object, which
holds the name and can do nothing. Training programs keep such objects beside the weights. The
machine never imports and never touches attributes. It also keeps Python's own classes out of reach:
`BUILD` is handled here, type by type.
"""

import pickletools
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO, TypeVar

import numpy as np

from jaxseg.errors import CheckpointError

# Opcodes that push a value that pickletools has already decoded. Strings of Python 2 are decoded as
# latin-1, which keeps their bytes.
LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES", "BINBYTES8"),
    *("UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "BYTEARRAY8"),
}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
CONTAINERS = {"EMPTY_LIST": list, "EMPTY_DICT": dict, "EMPTY_SET": set}
SHORT_TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}
# What an arbitrary sequence of opcodes can raise in this file, in the stand-ins and in pickletools.
# pickletools warns about unknown escapes in a name.
DAMAGE = (ArithmeticError, AttributeError, LookupError, MemoryError, TypeError, ValueError)
DAMAGE += (DeprecationWarning,)

T = TypeVar("T")


class ForeignError(Exception):
    """Reports that a pickle asks for something that is not plain data; the message is its name."""


@dataclass(frozen=True)
class Function:
    """Stands in for something that a pickle may call.

    Attributes:
      call: what is called.
    """

    call: Callable


class Inert(dict):
    """Takes the place of an object of an unknown class. It does nothing.

    It keeps the items that the pickle adds to it, since the class may be a kind of dict.

    Attributes:
      name: the "module.name" of the class, or of the function that would make the object.
    """

    def __init__(self, name: str):
        super().__init__()
        self.name = name

    def __hash__(self) -> int:  # it may be a key
        return id(self)

    def __eq__(self, other: object) -> bool:
        return self is other


@dataclass(frozen=True)
class Foreign:
    """Stands in for a name that is not in the table; whatever calls it gets an `Inert` object."""

    name: str


class Attributes(dict):
    """Holds the attributes of an object, which is all that is kept of it."""


def load(
    file: BinaryIO,
    where: str,
    names: Mapping[str, object],
    storage: Callable[[object], object],
) -> object:
    """Returns the object of the pickle that starts at the file's position.

    The position moves to the end of the pickle.

    Args:
      file: the file.
      where: the file's name, for messages.
      names: the stand-in of each global "module.name", in addition to those of Python and NumPy
        below. The pickle can call a `Function`; anything else is only a value.
      storage: returns the object for a persistent id.

    Raises:
      CheckpointError: if the pickle is damaged, or asks for something that cannot be left out.
    """
    machine = _Machine({**PLAIN_NAMES, **names}, storage)
    try:
        for opcode, argument, _ in pickletools.genops(file):
            machine.step(opcode.name, argument)
        return machine.stack.pop()
    except CheckpointError:
        raise
    except ForeignError as error:
        raise CheckpointError(
            f"{where}: it holds {error}, which does not belong in a plain state dict. It was "
            "refused, and no code was run. Load the file with the code that wrote it and save only "
            "the state_dict."
        ) from None
    except DAMAGE as error:
        raise CheckpointError(
            f"{where}: damaged or not a checkpoint, its pickle cannot be followed "
            f"({type(error).__name__}: {error}). Download the file again."
        ) from error


class _Machine:
    """Holds the stack, the stacks set aside at each MARK, and the memo."""

    def __init__(self, names: Mapping[str, object], storage: Callable[[object], object]):
        self.names = names
        self.storage = storage
        self.stack: list = []
        self.marked: list[list] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Executes one opcode."""
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
                _extend(stack[-1], [item])
            case "APPENDS":
                items = self.since_mark()
                _extend(self.stack[-1], items)
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
                stack.append(_called(function, _of_type(arguments, tuple)))
            case "NEWOBJ_EX":
                _, _, function = stack.pop(), stack.pop(), stack.pop()
                stack.append(Inert(_of_type(function, Foreign).name))
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
        """Removes everything above the last mark from the stack and returns it."""
        items, self.stack = self.stack, self.marked.pop()
        return items

    def find(self, name: str) -> object:
        """Returns the stand-in for "module.name"."""
        return self.names.get(name) or Foreign(name)


def _of_type(value: object, kind: type[T]) -> T:
    if not isinstance(value, kind):
        raise TypeError(f"expected a {kind.__name__}, found a {type(value).__name__}")
    return value


def _key(value: object) -> object:
    """Checks a dict's key or a set's item: a number, a string or a tuple of such."""
    # Nested tuples are refused, because Python hashes them recursively, without a limit.
    for part in value if isinstance(value, tuple) else (value,):
        if not isinstance(part, str | bytes | int | float | np.generic | Inert | None):
            raise TypeError(f"{type(part).__name__} as a key")
    return value


def _called(function: object, arguments: tuple) -> object:
    if isinstance(function, Foreign):
        return Inert(function.name)
    return _of_type(function, Function).call(*arguments)


def _extend(target: Any, items: list) -> None:
    if not isinstance(target, Inert):
        _of_type(target, list).extend(items)


def _set_items(target: Any, items: list) -> None:
    keys, values = items[::2], items[1::2]
    _of_type(target, dict).update(zip(map(_key, keys), values, strict=True))


def _set_state(target: Any, state: Any) -> None:
    """Gives an existing object its contents, as `BUILD` does."""
    if isinstance(target, Inert):
        pass
    elif isinstance(target, Attributes):
        target.update(_of_type(state, dict))
    elif isinstance(target, dict):
        pass  # ignores attributes of a dict, such as the `_metadata` of a state dict
    elif isinstance(target, np.dtype):
        _check_dtype_state(state)
    elif isinstance(target, np.ndarray) and target.flags.owndata and not target.size:
        _fill_array(target, state)
    else:
        raise ForeignError(f"a state for {type(target).__name__}")


# Stand-ins for NumPy: the arrays and scalars that are stored with the weights.


def _numpy_dtype(code: str, align: bool = False, copy: bool = True) -> np.dtype:
    if not re.fullmatch(r"[<|=]?([biufc]\d{1,2}|[SU]\d{1,6})", _of_type(code, str)):
        raise ForeignError(f"the NumPy dtype {code!r}")
    return np.dtype(code)


def _check_dtype_state(state: tuple) -> None:
    """Refuses big-endian and structured dtypes.

    The state is the version, the byte order, then subarray, names and fields, then sizes that the
    code has already given.
    """
    _, order, *structure = state[:5]
    if order not in ("<", "|", "=") or any(part is not None for part in structure):
        raise ForeignError("a big-endian or structured NumPy dtype")


def _empty_array(kind: object, shape: tuple, code: object) -> np.ndarray:
    return np.empty(0, np.uint8)


def _fill_array(target: np.ndarray, state: tuple) -> None:
    _, shape, dtype, fortran_order, data = state
    dtype, data = _of_type(dtype, np.dtype), _bytes(data)
    order = "F" if fortran_order else "C"
    # This checks the sizes exactly, so that NumPy's own __setstate__ sees only sound data.
    np.ndarray(shape, dtype, buffer=data, order=order)
    state = (1, shape, dtype, order == "F", data)
    target.__setstate__(state)  # pyright: ignore[reportArgumentType]  (its stub asks for np.bool)
    target.flags.writeable = False


def _numpy_scalar(dtype: np.dtype, data: bytes) -> np.generic:
    array: Any = np.ndarray((), _of_type(dtype, np.dtype), buffer=_bytes(data))
    return array[()]


def _bytes(data: object) -> bytes:
    """Returns bytes, which Python 2 wrote as a string."""
    return data.encode("latin-1") if isinstance(data, str) else _of_type(data, bytes)


# Stand-ins for Python: containers become plain ones, and objects become what they held.


def _dict(*arguments: Any) -> dict:
    """Stands in for OrderedDict(), OrderedDict(pairs), Counter(counts) and the like."""
    items = arguments[0] if arguments else {}
    result: dict = {}
    for key, value in items.items() if isinstance(items, dict) else items:
        result[_key(key)] = value
    return result


def _encode(text: str, encoding: str = "latin1") -> bytes:
    """Encodes text as protocol 2 writes bytes."""
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
    # Used only as the factory of a defaultdict.
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
