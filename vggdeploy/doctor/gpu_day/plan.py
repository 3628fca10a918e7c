"""The steps of a GPU day: their names, the file that has each, and how long it may take."""

from __future__ import annotations

from dataclasses import dataclass

NETWORKS = ("vgg16", "vgg16_bn", "vgg11", "vgg11_bn", "vgg13", "vgg13_bn", "vgg19", "vgg19_bn")


@dataclass(frozen=True)
class Step:
    """``function`` of ``vggdeploy.doctor.gpu_day.<module>`` yields readings; ``seconds`` is what it may take at most."""

    name: str
    module: str
    function: str
    seconds: float
    argument: str = ""


def plan() -> tuple[Step, ...]:
    """In the order of what one wants to know first: a day that is cut short has the most important readings."""
    return (
        Step("identity", "hardware", "identity", 60),
        Step("self-test", "hardware", "tried", 180),
        Step("roofs", "roofs", "roofs", 120),
        Step("vgg16", "networks", "whole", 240, "vgg16"),
        Step("onnxruntime", "backends", "onnxruntime", 420, "vgg16"),
        Step("tensorrt", "backends", "engines", 900, "vgg16"),
        Step("vgg16 compiled", "networks", "compiled", 420, "vgg16"),
        Step("copies", "hardware", "copies", 60),
        Step("memory", "hardware", "exhausted", 60),
        *(Step(name, "networks", "briefly", 90, name) for name in NETWORKS if name != "vgg16"),
    )
