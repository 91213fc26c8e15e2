"""Which engine runs a kernel, Numba or torch, and how Numba compiles one.

`jit` compiles at first use, without the GIL, and keeps the result on disk where a folder can be written. Inside kernels
copy arrays in a loop: compiling `a[:] = b` takes Numba seconds, for the sake of its error message.
"""

from collections.abc import Callable, Iterable
from typing import TypeVar

import torch
from numba import njit

Function = TypeVar("Function", bound=Callable)
ENGINES = ("auto", "numba", "torch")
# LLVM's flags for kernels that never see NaN or infinity: contraction to fused multiply-add, and no care for either.
FINITE = ("contract", "nsz", "nnan", "ninf")


def uses_numba(engine: str, device: torch.device) -> bool:
    """Whether `engine` (one of ENGINES) means Numba's CPU kernels on this device; `auto` means them on every CPU.

    Raises ValueError for any other name, and for `numba` on a GPU.
    """
    if engine not in ENGINES or (engine == "numba" and device.type != "cpu"):
        raise ValueError(f"engine {engine!r} is not auto, torch or (on the CPU) numba")
    return engine != "torch" and device.type == "cpu"


def jit(fastmath: Iterable[str] = ()) -> Callable[[Function], Function]:
    """Decorator that compiles a function; `fastmath` lists LLVM's flags, see FINITE."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath) or False}

    def decorate(function: Function) -> Function:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache can be written
            return njit(**options)(function)

    return decorate
