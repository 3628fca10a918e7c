"""What auto means on which machine, and what a machine cannot do."""

from __future__ import annotations

import ctypes
import subprocess
import sys

import msgspec
import pytest
import torch

from vggdeploy.errors import IncompatibleError
from vggdeploy.system.machine import machine
from vggdeploy.train import environment
from vggdeploy.train.environment import pick_precision
from vggdeploy.train.recipe import Recipe
from vggdeploy.train.recipe_file import resolve_recipe

CPU, GPU = torch.device("cpu"), torch.device("cuda:0")
LARGE, SMALL = resolve_recipe("classic", {}), Recipe()


@pytest.mark.parametrize(
    ("features", "recipe", "expected"),
    [
        (("avx512f", "avx512_bf16"), LARGE, "bf16"),
        (("amx_bf16",), LARGE, "bf16"),
        (("avx512f", "avx512_vnni"), LARGE, "fp32"),
        (("avx512_bf16",), msgspec.structs.replace(SMALL, width=0.25, hidden=512), "fp32"),  # casting would cost more
        (("avx512_bf16",), msgspec.structs.replace(SMALL, width=0.25, hidden=128, batch_size=128), "bf16"),
        (
            ("avx512_bf16",),
            msgspec.structs.replace(SMALL, width=0.25, hidden=4096, batch_size=64),
            "fp32",
        ),  # weights would
        (("avx512_bf16",), msgspec.structs.replace(LARGE, image_size=64), "bf16"),
        ((), msgspec.structs.replace(SMALL, precision="bf16"), "bf16"),  # asked for: it works everywhere, slowly
        (("avx512_bf16",), msgspec.structs.replace(LARGE, precision="fp32"), "fp32"),
    ],
)
def test_on_a_cpu(monkeypatch: pytest.MonkeyPatch, features: tuple[str, ...], recipe: Recipe, expected: str) -> None:
    monkeypatch.setattr(environment, "machine", lambda: msgspec.structs.replace(machine(), features=features))
    assert pick_precision(recipe, recipe.model_spec(), CPU) == expected


@pytest.mark.parametrize(("capability", "expected"), [((7, 5), "fp16"), ((8, 0), "bf16"), ((9, 0), "bf16")])
def test_on_a_gpu(monkeypatch: pytest.MonkeyPatch, capability: tuple[int, int], expected: str) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda _: capability)
    assert pick_precision(SMALL, SMALL.model_spec(), GPU) == expected


def test_fp16_needs_a_gpu() -> None:
    recipe = msgspec.structs.replace(SMALL, precision="fp16")
    with pytest.raises(IncompatibleError, match="--precision bf16"):
        pick_precision(recipe, recipe.model_spec(), CPU)
    assert pick_precision(recipe, recipe.model_spec(), GPU) == "fp16"


@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "malloc_trim"), reason="needs glibc")
def test_memory_is_kept_within_the_block_and_given_back_after_it() -> None:
    """In a process of its own: it changes the whole process, and a long one has other free blocks."""
    code = """
import resource, torch
from pathlib import Path
from vggdeploy.system.machine import memory_kept

def use():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(2**24)  # 64 MiB, allocated, written and freed
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1])

pages = 2**26 // resource.getpagesize()
with memory_kept():
    found = [use() for _ in range(30)]  # the allocator settles within a few steps; a training has thousands
    assert all(faults < pages / 10 for faults in found[-10:]), found
    kept = resident()
assert resident() < kept - pages / 2
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
