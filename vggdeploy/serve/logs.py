"""The server's log: one JSON object a line, on stderr."""

from __future__ import annotations

import logging
import logging.config
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


def config() -> dict[str, Any]:
    """For `logging.config.dictConfig`, and for uvicorn, whose own lines take the same form."""
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"json": {"()": "vggdeploy.serve.logs.JsonLines"}},
        "handlers": {"stderr": {"class": "logging.StreamHandler", "formatter": "json", "stream": "ext://sys.stderr"}},
        "loggers": {
            name: {"handlers": ["stderr"], "level": "INFO", "propagate": False}
            for name in ("vggdeploy.serve", "uvicorn")
        },
    }


def say(message: str, **about: Any) -> None:
    """One line of information."""
    LOGGER.info(message, extra={"about": about})
