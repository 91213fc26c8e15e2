"""Numba as the kernels use it: compiled at first use, kept on disk where a folder can be written, without the GIL.

Inside kernels, copy arrays in a loop: `a[:] = b` of two arrays takes Numba seconds to compile, for its error message.
"""

from collections.abc import Callable, Iterable

from numba import njit


def jit(fastmath: Iterable[str] = ()) -> Callable[[Callable], Callable]:
    """Decorator that compiles a function; `fastmath` lists LLVM's flags. NaN-free maths is for what cannot hold NaN."""
    options = {"nogil": True, "error_model": "numpy", "fastmath": set(fastmath) or False}

    def decorate(function: Callable) -> Callable:
        try:
            return njit(cache=True, **options)(function)
        except RuntimeError:  # neither the package's folder nor the user's cache can be written
            return njit(**options)(function)

    return decorate
