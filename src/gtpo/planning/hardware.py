"""Devices: memory, peak arithmetic and bandwidth from the makers' data sheets (dense, 16 bit; no sparsity)."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """One device.

    Attributes:
        memory_gib: memory of the device, in GiB.
        tflops: peak arithmetic at 16 bit, dense, in TFLOP/s.
        bandwidth_gbs: memory bandwidth, in GB/s.
    """

    memory_gib: float
    tflops: float
    bandwidth_gbs: float


HARDWARE: dict[str, Hardware] = {
    "rtx4090": Hardware(24e9 / GIB, 165, 1008),
    "l4": Hardware(24e9 / GIB, 121, 300),
    "a10": Hardware(24e9 / GIB, 125, 600),
    "l40s": Hardware(48e9 / GIB, 362, 864),
    "a100-40gb": Hardware(40e9 / GIB, 312, 1555),
    "a100-80gb": Hardware(80e9 / GIB, 312, 2039),
    "h100-80gb": Hardware(80e9 / GIB, 989, 3350),
    "h200": Hardware(141e9 / GIB, 989, 4800),
    "b200": Hardware(180e9 / GIB, 2250, 8000),
}
"""Devices by the name that `--device` takes. Sources: the makers' data sheets."""
