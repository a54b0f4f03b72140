"""Format `parquet`: a dataset as hubs keep it: parquet files with an image in each row, and its columns.

The image is a struct with the field `bytes`, a column of bytes, or a column of paths under `--images`. The
other columns are found as in any table (`columns.py`). Files named train-00000-of-00012.parquet, or in a folder
train, name their split. Images are read from their place, one row group at a time in each worker process.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import PIL.Image

from hybridclip_jax.data import pixels
from hybridclip_jax.data.formats.columns import ROLES, ROLES_BESIDE_IMAGES, Columns, add_flags, find_columns
from hybridclip_jax.data.formats.paths import OUTSIDE, image_folder, inside
from hybridclip_jax.data.formats.shards import split_of, split_of_folder
from hybridclip_jax.data.formats.table import Table, as_text, is_name
from hybridclip_jax.data.study import Format, RecordError, Skip, Source, Study
from hybridclip_jax.errors import UserError

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

PREFIX = "parquet-"
_FLAG = f"--{PREFIX}image-column"
_LAYOUTS = ("*.parquet", "data/*.parquet", "*/*.parquet")
_ROWS_AT_ONCE = 16  # of images that are Python's; pyarrow holds their page, for most writers the whole row group
# Images hardly shrink, nor do many rows fit a byte; what claims to would fill the memory.
_MOST_ROWS = (1_000_000, 0.25)  # in any case, for each byte of the file
_MOST_UNPACKED = (64_000_000, 100)  # bytes in any case, for each byte of the file
_LARGE_GROUP = 256_000_000  # bytes, worth a word: pyarrow was measured to take three times a row group


def _add_arguments(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        _FLAG,
        metavar="NAME",
        help="column of the image; found when it alone is a struct with bytes, or by the names "
        + ", ".join(ROLES["image"]),
    )
    add_flags(parser, ROLES_BESIDE_IMAGES, PREFIX)


def _read(args: argparse.Namespace) -> Source:
    source = Path(args.source)
    files = _files(source)
    with _open(files[0]) as first:
        schema = first.schema_arrow
    image, kind = _image_column(files[0], schema, args.parquet_image_column)
    folder = _images_folder(args.images, source, kind)
    rows = _read_rows(source, files, schema, image, kind)
    columns = find_columns(rows.table, args, ROLES_BESIDE_IMAGES, PREFIX)
    root = source.resolve() if source.is_dir() else source.resolve().parent
    root = root.parent if root.name == "data" else root  # hubs call every dataset's folder of files so
    return Source(
        studies=_Studies(rows, columns, image, folder),
        total=len(rows.places),
        labels=tuple(columns.labels),
        text_optional=columns.text_optional,
        namespace=f"parquet:{root.name}",
        public_ids=False,
        synthetic=False,
        notes={
            "files": f"{len(files)}; their rows are counted through",
            "image": f"column {image!r} ({kind})",
            **columns.notes,
            **rows.notes,
            "nested columns not used": ", ".join(name for name in schema.names if name not in (*rows.plain, image))
            or "none",
        },
    )


FORMAT = Format(
    "parquet",
    _add_arguments,
    _read,
    describe="parquet files as dataset hubs keep them: an image struct, bytes or path, and columns",
    example="--source my-dataset/data",
    paths=frozenset({"source", "images"}),
)


@dataclasses.dataclass(frozen=True, slots=True)
class _Place:
    """Where a row is, and what names its image: the path, where the table has only paths."""

    file: Path
    group: int
    row: int  # in its group
    image: str


@dataclasses.dataclass(frozen=True)
class _Rows:
    """All columns but the image as text, and where each row is."""

    table: Table
    places: list[_Place]
    plain: tuple[str, ...]  # the columns of the files that are in the table
    notes: dict[str, str]


@dataclasses.dataclass(frozen=True)
class _Studies:
    rows: _Rows
    columns: Columns
    image: str
    folder: Path | None  # of the images, where the table has paths

    def __iter__(self) -> Iterator[Study | Skip]:
        for row, (cells, place) in enumerate(zip(self.rows.table.rows, self.rows.places, strict=True), start=1):
            if self.folder is None:
                load_image = functools.partial(open_row, place.file, place.group, place.row, self.image)
                yield self.columns.study(row, cells, place.image, load_image)
            elif not place.image.strip():
                yield Skip(row, "no image named")
            elif (path := inside(self.folder, place.image)) is None:
                yield Skip(row, OUTSIDE)
            else:
                yield self.columns.study(row, cells, place.image, pixels.lazy(path))


def open_row(file: Path, group: int, row: int, column: str) -> PIL.Image.Image:
    """The image of one row of a row group; raises RecordError as `pixels.open_bytes` does, or where it has none."""
    import pyarrow as pa

    try:
        raw = _group(file, group, column).cell(row)
    except (pa.ArrowException, OSError, ValueError, StopIteration) as error:
        _group.cache_clear()  # what it holds stopped in the middle
        raise RecordError("damaged row group") from error
    if raw is None:
        raise RecordError("row without image bytes", unreadable=False)
    return pixels.open_bytes(raw)


class _Group:
    """The images of one row group, read forwards; going back starts over."""

    def __init__(self, file: Path, group: int, column: str) -> None:
        self._where = (file, group, column)
        self._restart()

    def _restart(self) -> None:
        import pyarrow.parquet as pq

        file, group, column = self._where
        opened = pq.ParquetFile(file, buffer_size=1 << 20)
        self._batches = opened.iter_batches(_ROWS_AT_ONCE, row_groups=[group], columns=[column], use_threads=False)
        self._start = self._end = 0

    def cell(self, row: int) -> bytes | None:
        if row < self._start:
            self._restart()
        while row >= self._end:
            self._batch = next(self._batches).column(0)
            self._start, self._end = self._end, self._end + len(self._batch)
        value = self._batch[row - self._start].as_py()
        raw: bytes | None = value.get("bytes") if isinstance(value, dict) else value
        return raw


@functools.lru_cache(maxsize=1)
def _group(file: Path, group: int, column: str) -> _Group:
    return _Group(file, group, column)


def _files(source: Path) -> list[Path]:
    if source.is_file():
        return [source]
    if not source.is_dir():
        raise UserError(f"{source}: no such file or folder; give --source a parquet file or the folder of them")
    for layout in _LAYOUTS:
        if found := sorted(source.glob(layout)):
            return found
    raise UserError(f"{source} holds no parquet files ({', '.join(_LAYOUTS)}): give --source their folder")


def _open(path: Path) -> pq.ParquetFile:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        opened = pq.ParquetFile(path)
        _ = opened.schema_arrow  # read only now, like the names of the columns, and no surer to be sound
    except (pa.ArrowException, OSError, ValueError) as error:
        raise UserError(f"{path} is damaged, cut off or no parquet file: copy or download it again") from error
    size = path.stat().st_size
    unpacked = sum(opened.metadata.row_group(group).total_byte_size for group in range(opened.num_row_groups))
    if opened.metadata.num_rows > max(_MOST_ROWS[0], _MOST_ROWS[1] * size) or unpacked > max(
        _MOST_UNPACKED[0], _MOST_UNPACKED[1] * size
    ):
        raise UserError(
            f"{path} says that its {size} bytes hold {opened.metadata.num_rows} rows and {unpacked} bytes of data:"
            " no images are so small"
        )
    return opened


def _image_column(first: Path, schema: pa.Schema, named: str | None) -> tuple[str, str]:
    """The column of the images and its kind: "struct", "bytes" or "path"."""
    if not all(map(is_name, schema.names)):  # as pandas makes of a table without a header
        raise UserError(f"{first}: its column names look like data: write it again with the names of the columns")
    kinds = {field.name: kind for field in schema if (kind := _kind(field.type))}
    if named is not None:
        if named not in kinds:
            raise UserError(f"{first}: no column {named!r} of images ({_FLAG}). It has {', '.join(schema.names)}")
        return named, kinds[named]
    usual = [name for name in kinds if name.lower() in ROLES["image"]]
    structs = [name for name, kind in kinds.items() if kind == "struct"]
    for found in (structs, [name for name in usual if kinds[name] == "bytes"], usual):
        if len(found) > 1:
            names = ", ".join(map(repr, found))
            raise UserError(f"{first}: columns {names} could each be the image: name one with {_FLAG}")
        if found:
            return found[0], kinds[found[0]]
    raise UserError(f"{first}: no column found for the image: name it with {_FLAG}. It has {', '.join(schema.names)}")


def _kind(type_: pa.DataType) -> str:
    import pyarrow.types as types

    if types.is_struct(type_):
        return "struct" if any(type_.field(i).name == "bytes" for i in range(type_.num_fields)) else ""
    if types.is_binary(type_) or types.is_large_binary(type_):
        return "bytes"
    return "path" if types.is_string(type_) or types.is_large_string(type_) else ""


def _images_folder(named: str | None, source: Path, kind: str) -> Path | None:
    if kind != "path":
        if named is not None:
            raise UserError(f"--images {named}: the images are in the parquet files; leave it out")
        return None
    return image_folder(named, source if source.is_dir() else source.parent)


def _read_rows(source: Path, files: list[Path], schema: pa.Schema, image: str, kind: str) -> _Rows:
    import pyarrow as pa
    import pyarrow.types as types

    plain = [f.name for f in schema if f.name != image and not types.is_nested(f.type) and _kind(f.type) != "bytes"]
    splits = {path: split_of(path.stem) or split_of_folder(path.parent.name) for path in files}
    add_split = any(splits.values()) and not any(name.lower() == "split" for name in plain)
    cells: list[list[str]] = []
    places: list[_Place] = []
    largest = 0
    for path in files:
        name = f"{path.parent.name}/{path.name}" if split_of_folder(path.parent.name) else path.name
        before = len(places)
        with _open(path) as opened:
            if opened.schema_arrow.names != schema.names:
                raise UserError(f"{path} has other columns than {files[0].name}: prepare them apart")
            for group in range(opened.num_row_groups):
                largest = max(largest, opened.metadata.row_group(group).total_byte_size)
                try:
                    batch = opened.read_row_group(group, columns=[*plain, image] if kind == "path" else plain)
                    columns = [batch.column(name).to_pylist() for name in plain]
                    paths = batch.column(image).to_pylist() if kind == "path" else None
                except (pa.ArrowException, OSError, ValueError) as error:
                    raise UserError(f"{path} is damaged in row group {group}: copy or download it again") from error
                for row in range(opened.metadata.row_group(group).num_rows):
                    cells.append([as_text(column[row]) for column in columns] + [splits[path]] * add_split)
                    number = len(places) - before + 1
                    places.append(
                        _Place(path, group, row, f"{name} {number}" if paths is None else as_text(paths[row]))
                    )
    if not places:
        raise UserError(f"{source} is empty: it has no rows")
    notes = {"split": "from the names of the files"} if add_split else {}
    if largest > _LARGE_GROUP and kind != "path":
        notes["row groups"] = f"up to {largest / 1e6:.0f} MB: each worker process takes about three times that memory"
    return _Rows(Table(source, (*plain, *["split"] * add_split), cells), places, tuple(plain), notes)
