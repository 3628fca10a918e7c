"""The fakes of TensorRT and CUDA, and the stand-in, have nothing that the real libraries have not: no name, no other arity."""

from __future__ import annotations

import inspect
import operator
from collections.abc import Iterator
from enum import Enum
from typing import Any

import fakes.library
import pytest
import tensorrt_rtx
from fakes import names as enumerations
from fakes.gpu import Cudart
from test_api_contract import SURFACES, Use, cuda_arity, knows

# Class of the fake → class of the library, and the releases that have its methods.
FAKES = {
    "Runtime": ("Runtime", tuple(SURFACES)),
    "Engine": ("ICudaEngine", tuple(SURFACES)),
    "Context": ("IExecutionContext", tuple(SURFACES)),
    "Inspector": ("EngineInspector", tuple(SURFACES)),
    "Refitter": ("Refitter", tuple(SURFACES)),
    "OnnxParserRefitter": ("OnnxParserRefitter", tuple(SURFACES)),
    "ParserError": ("ParserError", tuple(SURFACES)),
    "RuntimeConfig": ("IRuntimeConfig", ("rtx",)),
    "RuntimeCache": ("IRuntimeCache", ("rtx",)),
}
# Of TensorRT for RTX alone; `create_runtime_config` has 10.13, too, and 10.3 has not.
OF_RTX = {"create_runtime_config", "get_engine_validity"}


ONLY_RTX_ENUMERATIONS = {
    *("CudaGraphStrategy", "DynamicShapesKernelSpecializationStrategy", "EngineValidity", "EngineInvalidityDiagnostics")
}


def fake_uses(cls: type[Any]) -> Iterator[Use]:
    """What a fake offers, as if our source used all of it."""
    for name, member in vars(cls).items():
        if name.startswith("_"):
            continue
        count = len(inspect.signature(member).parameters) - 1 if callable(member) else None
        yield Use("fakes", 0, cls.__name__, name, count)


@pytest.mark.parametrize("fake", FAKES)
def test_a_fake_has_nothing_that_the_library_has_not(fake: str) -> None:
    real, releases = FAKES[fake]
    offered = list(fake_uses(getattr(fakes.library, fake)))
    assert offered
    for release in releases:
        asked = [use for use in offered if release == "rtx" or use.name not in OF_RTX]
        assert [str(use) for use in asked if not knows(SURFACES[release], use, (real,))] == [], release


def test_the_stand_in_s_enumerations_are_the_real_ones() -> None:
    mine = {
        name: cls
        for name, cls in vars(enumerations).items()
        if isinstance(cls, type) and cls.__module__ == enumerations.__name__
    }
    assert len(mine) >= 8
    for name, cls in {**mine, "ILogger.Severity": enumerations.ILogger.Severity}.items():
        real = operator.attrgetter(name)(tensorrt_rtx)
        if issubclass(cls, Enum):
            assert {m.name: m.value for m in cls} == {
                m: int(v) for m, v in real.__members__.items() if m in cls.__members__
            }
            assert len(cls) == len(real.__members__) or name == "DataType", name
        for release, surface in SURFACES.items():
            assert name in surface or (release != "rtx" and name in ONLY_RTX_ENUMERATIONS), (release, name)


def test_the_fake_cuda_runtime_has_nothing_that_the_real_one_has_not() -> None:
    offered = {name: member for name, member in vars(Cudart).items() if name.startswith("cuda")}
    assert len(offered) >= 25
    for name, member in offered.items():
        assert len(inspect.signature(member).parameters) - 1 == cuda_arity(name), name
