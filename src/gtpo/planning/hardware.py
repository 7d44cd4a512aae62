"""Devices: memory, arithmetic and bandwidth, as their makers state them (dense, 16 bit; no sparsity)."""

from __future__ import annotations

from dataclasses import dataclass

GIB = 2**30


@dataclass(frozen=True)
class Hardware:
    """One device.

    Attributes:
        memory_gib: of the device.
        tflops: at 16 bit, dense.
        bandwidth_gbs: of the memory, GB a second.
        link_gbs: to the other devices of the node, GB a second in one direction.
    """

    memory_gib: float
    tflops: float
    bandwidth_gbs: float
    link_gbs: float


HARDWARE: dict[str, Hardware] = {
    "rtx4090": Hardware(24e9 / GIB, 165, 1008, 25),
    "l4": Hardware(24e9 / GIB, 121, 300, 25),
    "a10": Hardware(24e9 / GIB, 125, 600, 25),
    "l40s": Hardware(48e9 / GIB, 362, 864, 25),
    "a100-40gb": Hardware(40e9 / GIB, 312, 1555, 300),
    "a100-80gb": Hardware(80e9 / GIB, 312, 2039, 300),
    "h100-80gb": Hardware(80e9 / GIB, 989, 3350, 450),
    "h200": Hardware(141e9 / GIB, 989, 4800, 450),
    "b200": Hardware(180e9 / GIB, 2250, 8000, 900),
}
"""By the name that `--device` takes. Sources: the data sheets of the makers. Consumer and L cards: PCIe 4.0 x16."""
