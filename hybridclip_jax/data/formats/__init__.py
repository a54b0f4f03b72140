"""The dataset formats `prepare` reads: one file and one line each."""

from __future__ import annotations

from hybridclip_jax.data.formats import (
    chexpert,
    chexpert_plus,
    chexzero,
    csv,
    dicom,
    mimic_cxr,
    openi,
    padchest,
    parquet,
    phantom,
    plip,
    rexgradient,
    roco,
    tfds,
    webdataset,
)
from hybridclip_jax.data.study import Format, RecordError, Skip, Source, Study

FORMATS: dict[str, Format] = {
    "chexpert": chexpert.FORMAT,
    "chexpert-plus": chexpert_plus.FORMAT,
    "chexzero": chexzero.FORMAT,
    "csv": csv.FORMAT,
    "dicom": dicom.FORMAT,
    "mimic-cxr": mimic_cxr.FORMAT,
    "openi": openi.FORMAT,
    "padchest": padchest.FORMAT,
    "parquet": parquet.FORMAT,
    "phantom": phantom.FORMAT,
    "plip": plip.FORMAT,
    "rexgradient": rexgradient.FORMAT,
    "roco": roco.FORMAT,
    "tfds": tfds.FORMAT,
    "webdataset": webdataset.FORMAT,
}

__all__ = ["FORMATS", "Format", "RecordError", "Skip", "Source", "Study"]
