"""Kernels compile where nothing can be kept on disk, too."""

import numpy as np

from chexseg.irnet import compiled


def test_compiles_and_keeps_division_by_zero_quiet():
    @compiled.jit()
    def ratio(a, b):
        return a / b

    assert ratio(3.0, 2.0) == 1.5
    assert ratio(1.0, 0.0) == np.inf


def test_without_a_folder_for_the_cache(monkeypatch):
    def njit(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: (function, options)

    monkeypatch.setattr(compiled, "njit", njit)
    function, options = compiled.jit(fastmath=("contract",))(len)
    assert function is len
    assert options == {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
