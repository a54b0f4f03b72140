"""Reads a CSV, TSV or JSON-lines file, gzipped or not, into named text columns; every complaint names the row,
never a cell's content.
"""

from __future__ import annotations

import codecs
import csv
import dataclasses
import gzip
import io
import json
import re
import zlib
from collections.abc import Iterator
from pathlib import Path

from hybridclip_jax.errors import UserError

SUFFIXES = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson")
_JSON = (".jsonl", ".ndjson")
_TABS = (".tsv", ".tab")
_GZIP = b"\x1f\x8b"
_LINE = re.compile(r"[^\r\n]+(?:\r\n?|\n)?|\r\n?|\n")
_LONGEST_NAME = 80  # characters
_DATA = re.compile(
    r".*\.(?:png|jpe?g|dcm|dicom|tiff?|bmp|gif|webp|txt|nii|gz)|.*[a-z_-]\d{6,}.*|.*\d{9,}.*|.*[\d.]{12,}.*"
    r"|.*\.|.*\n.*",
    re.I | re.S,
)
# Tables shrink 3 to 20 times; what unpacks to far more is no table and would fill the memory.
_MOST_UNPACKED = (64_000_000, 100)  # bytes in any case, times the packed size


@dataclasses.dataclass(frozen=True)
class Table:
    """`rows[i]` has one text a column, in the order of `columns`. Data rows count from 1: row i + 1 is
    `rows[i]`.
    """

    path: Path
    columns: tuple[str, ...]
    rows: list[list[str]]

    def positions(self, *names: str) -> tuple[int, ...]:
        """Where these columns are; UserError that names those missing and those there."""
        missing = [name for name in names if name not in self.columns]
        if missing:
            raise UserError(
                f"{self.path} lacks column {', '.join(map(repr, missing))}. It has {', '.join(map(repr, self.columns))}"
            )
        return tuple(self.columns.index(name) for name in names)

    def position(self, name: str) -> int | None:
        """Where this column is, None when the table has none."""
        return self.columns.index(name) if name in self.columns else None


def find_table(source: Path) -> Path:
    """`source` itself, or the one table in that folder; UserError when there is none or more than one."""
    if source.is_file():
        return source
    if not source.is_dir():
        raise UserError(f"{source}: no such table; give --source a CSV, TSV or JSONL file, or a folder that holds one")
    tables = sorted(path for path in source.iterdir() if path.is_file() and _suffix(path) in SUFFIXES)
    if not tables:
        raise UserError(f"{source} holds no table ({', '.join(SUFFIXES)}; or .gz): give --source the file itself")
    if len(tables) > 1:
        names = ", ".join(path.name for path in tables)
        raise UserError(f"{source} holds {len(tables)} tables ({names}): give --source one of them")
    return tables[0]


def _suffix(path: Path) -> str:
    inner = path.with_suffix("") if path.suffix.lower() == ".gz" else path
    return inner.suffix.lower()


def read_table(path: Path) -> Table:
    """The whole table. UTF-8 with or without a byte order mark; gzip is known by its first bytes, JSON lines by
    the suffix.

    JSON-lines values become text: null and NaN are blank, true is 1, false is 0; a column is any key of any
    line.

    Raises:
        UserError: unreadable, damaged gzip, not UTF-8, empty, a repeated column name, a row with more or fewer
            fields than the header, a quote left open, a line that is not a JSON object, or a value that is a list
            or an object.
    """
    return _read(path, json_lines=_suffix(path) in _JSON)


def read_json_lines(path: Path) -> Table:
    """As `read_table`, for a JSON-lines file with any suffix."""
    return _read(path, json_lines=True)


def _read(path: Path, json_lines: bool) -> Table:
    try:
        raw = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}") from error
    if raw.startswith(_GZIP):
        raw = _unpack(path, raw)
    text = _decode(path, raw, json_lines)
    del raw  # tables of reports are hundreds of megabytes
    columns, rows = _read_json_lines(path, text) if json_lines else _read_delimited(path, text)
    if not rows:
        raise UserError(f"{path} is empty: it has no data rows")
    return Table(path, columns, rows)


def _unpack(path: Path, packed: bytes) -> bytes:
    most = max(_MOST_UNPACKED[0], _MOST_UNPACKED[1] * len(packed))
    try:
        with gzip.GzipFile(fileobj=io.BytesIO(packed)) as file:
            raw = file.read(most + 1)
    except (EOFError, OSError, zlib.error) as error:
        raise UserError(f"{path} is a truncated or damaged gzip file: copy or download it again") from error
    if len(raw) > most:
        raise UserError(f"{path} unpacks to more than {most / 1e6:.0f} MB, too much for a table: unpack it yourself")
    return raw


def _decode(path: Path, raw: bytes, json_lines: bool) -> str:
    if raw.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{path} is UTF-16, not UTF-8: save it again as UTF-8")
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        # error.start counts from behind the byte order mark.
        start = error.start + (len(codecs.BOM_UTF8) if raw.startswith(codecs.BOM_UTF8) else 0)
        before = raw[:start].decode("utf-8-sig")
        # A character that ends nothing keeps the row being read, even where the bad byte is its first.
        fields_before = (
            [fields for fields in _reader(path, before + "x", strict=False) if fields] if not json_lines else []
        )
        row = before.count("\n") + 1 if json_lines else len(fields_before) - 1
        where = f"row {row}" if row > 0 else "the header"
        raise UserError(
            f"{path} {where} is not UTF-8 (byte {raw[start]:#04x} at offset {start}): save the table again as UTF-8"
        ) from error


def _reader(path: Path, text: str, *, strict: bool = True) -> Iterator[list[str]]:
    header = text.split("\n", 1)[0]
    # open_clip's tables are tab separated whatever their name.
    tabs = _suffix(path) in _TABS or ("\t" in header and "," not in header)
    # Not strict, the rows behind a quote left open would become part of one cell in silence.
    # Line by line from the text itself: io.StringIO would hold four bytes a character of it.
    lines = (match.group() for match in _LINE.finditer(text))
    reader = csv.reader(lines, delimiter="\t" if tabs else ",", strict=strict)
    done = 0
    try:
        for fields in reader:
            yield fields
            done += bool(fields)
    except csv.Error as error:
        raise UserError(f"{path} row {done}: {error}; is a quote left open there or in a row before?") from error


def _read_delimited(path: Path, text: str) -> tuple[tuple[str, ...], list[list[str]]]:
    reader = (fields for fields in _reader(path, text) if fields)  # a blank line is no row
    columns = tuple(name.strip() for name in next(reader, []))
    if not all(map(is_name, columns)):
        # Before any name is repeated in a message or a manifest: these may be a patient's.
        raise UserError(f"{path}: its first row looks like data: put the names of the columns in a row before it")
    for name in columns:
        if name and columns.count(name) > 1:
            raise UserError(f"{path}: the header names column {name!r} twice: rename one")
    rows: list[list[str]] = []
    for row, fields in enumerate(reader, start=1):
        if len(fields) != len(columns):
            raise UserError(
                f"{path} row {row} has {len(fields)} fields where the header has {len(columns)}:"
                " quote texts that hold the separator"
            )
        rows.append(fields)
    return columns, rows


def _read_json_lines(path: Path, text: str) -> tuple[tuple[str, ...], list[list[str]]]:
    records: list[dict[str, str]] = []
    columns: dict[str, None] = {}
    for line_number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        row = len(records) + 1
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise UserError(f"{path} row {row} (line {line_number}) is not JSON: one object a line") from error
        if not isinstance(record, dict):
            raise UserError(f"{path} row {row} (line {line_number}) is not a JSON object: one object a line")
        for name, value in record.items():
            if not is_name(name):
                raise UserError(f"{path} row {row} (line {line_number}) has data for a key: give each value a name")
            if isinstance(value, list | dict):
                raise UserError(f"{path} row {row}: {name!r} is a list or an object: make it a text or a number")
            columns.setdefault(name)
        texts = {name: as_text(value) for name, value in record.items()}
        try:
            json.dumps(texts, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise UserError(
                f"{path} row {row} holds half a character (a lone surrogate escape): mend that text"
            ) from error
        records.append(texts)
    return tuple(columns), [[record.get(name, "") for name in columns] for record in records]


def is_name(text: str) -> bool:
    """Whether a text may be the name of a column: not a file, a sentence, a long number or a long text."""
    return len(text) <= _LONGEST_NAME and _DATA.fullmatch(text) is None


def as_text(value: object) -> str:
    """A JSON value as a cell: null and NaN are blank, true is 1, false is 0."""
    if value is None or value != value:
        return ""
    if isinstance(value, bool):
        return str(int(value))
    return str(value)
