"""What devices can do at best: the peak rate of each, by the number format that its units multiply."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping


@dataclasses.dataclass(frozen=True)
class Device:
    """A device's peak rates: dense matrix products, TFLOP/s, by the number format that the units multiply.

    `kind` is a regular expression for jax's `device_kind`; a format that is absent has no units of its own.
    """

    name: str
    kind: str
    tflops: Mapping[str, float]


def _gpu(float32: float, tf32: float, half: float) -> dict[str, float]:
    return {"float32": float32, "tf32": tf32, "bfloat16": half, "float16": half}


# First match wins. All are dense rates (the sheets print twice as much "with sparsity") at boost clock.
# [checked]: read in a copy of the vendor's figures; [recalled]: not re-read when this table was written.
DEVICES: tuple[Device, ...] = (
    # NVIDIA V100 data sheet: PCIe 14 / 112, SXM2 15.7 / 125. [checked] No bfloat16, no TF32 (Volta).
    # V100S and V100-FHHL are clocked differently and are left out rather than guessed.
    Device("v100-pcie", r"\bV100-PCIE", {"float32": 14.0, "float16": 112.0}),
    Device("v100", r"\bV100-(SXM|DGXS)", {"float32": 15.7, "float16": 125.0}),
    # NVIDIA A100 data sheet: 19.5 / TF32 156 / 312, the same for SXM and PCIe, 40 and 80 GB. [checked]
    Device("a100", r"\bA100\b", _gpu(19.5, 156.0, 312.0)),
    # NVIDIA H100 data sheet: PCIe 51 / 756* / 1513*, SXM 67 / 989* / 1979* (* with sparsity). [checked]
    Device("h100-pcie", r"\bH100 PCIe", _gpu(51.0, 378.0, 756.5)),
    # NVIDIA H100 NVL and H200 NVL data sheets: 60 / 835* / 1671* (* with sparsity). [recalled]
    Device("h100-nvl", r"\bH100 NVL", _gpu(60.0, 417.5, 835.5)),
    Device("h100", r"\bH100 (\d+GB HBM3|SXM)", _gpu(67.0, 494.7, 989.4)),
    Device("h200-nvl", r"\bH200 NVL", _gpu(60.0, 417.5, 835.5)),
    # NVIDIA H200 data sheet: the H100 SXM's compute units at the same clocks. [checked]
    Device("h200", r"\bH200\b", _gpu(67.0, 494.7, 989.4)),
    # NVIDIA L40S data sheet: 91.6 / 183 / 362. [checked]
    Device("l40s", r"\bL40S\b", _gpu(91.6, 183.0, 362.05)),
    # cloud.google.com/tpu/docs/{v4,v5e,v5p,v6e}: peak bf16 compute per chip. [checked] From v4 on jax shows a
    # chip as one device. No float32 matrix units: float32 is multiplied in bfloat16 passes.
    Device("tpu-v4", r"TPU v4$", {"bfloat16": 275.0}),
    Device("tpu-v5e", r"TPU v5 ?(lite|e)$", {"bfloat16": 197.0}),
    Device("tpu-v5p", r"TPU v5p?$", {"bfloat16": 459.0}),
    Device("tpu-v6e", r"TPU v6 ?(lite|e)$", {"bfloat16": 918.0}),
)


# A multi-instance slice (MIG) or a virtual GPU (GRID) carries the whole GPU's name.
_SLICE = re.compile(r"\b(MIG|GRID)\b")


@dataclasses.dataclass(frozen=True)
class Peak:
    """`flops` per second of one device, or None; `why` says which units are meant, or why it is not known."""

    flops: float | None
    why: str


def find_device(kind: str) -> Device | None:
    """The table's entry for one of its names or for a `device_kind` of jax; None when there is none."""
    if _SLICE.search(kind):
        return None
    for device in DEVICES:
        if kind.lower() == device.name or re.search(device.kind, kind, re.IGNORECASE):
            return device
    return None


def peak(device_kind: str, dtype: str, precision: str | None = None) -> Peak:
    """The peak that arrays of `dtype` can reach on one device.

    float32 is held against the units that jax uses for it by default: TF32 tensor cores on NVIDIA GPUs from
    Ampere on, one bfloat16 pass on TPUs, plain float32 units on older GPUs (docs.jax.dev/201/precision).
    `precision` is the value of `jax_default_matmul_precision`: "highest" or "float32" means plain float32.
    """
    if _SLICE.search(device_kind):
        return Peak(None, f"{device_kind} is a slice of a GPU: its share of the peak is not in the table")
    device = find_device(device_kind)
    if device is None:
        return Peak(None, f"no peak is known for the device {device_kind!r}")
    units = dtype
    if dtype == "float32" and precision not in ("highest", "float32"):
        units = next((fast for fast in ("tf32", "float32", "bfloat16") if fast in device.tflops), dtype)
    if units not in device.tflops:
        return Peak(None, f"{device.name} has no {units} matrix units")
    return Peak(device.tflops[units] * 1e12, units if units == dtype else f"{dtype} in {units}")
