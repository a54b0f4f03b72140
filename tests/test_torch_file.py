"""Files that torch itself writes come back to the last bit, without torch, and only what is asked for is read."""

from __future__ import annotations

import io
import tracemalloc
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
import torch
from archives import (
    EMPTY,
    NONE,
    NUMBERS,
    TRUE,
    attempt,
    glob,
    lst,
    num,
    nums,
    packed,
    refusal,
    storage,
    tensor,
    text,
    tup,
    weights,
)
from torch import nn

from converters import torch_file, torch_zip
from converters.torch_file import StoredTensor
from hybridclip_jax.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning", "ignore:Detected pickle protocol")

DTYPES = {
    torch.float64: np.float64,
    torch.float32: np.float32,
    torch.float16: np.float16,
    torch.bfloat16: ml_dtypes.bfloat16,
    torch.int64: np.int64,
    torch.int32: np.int32,
    torch.int16: np.int16,
    torch.int8: np.int8,
    torch.uint8: np.uint8,
    torch.bool: np.bool_,
}


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, 2 * width), nn.GELU(), nn.Linear(2 * width, width))
        self.scales = nn.ParameterList([nn.Parameter(torch.randn(width)) for _ in range(2)])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x + self.mlp(self.norm(x))
        for scale in self.scales:
            x = x * scale
        return x


class Tower(nn.Module):
    """Nested modules, a list of parameters, a bare parameter, buffers, and attributes that are no tensors."""

    def __init__(self, width: int = 6) -> None:
        super().__init__()
        self.width = width
        self.names = ["a", "b"]
        self.sizes = [1, 2]
        self.ratios = {"mlp": 2.0}
        self.embedding = nn.Embedding(5, width)
        self.blocks = nn.ModuleList([Block(width) for _ in range(2)])
        self.norm = nn.BatchNorm1d(width)
        self.logit_scale = nn.Parameter(torch.tensor(2.6593))
        self.register_buffer("position_ids", torch.arange(5).expand(1, -1))

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embedding(ids + self.position_ids[0, 0] + self.sizes[0] - 1)
        for block in self.blocks:
            x = block(x)
        return self.norm(x.mean(1)) * self.logit_scale.exp() * self.ratios["mlp"]


def tower() -> Tower:
    torch.manual_seed(0)
    return Tower()


def mixed_precision() -> dict[str, torch.Tensor]:
    """As OpenAI's: matrices in half precision, the rest in single."""
    return {name: value.half() if value.ndim > 1 else value for name, value in tower().state_dict().items()}


def training_checkpoint(wrap: Callable[[nn.Module], nn.Module] = lambda model: model) -> dict[str, Any]:
    """As PubMedCLIP's: the weights inside a dict, and Adam's state, which is twice their size, beside them."""
    model = wrap(tower())
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3)
    model(torch.randint(0, 5, (4, 3))).square().sum().backward()
    optimizer.step()
    state = {"state_dict": model.state_dict(), "optimizer_state_dict": optimizer.state_dict()}
    return {"best_epoch": 7, **state, "best_loss": 0.25}


def every_dtype() -> dict[str, torch.Tensor]:
    numbers = torch.tensor([0.0, -0.0, 1.5, -2.0, 100.0])
    special = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e-42])
    found = {str(dtype): numbers.abs().to(dtype) for dtype in DTYPES}
    return found | {f"{dtype}/special": special.to(dtype) for dtype in DTYPES if dtype.is_floating_point}


def views() -> dict[str, torch.Tensor]:
    """Tensors that are not their storage in order, or share it."""
    base, image = torch.randn(6, 8), torch.randn(2, 3, 4, 5)
    tied = torch.randn(3, 2)
    return {
        "base": base,
        "transposed": base.t(),
        "rows": base[2:4],
        "columns": base[:, 3],
        "every other": base[1::2, ::3],
        "channels last": image.contiguous(memory_format=torch.channels_last),
        "permuted": image.permute(3, 0, 2, 1),
        "expanded": torch.randn(4, 1).expand(4, 3),
        "diagonal": base.diagonal(),
        "windows": torch.arange(10).unfold(0, 4, 1),
        "scalar": base[5, 7],
        "empty": torch.empty(0, 4),
        "empty view": base[:0],
        "half, transposed": torch.randn(4, 6).half().t(),
        "bfloat16, rows": torch.randn(4, 6).bfloat16()[1:3],
        "bool, transposed": torch.tensor([[True, False, True], [False, False, True]]).t(),
        "tied": tied,
        "tied again": tied,
    }


def any_views() -> dict[str, torch.Tensor]:
    """Two hundred random views into one storage, overlapping ones among them."""
    rng = np.random.default_rng(11)
    base, found = torch.randn(500), {}
    while len(found) < 200:
        n_dims = int(rng.integers(0, 5))
        size, stride = rng.integers(0, 5, n_dims).tolist(), rng.integers(0, 40, n_dims).tolist()
        start = int(rng.integers(0, 100))
        if start + sum(max(0, n - 1) * step for n, step in zip(size, stride, strict=True)) < 500:
            found[f"{start} {size} {stride}"] = torch.as_strided(base, size, stride, start)
    return found


def plain_values() -> dict[str, Any]:
    return {
        "numbers": [0, 1, 255, 256, 65_536, -1, 2**31, -(2**63), 2**100, 1.5, float("inf")],
        "others": (None, True, False, "", "Befund: Pleuraerguß \U0001fac1", torch.Size([2, 3]), ()),
        "nested": {"a": [{"b": (1, [2])}], 3: "integer key", -1: None},
        "long": "x" * 300,
        "tensors": [torch.ones(2), (torch.zeros(1),)],
    }


OBJECTS: dict[str, Callable[[], Any]] = {
    "state dict": lambda: tower().state_dict(),
    "state dict of DataParallel": lambda: nn.DataParallel(tower()).state_dict(),
    "training checkpoint": training_checkpoint,
    "parameters": lambda: dict(tower().named_parameters()),
    "mixed precision": mixed_precision,
    "every dtype": every_dtype,
    "views": views,
    "any views": any_views,
    "plain values": plain_values,
    "one tensor": lambda: torch.randn(3),
}


def to_path(obj: Any, path: Path) -> None:
    """The folder inside the archive has the file's name."""
    torch.save(obj, path)


def to_stream(obj: Any, path: Path) -> None:
    """The folder inside the archive is called archive."""
    with io.BytesIO() as stream:
        torch.save(obj, stream)
        path.write_bytes(stream.getvalue())


def in_protocol_5(obj: Any, path: Path) -> None:
    torch.save(obj, path, pickle_protocol=5)


def without_checksums(obj: Any, path: Path) -> None:
    torch.serialization.set_crc32_options(False)
    try:
        torch.save(obj, path)
    finally:
        torch.serialization.set_crc32_options(True)


def deflated(obj: Any, path: Path) -> None:
    """As a person who packs the files anew would have it, without the entries of newer versions."""
    with io.BytesIO() as stream:
        torch.save(obj, stream)
        with zipfile.ZipFile(stream) as old, zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as new:
            for name in old.namelist():
                if "/." not in name and not name.endswith("byteorder"):
                    new.writestr(name.replace("archive/", "my model/"), old.read(name))


FORMS = [to_path, to_stream, in_protocol_5, without_checksums, deflated]


def assert_same(found: Any, expected: Any) -> None:
    """Structure, types, dtypes, shapes and every bit."""
    if isinstance(expected, torch.Tensor):
        assert isinstance(found, StoredTensor)
        array = found.read()
        assert array.dtype == found.dtype == DTYPES[expected.dtype]
        assert array.shape == found.shape == expected.shape
        assert array.flags.c_contiguous and array.flags.writeable
        in_order = expected.detach().clone(memory_format=torch.contiguous_format)
        assert array.tobytes() == in_order.flatten().view(torch.uint8).numpy().tobytes()
    elif isinstance(expected, dict):
        assert isinstance(found, dict) and list(found) == list(expected)
        for key in expected:
            assert_same(found[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert type(found) is (list if isinstance(expected, list) else tuple) and len(found) == len(expected)
        for ours, theirs in zip(found, expected, strict=True):
            assert_same(ours, theirs)
    else:
        assert type(found) is type(expected) and found == expected


@pytest.fixture
def script_files(tmp_path: Path) -> dict[str, Path]:
    files = {"traced": tmp_path / "traced.pt", "scripted": tmp_path / "scripted.pt"}
    model = tower().eval()
    torch.jit.trace(model, torch.zeros(1, 3, dtype=torch.int64)).save(files["traced"])
    torch.jit.script(model).save(files["scripted"])
    return files


# --- what torch wrote


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.__name__)
@pytest.mark.parametrize("kind", OBJECTS)
def test_what_torch_saved_comes_back_to_the_last_bit(
    kind: str, form: Callable[[Any, Path], None], tmp_path: Path
) -> None:
    path = tmp_path / "weights.pt"
    form(OBJECTS[kind](), path)
    # torch's restricted unpickler knows protocol 2 alone, its full one all.
    assert_same(torch_file.read(path), torch.load(path, weights_only=form is not in_protocol_5))


@pytest.mark.parametrize("kind", ["traced", "scripted"])
def test_a_torchscript_archive_holds_the_state_dict_that_torch_loads(kind: str, script_files: dict[str, Path]) -> None:
    found = torch_file.read(script_files[kind])
    expected = torch.jit.load(script_files[kind]).state_dict()
    assert isinstance(found, torch_file.Module)
    assert len(expected) == 24
    assert_same(dict(sorted(torch_file.state_dict(found).items())), dict(sorted(expected.items())))
    assert_same(found["blocks"]["1"]["scales"]["0"], expected["blocks.1.scales.0"])
    assert found["blocks"]["0"]["training"] is False


class Attributes(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(2, 3).t())
        self.names, self.sizes, self.ratios, self.flags = ["a", "b"], [1, 2**40], [0.5], [True, False]
        self.table, self.pair, self.shape, self.nothing = {"mlp": 2.0}, (1, "x"), torch.Size([2, 3]), None
        self.extras, self.device = [torch.randn(2), torch.arange(3)], torch.device("cuda", 0)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        used = len(self.names) + len(self.sizes) + len(self.ratios) + len(self.flags) + self.pair[0] + self.shape[0]
        return x.to(self.device) @ self.weight * used * self.table["mlp"] + self.extras[0].sum()


def test_a_scripted_module_keeps_its_other_attributes(tmp_path: Path) -> None:
    model = Attributes()
    torch.jit.script(model).save(tmp_path / "attributes.pt")
    found = torch_file.read(tmp_path / "attributes.pt")
    for name in ("weight", "names", "sizes", "ratios", "flags", "table", "pair", "extras"):
        assert_same(found[name], getattr(model, name))
    assert (found["device"], found["shape"]) == ("cuda:0", (2, 3))


def test_bytes_of_a_bool_that_are_neither_0_nor_1_are_true(tmp_path: Path) -> None:
    torch.save({"mask": torch.tensor([2, 0, 255, 1], dtype=torch.uint8).view(torch.bool)}, tmp_path / "mask.pt")
    found = torch_file.read(tmp_path / "mask.pt")["mask"].read()
    assert found.tobytes() == bytes([1, 0, 1, 1])


def test_every_read_gives_a_copy_of_its_own(tmp_path: Path) -> None:
    torch.save(views(), tmp_path / "views.pt")
    found = torch_file.read(tmp_path / "views.pt")
    for name in ("tied", "transposed", "expanded"):
        first, kept = found[name].read(), found[name].read()
        first += 1
        assert not np.array_equal(first, kept)
        np.testing.assert_array_equal(kept, found[name].read())
    np.testing.assert_array_equal(found["tied"].read(), found["tied again"].read())


# --- what is read, and when


def test_a_checkpoint_is_read_without_its_optimizer_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.save(training_checkpoint(), tmp_path / "best_model.pth")
    touched: list[str] = []
    bytes_of = torch_zip.Archive.bytes_of

    def noted(archive: torch_zip.Archive, member: torch_zip.Member, start: int, count: int) -> np.ndarray:
        touched.append(member.name.partition("/")[2])
        return bytes_of(archive, member, start, count)

    monkeypatch.setattr(torch_zip.Archive, "bytes_of", noted)
    weights = torch_file.state_dict(torch_file.read(tmp_path / "best_model.pth"))
    assert touched == ["byteorder", "data.pkl"]
    for stored in weights.values():
        stored.read()
    assert len(touched) == 2 + len(weights) == 2 + len(tower().state_dict())


@pytest.mark.parametrize("form", [to_path, deflated], ids=["stored", "deflated"])
def test_one_tensor_costs_its_own_memory(form: Callable[[Any, Path], None], tmp_path: Path) -> None:
    n_bytes, rows = 4 << 20, torch.randn(1024, 1024)
    whole = {str(at): torch.randn(1024, 1024) for at in range(4)}
    form({**whole, "rows": rows[:10], "transposed": rows.t()}, tmp_path / "large.pt")
    found = torch_file.read(tmp_path / "large.pt")
    torch_file.read(tmp_path / "large.pt")["0"].read()  # imports and caches
    for name, most in {"2": 1.0, "rows": 0.01, "transposed": 2.0}.items():
        tracemalloc.start()
        found[name].read()
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        chunk = 4 * torch_zip.CHUNK if form is deflated else 0
        assert peak <= most * n_bytes + chunk + 200_000, f"{name} took {peak} bytes"


def test_a_view_of_a_deflated_storage_may_begin_and_end_anywhere(tmp_path: Path) -> None:
    torch.manual_seed(0)
    base = torch.randn(torch_zip.CHUNK)  # four chunks, of which each holds 65,536 numbers
    cuts = [
        (0, 1),
        (0, 65_536),
        (65_535, 65_537),
        (70_000, 140_000),
        (65_536, 131_072),
        (1, 262_144),
        (262_143, 262_144),
    ]
    obj = {"base": base, **{str(cut): base[slice(*cut)] for cut in cuts}}
    deflated(obj, tmp_path / "views.pt")
    assert_same(torch_file.read(tmp_path / "views.pt"), obj)


def test_a_file_that_changes_after_opening_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "weights.pt"
    torch.save({"a": torch.ones(8)}, path)
    tensor = torch_file.read(path)["a"]
    torch.save({"a": torch.ones(9)}, path)
    with pytest.raises(UserError, match=r"weights.pt: was changed while it was being read"):
        tensor.read()


# --- finding the weights


def named(obj: Any, tmp_path: Path) -> dict[str, StoredTensor]:
    torch.save(obj, tmp_path / "named.pt")
    return torch_file.state_dict(torch_file.read(tmp_path / "named.pt"))


ONE = {"a.weight": torch.ones(2)}


@pytest.mark.parametrize(
    "obj",
    [
        ONE,
        *({wrapper: ONE, "epoch": 3} for wrapper in torch_file.WRAPPERS),
        {"state_dict": ONE, "best_accuracy": torch.tensor(0.5)},
        {"model": {"state_dict": ONE}, "optimizer": {"state": {0: {"step": torch.tensor(1.0)}}}},
        {"model": "vit", "state_dict": ONE},
        {"model": {"name": "vit"}, "state_dict": ONE},
        {"module.a.weight": torch.ones(2)},
        {"state_dict": {"module.a.weight": torch.ones(2)}},
        {"module.module.a.weight": torch.ones(2)},
        {"a": {"weight": torch.ones(2)}},
        {"state_dict": {"module": {"a": {"weight": torch.ones(2)}}}, "args": {"lr": 0.1}},
    ],
    ids=str,
)
def test_the_weights_are_found_whatever_is_around_them(obj: Any, tmp_path: Path) -> None:
    assert list(named(obj, tmp_path)) == ["a.weight"]


def test_names_stay_where_a_prefix_or_wrapper_means_something(tmp_path: Path) -> None:
    assert set(named({"module.a": torch.ones(1), "b": torch.ones(1)}, tmp_path)) == {"module.a", "b"}
    beside = {"model": {"a": torch.ones(1)}, "logit_scale": torch.ones(())}
    assert set(named(beside, tmp_path)) == {"model.a", "logit_scale"}
    assert set(named({"stages": [torch.ones(1), {"a": torch.ones(1)}]}, tmp_path)) == {"stages.0", "stages.1.a"}


def test_a_training_checkpoint_of_dataparallel_gives_the_names_of_its_model(tmp_path: Path) -> None:
    found = named(training_checkpoint(nn.DataParallel), tmp_path)
    assert list(found) == list(tower().state_dict())


@pytest.mark.parametrize(
    ("obj", "words"),
    [
        ({"epoch": 1, "state_dict": {}}, "holds no weights by name"),
        (torch.ones(2), "holds no weights by name"),
        ([torch.ones(2)], "holds no weights by name"),
        (3, "holds no weights by name"),
        ({"model": ONE, "state_dict": ONE}, "holds weights under state_dict and model"),
        ({"a.b": torch.ones(1), "a": {"b": torch.ones(1)}}, "two weights are named a.b"),
        ({"a\x1b[2Jb": torch.ones(1)}, r"'a\x1b[2Jb'"),
        ({"a\nb": torch.ones(1)}, r"'a\nb'"),
        ({"a" * 300: torch.ones(1)}, "a weight has a name that is no name"),
    ],
    ids=str,
)
def test_what_holds_no_weights_by_name_is_refused(obj: Any, words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        named(obj, tmp_path)
    assert words in str(caught.value)
    assert str(caught.value).isprintable()


# --- tensors that reach where they should not


HUGE = 2**62
BOUNDS: dict[str, tuple[bytes, str]] = {
    "stride": (tensor(stride=nums(4, 1)), "reaches past the end of its storage of 6 numbers"),
    "offset": (tensor(start=num(1)), "reaches past the end of its storage of 6 numbers"),
    "offset alone": (tensor(EMPTY, EMPTY, num(6)), "reaches past the end of its storage of 6 numbers"),
    "offset past 64 bits": (tensor(start=num(2**64)), "an offset, a size or a stride that is not a number from 0"),
    "negative stride": (tensor(stride=nums(-3, 1), start=num(5)), "stride that is not a number from 0"),
    "negative size": (tensor(size=nums(-2, 3)), "stride that is not a number from 0"),
    "negative offset": (tensor(start=num(-1)), "an offset, a size or a stride that is not a number from 0"),
    "size that wraps around": (tensor(nums(2**32, 2**32), nums(0, 0)), "tensors claim to"),
    "stride that wraps around": (tensor(nums(5, 1), nums(HUGE, 1)), "reaches past the end of its storage"),
    "huge shape of one number": (tensor(nums(10**6, 10**6), nums(0, 0)), "brings what its tensors claim to"),
    "huge shape of none": (tensor(nums(0, HUGE, HUGE), nums(0, 0, 0)), "brings what its tensors claim to"),
    "many dimensions": (tensor(nums(*[1] * 9), nums(*[1] * 9)), "has 9 sizes and 9 strides; at most 8"),
    "fewer strides than sizes": (tensor(stride=nums(3)), "has 2 sizes and 1 strides"),
    "sizes in a list": (tensor(size=lst(num(2), num(3))), "is not described as torch describes tensors"),
    "size that is a bool": (tensor(size=tup(TRUE, num(3))), "stride that is not a number from 0"),
    "size that is a string": (tensor(size=tup(text("2"), num(3))), "stride that is not a number from 0"),
    "storage that is none": (tensor(where=NONE), "is not described as torch describes tensors"),
    "storage that is a tensor": (tensor(where=tensor()), "is not described as torch describes tensors"),
    "longer storage": (tensor(where=storage(length=num(7))), "data/0 has 24 bytes, not those of 7 numbers of float32"),
    "wider storage": (tensor(where=storage(glob("torch.DoubleStorage"))), "not those of 6 numbers of float64"),
    "missing storage": (tensor(where=storage(key=text("1"))), "it has no entry data/1, which a tensor needs"),
}


@pytest.mark.parametrize("kind", BOUNDS)
def test_a_tensor_outside_its_storage_is_refused(kind: str, tmp_path: Path) -> None:
    pickled, words = BOUNDS[kind]
    line = refusal(packed(tmp_path / "bounds.pt", weights(pickled)))
    assert words in line
    assert "a.weight" in line or "data/" in line


@pytest.mark.parametrize(
    ("size", "stride", "start"), [((2, 3), (3, 1), 0), ((2, 2), (4, 1), 0), ((1,), (99,), 5), ((1, 2), (2**62, 1), 4)]
)
def test_the_last_number_of_a_storage_can_be_reached(
    size: tuple[int, ...], stride: tuple[int, ...], start: int, tmp_path: Path
) -> None:
    path = packed(tmp_path / "edge.pt", weights(tensor(nums(*size), nums(*stride), num(start))))
    expected = torch.load(path, weights_only=True, map_location="cpu")["a.weight"].numpy()
    np.testing.assert_array_equal(attempt(path)[0]["a.weight"].read(), expected)
    assert NUMBERS[-1] in expected
