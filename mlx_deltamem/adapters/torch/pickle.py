"""Interpret the pickle in a `.pt` file without executing anything.

A pickle is a program that can import and call any function. This interpreter knows only the opcodes that torch.save
writes, and it only builds inert values: a name in the file is compared with a list and never looked up, so that a
hostile file cannot run anything.
"""

import pickletools
from collections.abc import Callable
from dataclasses import dataclass

from mlx_deltamem.adapters.torch.writer import STORAGES
from mlx_deltamem.adapters.untrusted import RefusedError, damage_in, shown

DTYPES = {f"torch.{storage}": dtype for dtype, storage in STORAGES.items()}
# Known only so that an error can name the type of such a tensor.
OTHER_DTYPES = {
    "torch.DoubleStorage": "float64",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
    "torch.ComplexFloatStorage": "complex64",
    "torch.ComplexDoubleStorage": "complex128",
}
EXPECTED = "expected a flat dict of tensors; re-save that with torch.save (torch >= 1.6)"
_MAX_DIMENSIONS = 32  # of numpy before version 2
# torch.save writes about 40 for a tensor. A million of them would take seconds.
_MOST_OPCODES = 500_000


def kind_of(value: object) -> str:
    """Describe a value from the file by its type; the text of the value itself could be extremely long."""
    return f"something of type {type(value).__name__.strip('_')}"


@dataclass(frozen=True)
class _Name:
    """A function or class that the pickle refers to; it is in one of the lists of this module."""

    name: str


@dataclass(frozen=True)
class Storage:
    """`numel` numbers in the zip entry `data/KEY`."""

    kind: str
    key: str
    numel: int


@dataclass(frozen=True)
class Tensor:
    """A view of a storage as the file describes it; the reader checks it."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]


def _called(name: str, arguments: tuple[object, ...]) -> object:
    """Return the inert value for a call of one of the functions in `_FUNCTIONS`."""
    match name, arguments:
        case "collections.OrderedDict", ():
            return {}
        case "torch._utils._rebuild_parameter", (Tensor() as tensor, _, _):
            return tensor
        case "torch._utils._rebuild_tensor_v2", (_, _, _, _, _, _, flags) if flags:
            raise RefusedError("has a negated or conjugated view; call .resolve_neg().resolve_conj() and re-save it")
        case "torch._utils._rebuild_tensor_v2", (Storage() as storage, int(offset), tuple(size), tuple(stride), _, *_):
            if len(size) == len(stride) <= _MAX_DIMENSIONS and all(type(number) is int for number in size + stride):
                return Tensor(storage, offset, size, stride)
    raise RefusedError(f"calls {name} with unknown arguments; {EXPECTED}")


_FUNCTIONS = {"collections.OrderedDict", "torch._utils._rebuild_parameter", "torch._utils._rebuild_tensor_v2"}


class _Interpreter:
    """The stack and the memo of a pickle; a damaged pickle causes IndexError, KeyError or ValueError."""

    def __init__(self) -> None:
        self.stack: list[object] = []
        self.below_marks: list[list[object]] = []
        self.memo: dict[object, object] = {}

    def push(self, value: object) -> None:
        self.stack.append(value)

    def pop(self, count: int) -> list[object]:
        return [self.stack.pop() for _ in range(count)][::-1]

    def mark(self, _: object) -> None:
        self.below_marks.append(self.stack)
        self.stack = []

    def pop_to_mark(self) -> list[object]:
        items, self.stack = self.stack, self.below_marks.pop()
        return items

    def keep(self, index: object) -> None:
        self.memo[index] = self.stack[-1]

    def name(self, line: object) -> None:
        self.push_name(*str(line).split(" ", 1))

    def name_on_stack(self, _: object) -> None:
        match self.pop(2):
            case str(module), str(name):
                self.push_name(module, name)
            case module, _:
                raise RefusedError(f"has {kind_of(module)} for the name of a module; {EXPECTED}")

    def push_name(self, *parts: str) -> None:
        name = ".".join(parts)
        if not (name in _FUNCTIONS or name in DTYPES or name in OTHER_DTYPES):
            raise RefusedError(f"wants to run {shown(name)}; only tensors are read, nothing was executed")
        self.push(_Name(name))

    def call(self, _: object) -> None:
        match self.pop(2):
            case _Name(name), tuple(arguments):
                self.push(_called(name, arguments))
            case function, _:
                raise RefusedError(f"wants to call {kind_of(function)}; {EXPECTED}")

    def set_state(self, _: object) -> None:
        # torch stores the versions of modules in a state_dict() in this way; they are not needed here.
        self.pop(1)
        if not isinstance(self.stack[-1], dict):
            raise RefusedError(f"wants to set the state of {kind_of(self.stack[-1])}; {EXPECTED}")

    def open_storage(self, _: object) -> None:
        match self.pop(1):
            case [("storage", _Name(kind), str(key), str(), int(numel))] if kind not in _FUNCTIONS:
                self.push(Storage(kind, key, numel))
            case _:
                raise RefusedError(f"describes a storage in an unknown form; {EXPECTED}")

    def set_items(self, items: list[object]) -> None:
        target = self.stack[-1]
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not (isinstance(target, dict) and isinstance(key, str)):
                raise RefusedError(f"has {kind_of(key)} as a key of {kind_of(target)}; {EXPECTED}")
            target[key] = value


# The opcodes that torch.save writes in protocols 2 to 5 for dicts of tensors. Floats and lists are among them so that
# the error about such a value can name its key; lists stay empty, because no list is used.
_OPCODES: dict[str, Callable[[_Interpreter, object], object]] = {
    **dict.fromkeys(("PROTO", "FRAME", "STOP"), lambda run, argument: None),
    **dict.fromkeys(("BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"), _Interpreter.push),
    **dict.fromkeys(("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT"), _Interpreter.push),
    "NONE": lambda run, _: run.push(None),
    "NEWTRUE": lambda run, _: run.push(True),
    "NEWFALSE": lambda run, _: run.push(False),
    "EMPTY_DICT": lambda run, _: run.push({}),
    "EMPTY_LIST": lambda run, _: run.push([]),
    "EMPTY_TUPLE": lambda run, _: run.push(()),
    "MARK": _Interpreter.mark,
    "TUPLE": lambda run, _: run.push(tuple(run.pop_to_mark())),
    "TUPLE1": lambda run, _: run.push(tuple(run.pop(1))),
    "TUPLE2": lambda run, _: run.push(tuple(run.pop(2))),
    "TUPLE3": lambda run, _: run.push(tuple(run.pop(3))),
    "BINPUT": _Interpreter.keep,
    "LONG_BINPUT": _Interpreter.keep,
    "MEMOIZE": lambda run, _: run.keep(len(run.memo)),
    "BINGET": lambda run, index: run.push(run.memo[index]),
    "LONG_BINGET": lambda run, index: run.push(run.memo[index]),
    "GLOBAL": _Interpreter.name,
    "STACK_GLOBAL": _Interpreter.name_on_stack,
    "REDUCE": _Interpreter.call,
    "BUILD": _Interpreter.set_state,
    "BINPERSID": _Interpreter.open_storage,
    "SETITEM": lambda run, _: run.set_items(run.pop(2)),
    "SETITEMS": lambda run, _: run.set_items(run.pop_to_mark()),
    "APPEND": lambda run, _: run.pop(1),
    "APPENDS": lambda run, _: run.pop_to_mark(),
}


def interpreted(data: bytes) -> object:
    """Return the value of a pickle, made of dicts, tuples, strings, numbers, `Storage` and `Tensor`.

    Raises:
        RefusedError: The pickle is damaged or needs anything else.
    """
    run = _Interpreter()
    with damage_in("its data.pkl"):
        for number, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if number == _MOST_OPCODES:
                raise RefusedError(f"has more than {_MOST_OPCODES:,} opcodes in its data.pkl; {EXPECTED}")
            operation = _OPCODES.get(opcode.name)
            if operation is None:
                found = f"{opcode.name} {shown(argument)}" if isinstance(argument, str) else opcode.name
                raise RefusedError(f"uses the pickle opcode {found}; {EXPECTED}; nothing was executed")
            operation(run, argument)
        return run.stack[-1]
