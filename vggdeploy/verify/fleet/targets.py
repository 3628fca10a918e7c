"""Which targets there are. Adding one: a row here, and a file beside this one where it is of another kind."""

from __future__ import annotations

from collections.abc import Sequence

from vggdeploy.errors import unknown_name
from vggdeploy.verify.fleet.emulated import X86, AArch64
from vggdeploy.verify.fleet.target import Target
from vggdeploy.verify.fleet.web import Chromium, Node

TARGETS: tuple[Target, ...] = (
    X86("nehalem", "Intel Nehalem under qemu", cpu="Nehalem"),
    X86("haswell", "Intel Haswell under qemu", cpu="Haswell"),
    X86("skylake-server", "Intel Skylake-Server under qemu", cpu="Skylake-Server"),
    AArch64("cortex-a72", "Arm Cortex-A72 under qemu", cpu="cortex-a72"),
    Node("node-wasm", "WebAssembly in Node.js", "wasm", script="ort.node.min.mjs"),
    Chromium("chromium-wasm", "WebAssembly in Chromium", "wasm", script="ort.wasm.bundle.min.mjs"),
    Chromium("chromium-webgpu", "WebGPU in Chromium, on SwiftShader", "webgpu", script="ort.webgpu.bundle.min.mjs"),
)


def find_targets(names: Sequence[str] = ()) -> tuple[Target, ...]:
    """The targets of these names, in the order of the table; all of them for none.

    Raises:
        UsageError: there is no such target; the closest name is offered.
    """
    known = {target.name: target for target in TARGETS}
    wanted = {name.strip().lower().replace("_", "-") for name in names}
    for name in wanted - known.keys():
        raise unknown_name("target", name, known)
    return tuple(target for target in TARGETS if not wanted or target.name in wanted)
