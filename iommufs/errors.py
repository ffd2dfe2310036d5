"""The one exception that becomes an errno of the client.

`why` is for the trace and the log, never for control flow. What cannot happen is an assertion.
"""

import errno as _errno


class UapiError(Exception):
    """A client's call fails with `errno`, for the reason `why`."""

    def __init__(self, errno: int, why: str = "") -> None:
        super().__init__(errno, why)
        self.errno = errno
        self.why = why

    def __str__(self) -> str:
        name = _errno.errorcode.get(self.errno, str(self.errno))
        return f"{name}: {self.why}" if self.why else name


def check(result: int, why: str = "") -> int:
    """Pass a result of the native core through; a negative one is raised as its errno."""
    if result < 0:
        raise UapiError(-result, why)
    return result
