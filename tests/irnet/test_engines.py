"""Which engine is chosen, and kernels that compile where nothing can be kept on disk, too."""

import numpy as np
import pytest
import torch

from chexseg.irnet import engines


def test_auto_is_numba_on_a_cpu_and_torch_elsewhere():
    cpu, other = torch.device("cpu"), torch.device("meta")
    assert [engines.uses_numba(name, cpu) for name in ("auto", "numba", "torch")] == [True, True, False]
    assert not engines.uses_numba("auto", other) and not engines.uses_numba("torch", other)


@pytest.mark.parametrize(("engine", "device"), [("cuda", "cpu"), ("", "cpu"), ("numba", "meta"), ("numba", "cuda")])
def test_other_engines_are_refused(engine, device):
    with pytest.raises(ValueError, match=f"engine '{engine}'"):
        engines.uses_numba(engine, torch.device(device))


def test_compiles_and_keeps_division_by_zero_quiet():
    @engines.jit()
    def ratio(a, b):
        return a / b

    assert ratio(3.0, 2.0) == 1.5
    assert ratio(1.0, 0.0) == np.inf


def test_without_a_folder_for_the_cache(monkeypatch):
    def njit(cache=False, **options):
        if cache:
            raise RuntimeError("cannot cache function: no locator available")
        return lambda function: (function, options)

    monkeypatch.setattr(engines, "njit", njit)
    function, options = engines.jit(fastmath=("contract",))(len)
    assert function is len
    assert options == {"nogil": True, "error_model": "numpy", "fastmath": {"contract"}}
