"""The server's log: one JSON object a line, on stderr."""

from __future__ import annotations

import logging
import time
from typing import Any

import msgspec

LOGGER = logging.getLogger("vggdeploy.serve")


class JsonLines(logging.Formatter):
    """``time`` (UTC), ``level``, ``message``, and what the call gave as ``extra={"about": {…}}``."""

    def format(self, record: logging.LogRecord) -> str:
        moment = time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created))
        line: dict[str, Any] = {
            "time": f"{moment}.{int(record.msecs):03d}Z",
            "level": record.levelname.lower(),
            "process": record.process,
            "message": record.getMessage(),
            **getattr(record, "about", {}),
        }
        if record.exc_info:
            line["traceback"] = self.formatException(record.exc_info)
        return msgspec.json.encode(line).decode()


def write_to_stderr() -> None:
    """Send the server's and uvicorn's lines there in this form. Other loggers and handlers of the process stay as they
    are: `logging.config` would first close all that there are, an application's own among them."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("vggdeploy.serve", "uvicorn"):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(logging.INFO)
        logger.propagate = False


def say(message: str, **about: Any) -> None:
    """One line of information."""
    LOGGER.info(message, extra={"about": about})
