"""A store: prepared images and texts in one folder that opens in an instant and never half-written.

manifest.json      what is inside, how it was made, sha256 of every other file
images-00000.npy   uint8 [n, 320, 320, C], memory-mapped, 4096 records a file; C = 1 (grey) or 3 (colour).
                   With encoding "jpeg" images-00000.array_record, a JPEG a record
table.parquet      one row a record, same order: id, study, patient, split, view, text, sections, n_tokens,
                   labels, licence, source_row, image_sha256 (of the pixels that prepare made), and where these
                   are not the stored bytes, stored_sha256. Labels as the source gives them; the policy is in
                   the manifest
skipped.jsonl      {"row", "reason"} of each source row that was left out
"""

from __future__ import annotations

import hashlib
import json
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from hybridclip_jax.data.encoding import ENCODINGS, SIDE, Shard, sha256, shard_name
from hybridclip_jax.data.manifest import TABLE, wrong_field
from hybridclip_jax.errors import UserError

SHARD_RECORDS = 4096
FORMAT_NAME = "hybridclip store"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
SKIPPED = "skipped.jsonl"
FIXED_COLUMNS = (
    *("id", "study", "patient", "split", "view", "text", "n_tokens", "licence", "source_row"),
    *("image_sha256", "stored_sha256"),
)


def file_sha256(path: Path) -> str:
    """sha256 of a file, as 64 hex digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Store:
    """One split of a prepared store. Row numbers count within the split, from 0. Picklable."""

    def __init__(self, spec: str, path: Path, split: str, manifest: dict[str, Any], fingerprint: str) -> None:
        self.spec = spec
        self.path = path
        self.split = split
        self.manifest = manifest
        self.fingerprint = fingerprint  # sha256 of manifest.json, which holds the sha256 of all else
        self.channels = int(manifest["channels"])
        self.synthetic = bool(manifest["synthetic"])
        self.encoding = str(manifest["encoding"])  # "raw" or "jpeg"
        self.label_names = tuple(manifest["labels"]["names"])
        self._shards: dict[int, Shard] = {}

        try:
            with (path / TABLE).open("rb") as file:  # given a path, pyarrow would expand a "~" in it
                # Its threads now and then abort a process that ends soon after.
                table = pq.read_table(file, use_threads=False)
        except (OSError, pa.ArrowException) as error:
            raise UserError(f"{path / TABLE} is damaged: copy the store again, or run prepare again") from error
        if table.num_rows != manifest["records"]:
            raise UserError(
                f"{path / TABLE} has {table.num_rows} rows where the manifest counts {manifest['records']}:"
                " run prepare again"
            )
        fields = {**dict.fromkeys(manifest["sections"], "sections"), **dict.fromkeys(self.label_names, "labels.names")}
        for column, field in fields.items():
            if column not in table.column_names:
                raise UserError(f"{path / MANIFEST}: {field}: {path / TABLE} has no {column!r}: run prepare again")
        chosen = pc.equal(table["split"], split)
        self._rows = np.flatnonzero(chosen.to_numpy())  # row of the whole store, for each row of this split
        if len(self._rows) != manifest["splits"][split]["records"]:
            raise UserError(f"{path / MANIFEST}: splits.{split} is not as prepare writes it: run prepare again")
        table = table.filter(chosen)
        self.ids: list[str] = table["id"].to_pylist()
        self.studies: list[str] = table["study"].to_pylist()
        self.patients: list[str] = table["patient"].to_pylist()
        self.texts: list[str] = table["text"].to_pylist()
        self.views: list[str] = table["view"].to_pylist()
        self.sections: dict[str, list[str]] = {name: table[name].to_pylist() for name in manifest["sections"]}
        self.n_tokens: np.ndarray = table["n_tokens"].to_numpy().astype(np.int32)  # with start and end token, uncut
        self.licences: list[str] = table["licence"].to_pylist()
        self.source_rows: np.ndarray = table["source_row"].to_numpy().astype(np.int64)
        self.image_sha256: list[str] = table["image_sha256"].to_pylist()  # of the pixels before they were encoded
        same = "stored_sha256" not in table.column_names
        self._stored_sha256: list[str] = self.image_sha256 if same else table["stored_sha256"].to_pylist()
        policy = manifest["labels"]
        # float32 [n] by name, nan = not known, after the manifest's policy for uncertain (-1) and blank
        # values
        self.labels: dict[str, np.ndarray] = _by_policy(
            {name: table[name].to_numpy(zero_copy_only=False).astype(np.float32) for name in self.label_names},
            policy["uncertain"],
            policy["blank"],
        )

    @classmethod
    def open(cls, spec: str, copy: Path | None = None) -> Store:
        """Opens "PATH" or "PATH:SPLIT"; with `copy` the same store from another folder that holds it whole.

        Raises:
            UserError: nothing there, not a store, a store of another format version, files missing or of
                another size than the manifest says, a damaged table, no records, a split that is not there, or
                several splits and none named.
        """
        path, split = parse_spec(spec)
        manifest, fingerprint = read_manifest(path)
        splits = list(manifest["splits"])
        listing = ", ".join(f"{name} ({counts['records']})" for name, counts in manifest["splits"].items())
        if not manifest["records"]:
            raise UserError(f"{path} holds no records: run prepare again on a source that has some")
        if split is None:
            if len(splits) > 1:
                raise UserError(f"{path} has several splits: name one as {path}:SPLIT. It has {listing}")
            split = splits[0]
        elif split not in splits:
            raise UserError(f"{path} has no split {split!r}. It has {listing}")
        path = copy or path
        _check_files(path, manifest)
        if file_sha256(path / TABLE) != manifest["files"][TABLE]["sha256"]:  # small, unlike the images
            raise UserError(f"{path / TABLE} is damaged (sha256): copy the store again, or run prepare again")
        return cls(spec, path, split, manifest, fingerprint)

    def __len__(self) -> int:
        return len(self._rows)

    def __getstate__(self) -> dict[str, Any]:
        # A pickled memory map would carry its pixels; the other process opens the files itself.
        return self.__dict__ | {"_shards": {}}

    @property
    def namespace(self) -> str:
        """Ids of two stores can be equal only within one namespace."""
        return str(self.manifest["ids"]["namespace"])

    @property
    def key_fingerprint(self) -> str:
        """Tells keys apart without telling the key."""
        return str(self.manifest["ids"]["key_fingerprint"])

    @cached_property
    def patient_set(self) -> frozenset[str]:
        """The distinct patients (hashed) of this split."""
        return frozenset(self.patients)

    def image(self, row: int) -> np.ndarray:
        """uint8 [320, 320, C]: of raw pixels a view of the mapped file, of a JPEG what it decodes to.

        Raises:
            UserError: the record is damaged where it cannot be read at all; `intact` finds every damage.
        """
        shard, place = self._place(row)
        try:
            return self._shard(shard).image(place)
        except (OSError, ValueError, IndexError) as error:
            path = self._shard_path(shard)
            raise UserError(f"{path}: record {place} is damaged: copy the store again, or run prepare again") from error

    def images(self, rows: np.ndarray) -> np.ndarray:
        """uint8 [n, 320, 320, C], copied from the files, in the order of `rows` [n]."""
        out = np.empty((len(rows), SIDE, SIDE, self.channels), np.uint8)
        for i, row in enumerate(rows):
            out[i] = self.image(int(row))
        return out

    def intact(self, row: int) -> bool:
        """Whether the record's stored bytes have the checksum that the table gives them."""
        shard, place = self._place(row)
        try:
            return sha256(self._shard(shard).stored(place)) == self._stored_sha256[row]
        except (UserError, OSError, ValueError, IndexError):
            return False

    def verify(self) -> None:
        """Reads every file whole; raises UserError naming the first whose sha256 is not the manifest's."""
        for name, facts in self.manifest["files"].items():
            if file_sha256(self.path / name) != facts["sha256"]:
                raise UserError(f"{self.path / name} is damaged (sha256): copy the store again, or run prepare")

    def _place(self, row: int) -> tuple[int, int]:
        shard, place = divmod(int(self._rows[row]), int(self.manifest["shard_records"]))
        return shard, place

    def _shard_path(self, index: int) -> Path:
        return self.path / shard_name(index, ENCODINGS[self.encoding].suffix)

    def _shard(self, index: int) -> Shard:
        shard = self._shards.get(index)
        if shard is None:
            path = self._shard_path(index)
            try:
                shard = ENCODINGS[self.encoding].open(path, self.channels)
            except (OSError, ValueError) as error:
                raise UserError(f"{path} cannot be read as a store's images: run prepare again") from error
            self._shards[index] = shard
        return shard


def _by_policy(raw: dict[str, np.ndarray], uncertain: str, blank: str) -> dict[str, np.ndarray]:
    """Labels float32 [n] by name, nan = blank, after the policy for uncertain (-1) and blank values.

    Where there are several labels and all of a row are blank, nobody labelled the row: they stay nan even where
    blank means negative.
    """
    labelled = np.any([~np.isnan(values) for values in raw.values()], axis=0) if len(raw) > 1 else True
    replacement = np.float32({"ignore": np.nan, "zero": 0.0, "one": 1.0}[uncertain])
    found = {}
    for name, values in raw.items():
        if blank == "negative":
            values = np.where(np.isnan(values) & labelled, np.float32(0), values)
        found[name] = np.where(values == -1, replacement, values)
    return found


def parse_spec(spec: str) -> tuple[Path, str | None]:
    """The folder and the split, where one is named, of "PATH" or "PATH:SPLIT"."""
    # A folder may have a colon in its name, so what exists decides before the colon does.
    if Path(spec).exists() or ":" not in spec:
        return Path(spec), None
    path, split = spec.rsplit(":", 1)
    return Path(path), split


def read_manifest(path: Path) -> tuple[dict[str, Any], str]:
    """The manifest at `path` and its sha256; UserError where there is no store of this format version."""
    if not path.exists():
        raise UserError(f"{path}: no such store; make one: hybridclip prepare --format NAME --source PATH --out {path}")
    try:
        raw = (path / MANIFEST).read_bytes()
        manifest = json.loads(raw)
        version = manifest["format_version"]
        known = manifest["format"] == FORMAT_NAME
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise UserError(f"{path} is not a store: it has no {MANIFEST} that prepare wrote") from error
    if not known:
        raise UserError(f"{path / MANIFEST} is not as prepare writes it: run prepare again")
    if version != FORMAT_VERSION:
        raise UserError(f"{path} has store format {version} and this program reads {FORMAT_VERSION}: prepare it again")
    if field := wrong_field(manifest):
        raise UserError(f"{path / MANIFEST}: {field} is not as prepare writes it: run prepare again")
    if manifest["encoding"] not in ENCODINGS:
        known = ", ".join(ENCODINGS)
        raise UserError(f"{path}: its images are encoded as {manifest['encoding']!r}, and this program reads {known}")
    return manifest, hashlib.sha256(raw).hexdigest()


def _check_files(path: Path, manifest: dict[str, Any]) -> None:
    for name, facts in manifest["files"].items():
        try:
            size = (path / name).stat().st_size
        except OSError as error:
            raise UserError(f"{path / name} is missing: copy the store again, or run prepare again") from error
        if size != facts["bytes"]:
            raise UserError(
                f"{path / name} has {size} bytes where the manifest says {facts['bytes']}:"
                " copy the store again, or run prepare again"
            )


def check_comparable(a: Store, b: Store) -> str:
    """Whether equal ids mean one patient: "comparable", or "not comparable by id" (different namespaces).

    Raises:
        UserError: one namespace but two keys, so that one patient has two ids and every overlap would count
            as zero.
    """
    if a.namespace != b.namespace:
        return "not comparable by id"
    if a.key_fingerprint != b.key_fingerprint:
        raise UserError(
            f"{a.spec} and {b.spec} were made with different patient keys, so their patients cannot be"
            " compared: make both with one key (HYBRIDCLIP_PATIENT_KEY, or the key file of one user)"
        )
    return "comparable"
