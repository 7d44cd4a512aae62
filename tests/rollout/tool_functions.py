"""A function that a process loads by its name; light, so that it does so fast."""

from __future__ import annotations

import ctypes
import os
from types import SimpleNamespace
from typing import Any

COUNT = [0]


def counts(word: str) -> Any:
    """Do what it is told to.

    Args:
        word: what.
    """
    COUNT[0] += 1
    if word == "hold the lock":
        ctypes.PyDLL(None).sleep(60)  # C code that does not give the interpreter lock away
    if word == "die":
        os._exit(7)
    if word == "raise":
        raise ValueError("no \ud800")
    if word == "end":
        return SimpleNamespace(text="the end", status="found", note="", final=True)
    print("noise on stdout")
    return {"count": COUNT[0]} if word == "count" else word
