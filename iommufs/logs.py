"""The log: a line for each thing that happened, with the facts of it as keywords.

    log = logs.get(__name__)
    log.warning("what happened", device="0000:00:06.0", count=2)

It is Python's own logging, so that tests and embedders see it as they see any other.
"""

import logging
import sys
from collections.abc import MutableMapping
from typing import Any


class Log(logging.LoggerAdapter):
    """A logger whose calls take facts by name; a record has them as `facts`."""

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        exc_info = kwargs.pop("exc_info", None)
        return msg, {"exc_info": exc_info, "extra": {"facts": dict(kwargs)}}


def get(name: str) -> Log:
    """The log of a module."""
    return Log(logging.getLogger(name), {})


def configure(level: str = "warning") -> None:
    """Let lines of a level and worse go to stderr, ours and no others."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_Line())
    log = logging.getLogger(__package__)
    log.handlers = [handler]
    log.propagate = False
    log.setLevel(level.upper())


class _Line(logging.Formatter):
    """`iommufs: warning: what happened (key=value, …)`, a traceback below it."""

    def format(self, record: logging.LogRecord) -> str:
        text = f"iommufs: {record.levelname.lower()}: {record.getMessage()}"
        facts = getattr(record, "facts", None)
        if facts:
            text += f" ({', '.join(f'{key}={value}' for key, value in facts.items())})"
        if record.exc_info:
            text += f"\n{self.formatException(record.exc_info)}"
        return text
