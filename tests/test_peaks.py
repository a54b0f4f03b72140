"""Peaks of devices as jax names them, and the reasons where there is none."""

from __future__ import annotations

import pytest

from hybridclip_jax import peaks

KINDS = {
    "Tesla V100-SXM2-16GB": ("float32", 15.7),
    "Tesla V100-SXM2-32GB": ("float16", 125.0),
    "Tesla V100-PCIE-16GB": ("float32", 14.0),
    "NVIDIA A100-SXM4-80GB": ("bfloat16", 312.0),
    "NVIDIA A100 80GB PCIe": ("float32", 156.0),
    "NVIDIA H100 80GB HBM3": ("bfloat16", 989.4),
    "NVIDIA H100 PCIe": ("bfloat16", 756.5),
    "NVIDIA H100 NVL": ("bfloat16", 835.5),
    "NVIDIA H200": ("bfloat16", 989.4),
    "NVIDIA L40S": ("bfloat16", 362.05),
    "TPU v4": ("bfloat16", 275.0),
    "TPU v5 lite": ("bfloat16", 197.0),
    "TPU v5e": ("bfloat16", 197.0),
    "TPU v5": ("bfloat16", 459.0),
    "TPU v5p": ("float32", 459.0),
    "TPU v6 lite": ("bfloat16", 918.0),
}


@pytest.mark.parametrize("kind", KINDS)
def test_peaks_of_devices_as_jax_names_them(kind: str) -> None:
    dtype, tflops = KINDS[kind]
    assert peaks.peak(kind, dtype).flops == tflops * 1e12


@pytest.mark.parametrize(
    ("kind", "dtype", "why"),
    [
        ("cpu", "float32", "no peak is known for the device 'cpu'"),
        ("NVIDIA RTX A1000", "float32", "no peak is known"),
        ("NVIDIA GH200 480GB", "float32", "no peak is known"),
        ("Tesla V100S-PCIE-32GB", "float32", "no peak is known"),
        ("NVIDIA A100-SXM4-40GB MIG 1g.5gb", "bfloat16", "slice"),
        ("Tesla V100-SXM2-16GB", "bfloat16", "v100 has no bfloat16"),
        ("TPU v4", "float16", "tpu-v4 has no float16"),
    ],
)
def test_an_unknown_peak_says_why(kind: str, dtype: str, why: str) -> None:
    found = peaks.peak(kind, dtype)
    assert found.flops is None
    assert why in found.why


def test_float32_is_held_against_the_units_jax_uses() -> None:
    assert peaks.peak("NVIDIA H200", "float32") == peaks.Peak(494.7e12, "float32 in tf32")
    assert peaks.peak("NVIDIA H200", "float32", "highest") == peaks.Peak(67e12, "float32")
    assert peaks.peak("Tesla V100-SXM2-16GB", "float32").why == "float32"
    assert peaks.peak("TPU v4", "float32").why == "float32 in bfloat16"
    assert peaks.peak("TPU v4", "float32", "highest").flops is None
