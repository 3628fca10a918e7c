"""What each kernel of a variant takes, and which layers of the network it computes."""

from __future__ import annotations

from vggdeploy.records.base import RESULT_VERSION, Record
from vggdeploy.records.bench import Machine
from vggdeploy.types import Verdict


class KernelRow(Record, frozen=True, kw_only=True):
    """One kernel, as its library reports it. ``ms`` is the median over the calls.

    ``layers`` are the network's layers that it computes, all members where they are fused; none for a kernel that only
    moves or rearranges data.
    """

    kernel: str
    kind: str
    layers: tuple[str, ...]
    ms: float


class VariantProfile(Record, frozen=True, kw_only=True):
    """One variant at one batch size, while its library was timing every kernel: that slows it down.

    Medians over ``calls`` calls, in ms a batch: ``call_ms`` by the host's clock, with the copies to and from a GPU;
    ``kernels_ms`` the sum of a call's kernels; ``overhead_ms`` what the kernels do not explain of a call. ``plain_ms`` is
    a call of the same session without any timing: only that one compares with a bench. ``unnamed`` says why no layers
    are named.
    """

    variant: str
    backend: str
    device: str
    sha256: str
    batch: int
    calls: int
    plain_ms: float
    call_ms: float
    kernels_ms: float
    overhead_ms: float
    kernels: tuple[KernelRow, ...]
    unnamed: str = ""
    verdict: Verdict
    reasons: tuple[str, ...] = ()


class ProfileReport(Record, frozen=True, kw_only=True):
    """What ``vggdeploy bench --profile-layers --json`` prints."""

    schema_version: int = RESULT_VERSION
    bundle: str
    created: str
    machine: Machine
    threads: int
    data: str
    profiles: tuple[VariantProfile, ...]
    tools: dict[str, str] = {}
    command: str = ""
