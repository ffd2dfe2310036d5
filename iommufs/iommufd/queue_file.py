"""What the open files of fault queues and event queues have in common."""

from collections.abc import Callable
from typing import Any


class QueueFile:
    """Holds its queue and the context while it is open. Its position is not looked at: a stream."""

    table = None

    def __init__(self, ctx: Any, queue: Any) -> None:
        self._ctx = ctx
        self._queue = queue
        self._open = True
        ctx.get()
        queue.get()

    def watch_poll(self, notify: Callable[[], None]) -> None:
        """Call `notify` at the next report: poll() may answer differently then."""
        self._queue.on_report = notify

    def release(self) -> None:
        """May be called twice: by who made a file that the client never got, and by its close."""
        if not self._open:
            return
        self._open = False
        self._queue.on_report = None
        self._queue.put()
        self._ctx.put()
