"""The licences of ROCO's figures: the files that tell them, and which of them are of one kind."""

from __future__ import annotations

import re
from pathlib import Path

from hybridclip_jax.data.formats.table import read_table

V1_FILE = "licences.txt"
V2_FILE = "license_information.csv"
_V2_COLUMNS = ("license", "licence", "cc", "attribution")
_LICENCE = re.compile(r"(CC[ -]?0|NO-CC|CC[ -]BY(?:-(?:NC|ND|SA))*)(?:[ -]\d\.\d)?", re.I)

Licences = dict[str, tuple[str, str]]  # article and licence by the figure's id


def v1_licences(path: Path) -> Licences:
    """What ROCO's file says; empty where there is no such file. UserError as `read_table` and `Table.positions`."""
    if not path.is_file():
        return {}
    table = read_table(path)
    name, article, licence = table.positions("ROCO_ID", "PMC_ID", "CC")
    return {cells[name].strip(): (cells[article].split("_")[0].strip(), cells[licence].strip()) for cells in table.rows}


def v2_licences(path: Path) -> tuple[Licences, str]:
    """What ROCOv2's file says, and in which column; UserError as for `v1_licences`."""
    if not path.is_file():
        return {}, f"no {V2_FILE}"
    table = read_table(path)
    (name,) = table.positions("ID")
    licence = next((i for i, column in enumerate(table.columns) if column.lower() in _V2_COLUMNS), None)
    article = next((i for i, column in enumerate(table.columns) if column.lower() in ("pmcid", "pmc_id")), None)
    found = {
        cells[name].strip(): (
            cells[article].strip() if article is not None else "",
            cells[licence].split("[")[0].strip() if licence is not None else "",  # "CC BY [authors (year)]"
        )
        for cells in table.rows
    }
    where = f"column {table.columns[licence]!r}" if licence is not None else "no licence among its columns"
    return found, f"{V2_FILE}: {where}"


def licence_kind(licence: str) -> str:
    """The licence without its version: CC BY-NC of "CC BY-NC 4.0"; what is no known licence stays as it is."""
    match = _LICENCE.match(licence.strip())
    found = match[1] if match else licence.strip()
    return re.sub(r"^CC[ -]", "CC ", found.upper()).replace("CC 0", "CC0")
