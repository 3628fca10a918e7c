"""A connection to a Ray cluster, or one of this machine for as long as it is needed. Nothing here imports Ray early."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, redirect_stdout
from typing import Any

from vggdeploy.errors import VggdeployError, first_line
from vggdeploy.system.optional import require

LOCAL = "local"
_KNOCK_SECONDS = 10.0
_STORE_BYTES = 128 * 2**20  # of a cluster of this machine: numbers and requests go through it, never models


def ray_module(*parts: str) -> Any:
    """Ray, with these parts of it imported. It sends no usage statistics from here.

    Raises:
        MissingDependencyError: it is not installed.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    for part in parts:
        require(f"ray.{part}", to="run on a Ray cluster", extra="ray")
    return require("ray", to="run on a Ray cluster", extra="ray")


def _knock(address: str) -> None:
    """Ray tries an address where nobody answers for minutes.

    Raises:
        OSError: nobody answers at ``HOST:PORT`` (of another form Ray itself says what is wrong).
    """
    host, colon, port = address.rpartition(":")
    if colon and port.isdecimal() and "/" not in host:
        with socket.create_connection((host, int(port)), timeout=_KNOCK_SECONDS):
            pass


@contextmanager
def cluster(address: str, variables: Mapping[str, str] | None = None) -> Iterator[Any]:
    """Ray, connected to ``local`` (a new cluster of this machine, which ends with the block), ``auto`` or ``HOST:PORT``.

    Args:
        variables: of the environment of every process that this one has started there.

    Raises:
        MissingDependencyError: Ray is not installed.
        VggdeployError: there is no cluster at that address.
    """
    ray = ray_module()
    if ray.is_initialized():  # by the application: then it is the application's
        yield ray
        return
    # Of a worker that dies Ray tells on stdout, where the result of the command belongs.
    with redirect_stdout(sys.stderr):
        yield from _connected(ray, address, variables or {})


def _connected(ray: Any, address: str, variables: Mapping[str, str]) -> Iterator[Any]:
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if variables:
        quiet["runtime_env"] = {"env_vars": dict(variables)}
    try:
        if address == LOCAL:
            cores = len(os.sched_getaffinity(0))
            # The address would otherwise be taken from $RAY_ADDRESS.
            ray.init("local", num_cpus=cores, include_dashboard=False, object_store_memory=_STORE_BYTES, **quiet)
        else:
            _knock(address)
            ray.init(address, **quiet)
    except (OSError, ValueError, RuntimeError, OverflowError) as error:
        raise VggdeployError(
            f"no Ray cluster answers at {address}: {first_line(error)}",
            "start one: ray start --head; or give --ray local",
        ) from error
    except Exception as error:  # Ray's own word for a node that takes more than 30 s
        ray.shutdown()
        raise VggdeployError(
            f"a Ray cluster does not start here: {first_line(error)}", "try again when the machine is less busy"
        ) from error
    try:
        yield ray
    finally:
        ray.shutdown()
