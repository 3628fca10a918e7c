"""Which CPUs are taken to cut sums of INT8 products off, and which to multiply in BF16."""

from __future__ import annotations

import msgspec
import pytest

from vggdeploy.system import machine


@pytest.mark.parametrize(
    ("features", "architecture", "limit", "saturates"),
    [
        (("avx2", "fma"), "x86_64", "", True),
        (("avx2", "avx512f"), "x86_64", "", True),
        (("avx2", "avx_vnni"), "x86_64", "", False),
        (("avx2", "avx512f", "avx512_vnni"), "x86_64", "", False),
        (("avx2", "avx512f", "avx512_vnni"), "x86_64", "avx2", True),
        (("avx2", "avx512f", "avx512_vnni"), "x86_64", "AVX512_CORE_VNNI", False),
        ((), "x86_64", "", True),
        (("asimd",), "aarch64", "", False),
    ],
)
def test_int8_saturates_on_x86_without_vnni(
    features: tuple[str, ...], architecture: str, limit: str, saturates: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = msgspec.structs.replace(machine.machine(), features=features)
    monkeypatch.setattr(machine, "machine", lambda: here)
    monkeypatch.setattr(machine.platform, "machine", lambda: architecture)
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert machine.int8_saturates() == saturates


@pytest.mark.parametrize(
    ("features", "limit", "multiplies"),
    [
        (("avx2",), "", False),
        (("avx512f", "avx512_vnni"), "", False),
        (("avx512_bf16",), "", True),
        (("amx_bf16",), "AVX512_CORE_AMX", True),
        (("amx_bf16",), "avx512_core_vnni", False),
        (("asimd", "bf16"), "", True),
    ],
)
def test_bf16_is_multiplied_where_the_cpu_has_it_and_onednn_may_use_it(
    monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...], limit: str, multiplies: bool
) -> None:
    here = msgspec.structs.replace(machine.machine(), features=features)
    monkeypatch.setattr(machine, "machine", lambda: here)
    monkeypatch.setenv("DNNL_MAX_CPU_ISA", "")
    monkeypatch.setenv("ONEDNN_MAX_CPU_ISA", limit)
    assert machine.multiplies_bf16() == multiplies
