"""Pickles that attack: each is refused in one line, nothing that they name is executed, and they exhaust nothing."""

from __future__ import annotations

import argparse
import builtins
import io
import os
import pickle
import random
import time
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from archives import (
    ATTACK,
    EMPTY,
    HOOKS,
    NONE,
    NUMBERS,
    PERSISTENT,
    SCRIPT,
    STORED,
    TRAP,
    TRUE,
    Payload,
    attempt,
    call,
    dic,
    glob,
    lst,
    module,
    num,
    nums,
    outcome,
    packed,
    refusal,
    small_state,
    storage,
    tensor,
    text,
    tup,
    weights,
)
from torch import nn

from converters import torch_file, torch_pickle

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:torch.quantize:UserWarning")


def test_the_trap_works(tmp_path: Path) -> None:
    with pytest.raises(AssertionError, match="pickle.find_class, os.system while"), TRAP.around(tmp_path):
        pickle.loads(pickle.dumps(Payload(os.system, ATTACK)))
    assert (tmp_path / "marker").exists()


def test_the_hand_made_files_are_sound(tmp_path: Path) -> None:
    """So that every refusal below is for its one defect."""
    path = packed(tmp_path / "sound.pt", weights(tensor()))
    expected = torch.load(path, weights_only=True, map_location="cpu")["a.weight"].numpy()
    np.testing.assert_array_equal(attempt(path)[0]["a.weight"].read(), expected)
    np.testing.assert_array_equal(expected, NUMBERS.reshape(2, 3))
    path = packed(tmp_path / "script.pt", module("__torch__.Tower", text("weight"), tensor()), SCRIPT)
    np.testing.assert_array_equal(attempt(path)[0]["weight"].read(), expected)


# --- names

PAYLOADS: dict[str, Callable[[], Any]] = {
    f"{os.name}.system": lambda: Payload(os.system, ATTACK),
    "builtins.eval": lambda: Payload(eval, "open('marker', 'w')"),
    "builtins.exec": lambda: Payload(exec, "open('marker', 'w')"),
    "builtins.getattr": lambda: Payload(getattr, Payload(builtins.__import__, "os"), "system"),
    "builtins.__import__": lambda: Payload(builtins.__import__, "antigravity"),
    "io.open": lambda: Payload(open, "marker", "w"),
    "torch.nn.modules.linear.Linear": lambda: nn.Linear(2, 2),
    "torch.serialization.load": lambda: Payload(torch.load, "other.pt"),
    "torch.storage._load_from_bytes": lambda: Payload(torch.storage._load_from_bytes, b""),  # type: ignore[attr-defined]
    "numpy._core.multiarray.scalar": lambda: np.float64(0.5),
    "numpy._core.multiarray._reconstruct": lambda: np.ones(2),
    "argparse.Namespace": lambda: argparse.Namespace(lr=0.1),
    "torch._utils._rebuild_qtensor": lambda: torch.quantize_per_tensor(torch.ones(2), 0.1, 0, torch.qint8),
    "torch._utils._rebuild_sparse_tensor": lambda: torch.eye(2).to_sparse(),
    "torch._utils._rebuild_tensor_v3": lambda: torch.ones(2).to(torch.float8_e4m3fn),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("named", PAYLOADS)
def test_a_file_that_names_anything_else_is_refused_by_that_name(named: str, protocol: int, tmp_path: Path) -> None:
    path = tmp_path / "attack.pt"
    torch.save({"state_dict": {"a": torch.ones(2)}, "more": PAYLOADS[named]()}, path, pickle_protocol=protocol)
    line = refusal(path)
    expected = named.replace("builtins.", "__builtin__.") if protocol == 2 else named
    assert line.startswith(f"was refused: it names {expected}, which no weight file needs; "), line


NAMES = [
    "os.system",
    "builtins.eval",
    "builtins.getattr",
    "operator.attrgetter",
    "functools.partial",
    "importlib.import_module",
    "collections.Counter",
    "collections.OrderedDict.__init__",
    "collections.OrderedDict.fromkeys",
    "torch.load",
    "torch.FloatStorage.from_file",
    "torch.UntypedStorage",
    "torch.ComplexFloatStorage",
    "torch._utils._rebuild_tensor",
    "torch._utils._rebuild_parameter.__globals__",
    "torch.hub.load",
    "torch.jit._pickle.build_intlist",
    "torch.device",
    "__torch__.Tower",
    "__torch__.torch.nn.modules.linear.Linear",
    "__main__.Function",
    "converters.torch_pickle.Function",
]


@pytest.mark.parametrize("by_stack", [False, True], ids=["GLOBAL", "STACK_GLOBAL"])
@pytest.mark.parametrize("full", NAMES)
def test_no_other_name_is_known_to_a_plain_file(full: str, by_stack: bool, tmp_path: Path) -> None:
    owner, _, last = full.rpartition(".")
    asked = text(owner) + text(last) + b"\x93" if by_stack else glob(full)
    path = packed(tmp_path / "attack.pt", weights(call(asked, text(ATTACK))))
    assert refusal(path).startswith(f"was refused: it names {full}, which no weight file needs; ")


@pytest.mark.parametrize("full", ["os.system", "torch.nn.modules.linear.Linear", "__torch", "__torch__x.Tower"])
def test_a_torchscript_archive_knows_no_more_than_its_own_classes(full: str, tmp_path: Path) -> None:
    state = (text("forward"), call(glob(full), text(ATTACK)))
    path = packed(tmp_path / "attack.pt", module("__torch__.Tower", *state), SCRIPT)
    assert f"it names {full if '.' in full else '.' + full}" in refusal(path)


def test_a_name_in_the_line_cannot_break_it(tmp_path: Path) -> None:
    asked = text("os\n\x1b[2J\r") + text("system" * 50) + b"\x93"
    assert r"it names 'os\n\x1b[2J\rsystem" not in refusal(packed(tmp_path / "a.pt", asked))
    assert r"'os.\n\x1b[2J\r." in refusal(packed(tmp_path / "b.pt", text("os.\n\x1b[2J\r") + text("x") + b"\x93"))


SYSTEM = glob("os.system")
FLOATS, ORDERED = glob("torch.FloatStorage"), glob("collections.OrderedDict")
STRANGE: dict[str, tuple[bytes, str]] = {
    "INST": (b"(" + text(ATTACK) + b"ios\nsystem\n", "pickle's instruction INST"),
    "OBJ": (b"(" + ORDERED + b"o", "pickle's instruction OBJ"),
    "PERSID": (b"Pstorage\n", "pickle's instruction PERSID"),
    "EXT1": (b"\x82\x01", "pickle's instruction EXT1"),
    "NEWOBJ_EX": (ORDERED + EMPTY + b"}\x92", "pickle's instruction NEWOBJ_EX"),
    "DUP": (b"}2", "pickle's instruction DUP"),
    "LONG4": (b"\x8b\xff\xff\xff\x7f", "pickle's instruction LONG4"),
    "BINBYTES8": (b"\x8e" + b"\xff" * 8, "pickle's instruction BINBYTES8"),
    "NEXT_BUFFER": (b"\x97", "pickle's instruction NEXT_BUFFER"),
    "no instruction": (b"\xff", "pickle's unknown instruction 0xff"),
    "protocol": (b"\x80\x09", "pickle protocol 9"),
    "a string is called": (call(text("os.system"), text(ATTACK)), "calls something that is no function"),
    "a storage type is called": (call(FLOATS, num(3)), "calls something that is no function"),
    "a list is called": (call(b"]"), "calls something that is no function"),
    "called without a tuple": (ORDERED + b"]R", "calls something that is no function"),
    "a dict from pairs": (call(ORDERED, lst()), "collections.OrderedDict with 1 arguments"),
    "a tensor from nothing": (call(glob("torch._utils._rebuild_tensor_v2")), "_rebuild_tensor_v2 with 0 arguments"),
    "a parameter from one": (
        call(glob("torch._utils._rebuild_parameter"), NONE),
        "_rebuild_parameter with 1 arguments",
    ),
    "a negated view": (tensor(more=dic(text("neg"), TRUE)), "stored negated or conjugated"),
    "NEWOBJ of a function": (ORDERED + b")\x81", "makes an object that is not a TorchScript module"),
    "NEWOBJ of a string": (text("A") + b")\x81", "makes an object that is not a TorchScript module"),
    "state of a tensor": (tensor() + b"}b", "sets the state of something that is not a TorchScript module"),
    "state of a function": (ORDERED + dic(text("call"), ORDERED) + b"b", "sets the state of something"),
    "state of a storage": (storage() + dic(text("length"), num(9)) + b"b", "sets the state of something"),
    "state of a list": (b"]}b", "sets the state of something"),
    "items of a list": (b"]" + text("a") + NONE + b"s", "uses as a dict what is not one"),
    "items of a function": (ORDERED + text("call") + NONE + b"s", "uses as a dict what is not one"),
    "appended to a dict": (b"}Na", "uses as a list what is not one"),
    "appended to a tuple": (EMPTY + b"(Ne", "uses as a list what is not one"),
    "a name that is no string": (num(1) + num(2) + b"\x93", "uses as a str what is not one"),
    "a key that is a tuple": (dic(nums(1), NONE), "a key that is a tuple"),
    "a key that is a list": (dic(b"]", NONE), "a key that is a list"),
    "a key that is a bool": (dic(TRUE, NONE), "a key that is a bool"),
    "a key that is a tensor": (dic(tensor(), NONE), "a key that is a _View"),
    "a key that is huge": (dic(num(2**65), NONE), "a key that is a int"),
    "a key twice": (dic(text("a"), NONE, text("a"), TRUE), "the key a twice"),
    "a bare function": (dic(text("f"), ORDERED), "f is neither a tensor nor a plain value"),
    "a bare storage": (dic(text("f"), storage()), "f is neither a tensor nor a plain value"),
    "nothing but a function": (ORDERED, "was refused: its only value is neither a tensor nor a plain value"),
    "a bare storage type": (lst(FLOATS), "0 is neither a tensor nor a plain value"),
    "an id that is a string": (text("storage") + PERSISTENT, "points to something that is not a storage"),
    "an id that is None": (NONE + PERSISTENT, "points to something that is not a storage"),
    "an id that is a list": (lst(text("storage")) + PERSISTENT, "points to something that is not a storage"),
    "an id of four": (tup(text("storage"), FLOATS, text("0"), num(6)) + PERSISTENT, "not a storage"),
    "an id that is a module": (storage(tag=text("module")), "points to something that is not a storage"),
    "a type that is a string": (storage(kind=text("FloatStorage")), "a storage in a way that torch does not"),
    "a type that is a function": (storage(kind=ORDERED), "a storage in a way that torch does not"),
    "a key that is a number": (storage(key=num(0)), "a storage in a way that torch does not"),
    "a length below zero": (storage(length=num(-6)), "a storage in a way that torch does not"),
    "a length that is a bool": (storage(length=TRUE), "a storage in a way that torch does not"),
    "a length that is None": (storage(length=NONE), "a storage in a way that torch does not"),
    "a length past 64 bits": (storage(length=num(2**70)), "a storage in a way that torch does not"),
    "a key that climbs": (storage(key=text("../data.pkl")), "it has no entry data/../data.pkl, which a tensor needs"),
    "the memo is empty": (b"h\x00", "its data.pkl is damaged at byte 4"),
    "the memo of nothing": (b"(q\x00", "its data.pkl is damaged"),
    "the stack is empty": (b"R", "its data.pkl is damaged"),
    "no mark": (b"Nt", "its data.pkl is damaged"),
    "an odd number of items": (b"}(Nu", "its data.pkl is damaged"),
    "a string that never ends": (b"X\xff\xff\xff\xffabc", "its data.pkl is damaged"),
    "a string that is no UTF-8": (b"X\x02\x00\x00\x00\xff\xfe", "its data.pkl is damaged"),
    "a surrogate": (b"X\x03\x00\x00\x00\xed\xa0\x80", "its data.pkl is damaged"),
    "a name that never ends": (b"cos" + b"s" * 300, "its data.pkl is damaged"),
    "no stop": (b"\x95" + b"\x00" * 4, "its data.pkl is damaged"),
}


@pytest.mark.parametrize("kind", STRANGE)
def test_what_torch_does_not_write_is_refused(kind: str, tmp_path: Path) -> None:
    pickled, words = STRANGE[kind]
    assert words in refusal(packed(tmp_path / "strange.pt", pickled))


SCRIPT_STRANGE: dict[str, tuple[bytes, str]] = {
    "names __class__": (module("__torch__.A", text("__class__"), text("os.system")), "has an attribute __class__"),
    "names __reduce__": (module("__torch__.A", text("__reduce__"), tup(text(ATTACK))), "attribute __reduce__"),
    "names __setstate__": (module("__torch__.A", text("__setstate__"), NONE), "has an attribute __setstate__"),
    "attribute without a name": (module("__torch__.A", num(3), NONE), "has an attribute 3"),
    "state that is a list": (glob("__torch__.A") + b")\x81]b", "sets the state of something that is not"),
    "state twice": (module("__torch__.A") + b"}b", "sets the state of something that is not"),
    "made with arguments": (glob("__torch__.A") + tup(NONE) + b"\x81", "makes an object that is not"),
    "called": (call(glob("__torch__.A"), text("x")), "calls something that is no function"),
    "a bare class": (glob("__torch__.A"), "is neither a tensor nor a plain value"),
    "items": (glob("__torch__.A") + b")\x81" + text("a") + NONE + b"s", "uses as a dict what is not one"),
}


@pytest.mark.parametrize("kind", SCRIPT_STRANGE)
def test_a_module_of_an_archive_is_inert(kind: str, tmp_path: Path) -> None:
    pickled, words = SCRIPT_STRANGE[kind]
    assert words in refusal(packed(tmp_path / "script.pt", pickled, SCRIPT))


# --- files that would exhaust time, memory or the stack


def nested_lists(depth: int) -> bytes:
    return b"]" * depth + b"a" * (depth - 1)


def laughs(depth: int) -> bytes:
    """A list that holds a list twice, that holds a list twice, ..."""
    step = b"".join(b"](h" + bytes([at]) + b"h" + bytes([at]) + b"eq" + bytes([at + 1]) for at in range(depth))
    return b"]q\x00" + step


EXHAUSTING: dict[str, tuple[bytes, str]] = {
    "nested tuples": (b")" + b"\x85" * 1_000_000, "it nests deeper than 64 levels"),
    "nested tuples as a key": (b"})" + b"\x85" * 1_000_000 + b"Ns", "a key that is a tuple"),
    "nested lists": (nested_lists(500_000), "it nests deeper than 64 levels"),
    "nested modules' dicts": (b"}" + (text("a") + b"}") * 1000 + b"s" * 1000, "it nests deeper than 64 levels"),
    "a list in itself": (b"]q\x00h\x00a", "it nests deeper than 64 levels"),
    "a dict in itself": (b"}q\x00" + text("a") + b"h\x00s", "it nests deeper than 64 levels"),
    "a billion laughs": (laughs(40), "it holds more than 1,000,000 values"),
    "many values": (lst(b"N" * 1_000_001), "it holds more than 1,000,000 values"),
    "many instructions": (b"}" * 2_000_001, "more than 2,000,000 instructions"),
    "a long data.pkl": (
        text("x" * (16 << 20)),
        "its data.pkl has 16,777,224 bytes, a weight file's at most 16,777,216",
    ),
}


@pytest.mark.parametrize("kind", EXHAUSTING)
def test_a_file_cannot_exhaust_the_machine(kind: str, tmp_path: Path) -> None:
    pickled, words = EXHAUSTING[kind]
    assert words in refusal(packed(tmp_path / "large.pt", pickled))


def test_a_long_name_is_not_copied_for_every_tensor_below_it(tmp_path: Path) -> None:
    below = b"](" + tensor() + b"q\x00" + b"h\x00" * 99_999 + b"e"
    started = time.perf_counter()
    torch_file.read(packed(tmp_path / "named.pt", dic(text("x" * (8 << 20)), below)))
    assert time.perf_counter() - started < 30  # about 1 s, and minutes if it were


def test_a_memo_takes_room_for_what_is_in_it(tmp_path: Path) -> None:
    """Python's own would take 32 GB for a place this high."""
    path = packed(tmp_path / "memo.pt", weights(tensor() + b"r\xff\xff\xff\xff"))
    tracemalloc.start()
    attempt(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1 << 20


def test_what_all_tensors_claim_together_is_limited(tmp_path: Path) -> None:
    one = tensor(nums(1 << 20), nums(0))  # 4 MiB of one number; the file may claim 64 MiB and 8 times its own size
    path = packed(tmp_path / "claims.pt", b"](" + one + b"q\x00" + b"h\x00" * 15 + b"e")
    assert len(attempt(path)[1]) == 16
    path = packed(tmp_path / "claims.pt", b"](" + one + b"q\x00" + b"h\x00" * 16 + b"e")
    assert "was refused: 16 brings what its tensors claim to 71,303,168 bytes" in refusal(path)


def test_what_reading_all_views_would_fetch_is_limited(tmp_path: Path) -> None:
    """Two numbers, the first and the last of 4 MiB: the file may claim 64 MiB and 8 times its own size."""
    members = {**STORED, "data/0": bytes(4 << 20)}
    one = tensor(nums(2), nums((1 << 20) - 1), where=storage(length=num(1 << 20)))
    path = packed(tmp_path / "fetched.pt", b"](" + one + b"q\x00" + b"h\x00" * 23 + b"e", members)
    assert len(attempt(path)[1]) == 24
    path = packed(tmp_path / "fetched.pt", b"](" + one + b"q\x00" + b"h\x00" * 24 + b"e", members)
    assert "was refused: 24 brings what its tensors claim to 104,857,600 bytes" in refusal(path)


# --- damage


@pytest.mark.parametrize("script", [False, True], ids=["saved", "scripted"])
def test_no_damage_inside_the_pickle_gets_past_the_machine(script: bool, tmp_path: Path) -> None:
    """The checksum would catch most of it, so here every archive is packed anew around the damaged data.pkl."""
    with io.BytesIO() as stream:
        if script:
            torch.jit.save(torch.jit.script(nn.Sequential(nn.Linear(2, 3), nn.BatchNorm1d(3)).eval()), stream)
        else:
            torch.save(small_state(), stream)
        with zipfile.ZipFile(stream) as archive:
            members = {entry.partition("/")[2]: archive.read(entry) for entry in archive.namelist()}
    pickled = members.pop("data.pkl")[2:-1]
    rng, refused = random.Random(9), 0
    for _ in range(1500):
        changed = bytearray(pickled)
        for _ in range(rng.randrange(1, 4)):
            at = rng.randrange(len(changed))
            kind = rng.randrange(3)
            if kind == 0:
                changed[at] = rng.choice([*torch_pickle.INSTRUCTIONS, rng.randrange(256)])
            elif kind == 1:
                del changed[at : at + rng.randrange(1, 8)]
            else:
                changed[at:at] = rng.choice([b"R", b"b", b"(", b"t", b"\x81", b"h\x00", SYSTEM, HOOKS, b"}", b"Q"])
        refused += outcome(packed(tmp_path / "damaged.pt", bytes(changed), members)) is None
    assert refused > 1000
