"""Where log lines go: one line each on stderr, warnings and worse unless asked for more."""

import logging
import sys
from typing import Any

# structlog imports rich where it is installed, for colours that our lines do not have: a tenth of a
# second, in which a run could have begun.
_is_absent = "rich" not in sys.modules
if _is_absent:
    sys.modules["rich"] = None  # type: ignore[assignment]
import structlog  # noqa: E402

if _is_absent:
    del sys.modules["rich"]

LEVELS = ("debug", "info", "warning", "error")


def configure(level: str = "warning") -> None:
    """Set up structlog for this process."""
    structlog.configure(
        processors=[
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _line,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(getattr(logging, level.upper())),
        logger_factory=structlog.PrintLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )


def _line(logger: Any, method: str, event: dict[str, Any]) -> str:
    """`iommufs: warning: what happened (key=value, …)`, a traceback below it."""
    text = f"iommufs: {event.pop('level')}: {event.pop('event')}"
    trace = event.pop("exception", None)
    if event:
        text += f" ({', '.join(f'{key}={value}' for key, value in event.items())})"
    return f"{text}\n{trace}" if trace else text
