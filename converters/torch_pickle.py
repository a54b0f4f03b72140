"""Reads the pickle inside a weight file as data: a machine for the few instructions that torch writes.

Python's own unpickler imports what a file names, calls it and sets its state. This machine builds dicts, lists, tuples,
strings and numbers. A name in the file is only looked up in a table that the caller passes, and what the table holds is
all that can ever be called.
"""

from __future__ import annotations

import dataclasses
import pickletools
import struct
from collections.abc import Callable
from typing import Any

from converters.torch_zip import AGAIN, Refusal, shown

# Bounds time and memory, since an empty dict costs one instruction. CLIP's 302 tensors take 9,277; with Adam's 28,252.
MAX_INSTRUCTIONS = 2_000_000
MAX_PROTOCOL = 5
MAX_NAME = 256


@dataclasses.dataclass(frozen=True, eq=False)
class Function:
    """What a file may call. It gets the arguments as the file wrote them and checks them itself."""

    call: Callable[[tuple[Any, ...]], Any]


@dataclasses.dataclass(frozen=True, eq=False)
class InertClass:
    """The class of a TorchScript module. Only its name is ever used."""

    name: str


@dataclasses.dataclass(eq=False)
class Inert:
    """A TorchScript module: whatever its class was, it is the dict of its attributes."""

    name: str
    attributes: dict[str, Any] | None = None


class Machine:
    """Runs one pickle. `find` gives the meaning of a global, `load` that of a persistent id; both may raise Refusal."""

    def __init__(self, data: bytes, find: Callable[[str, str], Any], load: Callable[[Any], Any]) -> None:
        self.data, self.position = data, 0
        self.find, self.load = find, load
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        """The object that the pickle describes. Raises Refusal."""
        try:
            for _ in range(MAX_INSTRUCTIONS):
                code = self.take(1)[0]
                if code == STOP:
                    return self.stack.pop()
                instruction = INSTRUCTIONS.get(code)
                if instruction is None:
                    raise Refusal(f"was refused: it uses pickle's {_name(code)}, which torch.save does not write")
                instruction(self)
        except (IndexError, KeyError, struct.error, UnicodeError) as error:
            raise Refusal(f"its data.pkl is damaged at byte {self.position:,}; {AGAIN}") from error
        raise Refusal(f"was refused: its data.pkl has more than {MAX_INSTRUCTIONS:,} instructions")

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise IndexError
        start, self.position = self.position, end
        return self.data[start:end]

    def number(self, form: str) -> Any:
        return struct.unpack(form, self.take(struct.calcsize(form)))[0]

    def since_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marked.pop()
        return items


def _name(code: int) -> str:
    known = [opcode.name for opcode in pickletools.opcodes if opcode.code == chr(code)]
    return f"instruction {known[0]}" if known else f"unknown instruction {code:#04x}"


def _protocol(machine: Machine) -> None:
    version = machine.take(1)[0]
    if version > MAX_PROTOCOL:
        raise Refusal(f"was refused: its data.pkl has pickle protocol {version}, torch writes 2 to {MAX_PROTOCOL}")


def _frame(machine: Machine) -> None:
    machine.take(8)


def _mark(machine: Machine) -> None:
    machine.marked.append(machine.stack)
    machine.stack = []


def _pusher(value: Any) -> Callable[[Machine], None]:
    return lambda machine: machine.stack.append(value)


def _number(form: str) -> Callable[[Machine], None]:
    return lambda machine: machine.stack.append(machine.number(form))


def _text(form: str) -> Callable[[Machine], None]:
    return lambda machine: machine.stack.append(machine.take(machine.number(form)).decode())


def _long(machine: Machine) -> None:
    machine.stack.append(int.from_bytes(machine.take(machine.take(1)[0]), "little", signed=True))


def _empty_list(machine: Machine) -> None:
    machine.stack.append([])


def _empty_dict(machine: Machine) -> None:
    machine.stack.append({})


def _tuple(machine: Machine) -> None:
    items = machine.since_mark()
    machine.stack.append(tuple(items))


def _short_tuple(count: int) -> Callable[[Machine], None]:
    def instruction(machine: Machine) -> None:
        items = [machine.stack.pop() for _ in range(count)]
        machine.stack.append(tuple(reversed(items)))

    return instruction


def _append(machine: Machine) -> None:
    item = machine.stack.pop()
    _a(list, machine.stack[-1]).append(item)


def _appends(machine: Machine) -> None:
    items = machine.since_mark()
    _a(list, machine.stack[-1]).extend(items)


def _set_item(machine: Machine) -> None:
    value, key = machine.stack.pop(), machine.stack.pop()
    _put(machine.stack[-1], key, value)


def _set_items(machine: Machine) -> None:
    items = machine.since_mark()
    for at in range(0, len(items), 2):
        _put(machine.stack[-1], items[at], items[at + 1])


def _put(target: Any, key: Any, value: Any) -> None:
    # Hashing a tuple can overflow the C stack, and integers past 64 bits can be chosen to share one hash.
    if type(key) is not str and (type(key) is not int or key.bit_length() > 64):
        raise Refusal(f"was refused: a dict has a key that is a {type(key).__name__}; keys are names or small numbers")
    if key in _a(dict, target):
        raise Refusal(f"was refused: a dict has the key {shown(str(key))} twice")
    target[key] = value


def _a(kind: type, value: Any) -> Any:
    if type(value) is not kind:
        raise Refusal(f"was refused: its data.pkl uses as a {kind.__name__} what is not one")
    return value


def _global(machine: Machine) -> None:
    module, name = _line(machine), _line(machine)
    machine.stack.append(machine.find(module, name))


def _line(machine: Machine) -> str:
    end = machine.data.find(b"\n", machine.position, machine.position + MAX_NAME)
    if end < 0:
        raise IndexError
    return machine.take(end + 1 - machine.position)[:-1].decode()


def _stack_global(machine: Machine) -> None:
    name, module = machine.stack.pop(), machine.stack.pop()
    machine.stack.append(machine.find(_a(str, module), _a(str, name)))


def _reduce(machine: Machine) -> None:
    arguments, function = machine.stack.pop(), machine.stack.pop()
    if type(function) is not Function or type(arguments) is not tuple:
        raise Refusal("was refused: its data.pkl calls something that is no function")
    machine.stack.append(function.call(arguments))


def _new_module(machine: Machine) -> None:
    arguments, kind = machine.stack.pop(), machine.stack.pop()
    if type(kind) is not InertClass or arguments != ():
        raise Refusal("was refused: its data.pkl makes an object that is not a TorchScript module")
    machine.stack.append(Inert(kind.name))


def _build(machine: Machine) -> None:
    state, target = machine.stack.pop(), machine.stack[-1]
    if type(target) is dict:  # the _metadata that torch hangs on a state dict
        return
    if type(target) is not Inert or type(state) is not dict or target.attributes is not None:
        raise Refusal("was refused: its data.pkl sets the state of something that is not a TorchScript module")
    for key in state:
        if type(key) is not str or (key.startswith("__") and key.endswith("__")):
            raise Refusal(f"was refused: {shown(target.name)} has an attribute {shown(str(key))}, as no module has")
    target.attributes = state


def _persistent(machine: Machine) -> None:
    machine.stack.append(machine.load(machine.stack.pop()))


def _get(form: str) -> Callable[[Machine], None]:
    return lambda machine: machine.stack.append(machine.memo[machine.number(form)])


def _keep(form: str) -> Callable[[Machine], None]:
    def instruction(machine: Machine) -> None:
        machine.memo[machine.number(form)] = machine.stack[-1]

    return instruction


def _keep_next(machine: Machine) -> None:
    machine.memo[len(machine.memo)] = machine.stack[-1]


STOP = ord(".")
# Names and codes are those of Python's pickletools.
INSTRUCTIONS: dict[int, Callable[[Machine], None]] = {
    0x80: _protocol,
    0x95: _frame,
    ord("("): _mark,
    ord("N"): _pusher(None),
    0x88: _pusher(True),
    0x89: _pusher(False),
    ord("K"): _number("<B"),
    ord("M"): _number("<H"),
    ord("J"): _number("<i"),
    0x8A: _long,
    ord("G"): _number(">d"),
    ord("X"): _text("<I"),
    0x8C: _text("<B"),
    ord("]"): _empty_list,
    ord("a"): _append,
    ord("e"): _appends,
    ord("}"): _empty_dict,
    ord("s"): _set_item,
    ord("u"): _set_items,
    ord(")"): _pusher(()),
    ord("t"): _tuple,
    0x85: _short_tuple(1),
    0x86: _short_tuple(2),
    0x87: _short_tuple(3),
    ord("c"): _global,
    0x93: _stack_global,
    ord("R"): _reduce,
    0x81: _new_module,
    ord("b"): _build,
    ord("Q"): _persistent,
    ord("h"): _get("<B"),
    ord("j"): _get("<I"),
    ord("q"): _keep("<B"),
    ord("r"): _keep("<I"),
    0x94: _keep_next,
}
