"""Sessions: one open variant on one backend and device, arrays in, arrays out."""

from vggdeploy.runtime.base import Availability, CheckedSession, GpuOptions, Session
from vggdeploy.runtime.registry import BACKENDS, Backend, backend_for, get_backend
from vggdeploy.runtime.sessions import open_session, runnable

__all__ = [
    "BACKENDS",
    "Availability",
    "Backend",
    "CheckedSession",
    "GpuOptions",
    "Session",
    "backend_for",
    "get_backend",
    "open_session",
    "runnable",
]
