"""Trying again, patiently and not for ever."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar

from tml.common.errors import DataError, TmlError
from tml.ml_logging import get_logger

T = TypeVar("T")

# Trying again cannot mend these.
_FINAL = (
    FileNotFoundError,
    IsADirectoryError,
    NotADirectoryError,
    PermissionError,
    FileExistsError,
    NotImplementedError,
)


@dataclass(frozen=True)
class Retry:
    """How often and how patiently to try.

    Args:
        attempts: tries in all, at least 1.
        first_wait: seconds before the second try; doubles with each further one, with up to a quarter more at random.
        longest_wait: seconds a wait may last at most.
    """

    attempts: int = 5
    first_wait: float = 0.5
    longest_wait: float = 20.0

    def wait_before(self, attempt: int) -> float:
        """Seconds to wait before try number `attempt` (2, 3, ...)."""
        wait = min(self.longest_wait, self.first_wait * 2.0 ** (attempt - 2))
        # Ranks that failed together should not come back together.
        return wait * (1 + random.random() / 4)


def with_retry(operation: Callable[[], T], what: str, retry: Retry, sleep: Callable[[float], None] = time.sleep) -> T:
    """The operation's result, trying again on errors that may pass (I/O, time-outs, 5xx).

    Args:
        operation: does the whole thing afresh each time it is called.
        what: the operation and its object, for messages: "read gs://bucket/part-3.parquet".
        retry: the limits.
        sleep: waits; a parameter for tests.

    Raises:
        DataError: the last try failed too; names the object and the number of tries.
        OSError: a failure that trying again cannot mend, such as a missing file.
    """
    for attempt in range(1, retry.attempts + 1):
        try:
            return operation()
        except (TmlError, *_FINAL):
            raise
        except Exception as error:
            if attempt == retry.attempts or not may_pass(error):
                raise DataError(
                    f"could not {what}", where=what.split(" ", 1)[-1], value=f"{type(error).__name__}: {error}",
                    limit=f"tried {attempt} of {retry.attempts} times", fix="check the storage, then start again",
                ) from error  # fmt: skip
            wait = retry.wait_before(attempt + 1)
            get_logger(__name__).warning(
                "could not %s (try %d of %d): %s; trying again in %.1f s", what, attempt, retry.attempts, error, wait
            )
            sleep(wait)
    raise AssertionError("unreachable: attempts is at least 1")


def may_pass(error: Exception) -> bool:
    """Whether trying again may help: I/O errors, time-outs, and HTTP 408, 429 and 5xx."""
    status = getattr(error, "status", None) or getattr(error, "code", None) or getattr(error, "status_code", None)
    if isinstance(status, int) and 400 <= status < 600:
        return status >= 500 or status in (408, 429)
    return isinstance(error, OSError | TimeoutError | EOFError) or type(error).__name__ in (
        "HttpError", "ClientError", "ServerError", "ClientPayloadError", "ServerDisconnectedError",
    )  # fmt: skip
