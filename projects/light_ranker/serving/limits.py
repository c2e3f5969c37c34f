"""What the service accepts, and how much of it at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from tml.common.errors import ConfigError, TmlError


@dataclass(frozen=True)
class ServiceLimits:
    """Bounds of the service; with them its memory and its queues have bounds too.

    Args:
        max_body_bytes: of one request.
        max_candidates: of one request.
        max_requests: being read, waiting or scored at once; more are answered with 503.
        max_connections: open at once.
        body_seconds: to receive a body.
        score_seconds: to wait for and do the scoring.
        shutdown_seconds: for requests in progress when the service is told to stop.

    Raises:
        ConfigError: one is not positive.
    """

    max_body_bytes: int = 8 * 2**20
    max_candidates: int = 10_000
    max_requests: int = 32
    max_connections: int = 1_000
    body_seconds: float = 5.0
    score_seconds: float = 2.0
    shutdown_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not value > 0:
                raise ConfigError("a limit must be positive", where=name, value=value, limit="> 0")


class RequestError(TmlError):
    """A request that the service refuses.

    Args:
        status: of the HTTP response.
        what: and the rest as in `TmlError`.
    """

    def __init__(self, status: int, what: str, **rest: object) -> None:
        super().__init__(what, **rest)  # type: ignore[arg-type]
        self.status = status


class Gate:
    """Lets so many requests in and turns the others away at once. For one event loop, so it needs no lock."""

    def __init__(self, max_requests: int) -> None:
        self.max_requests, self.inside = max_requests, 0

    @contextmanager
    def admit(self) -> Iterator[Ticket]:
        """A place for one request, given back when the block ends, or later if the ticket is kept.

        Raises:
            RequestError: the house is full (503).
        """
        if self.inside >= self.max_requests:
            raise RequestError(
                503, "the service is busy", value=f"{self.inside} requests", limit=f"{self.max_requests} at once",
                fix="try again after the time in Retry-After, or start more services",
            )  # fmt: skip
        self.inside += 1
        ticket = Ticket(self)
        try:
            yield ticket
        finally:
            if not ticket.kept:
                ticket.give_back()


class Ticket:
    """A place behind the gate. A request that timed out keeps it until its thread is done, else work would pile up."""

    def __init__(self, gate: Gate) -> None:
        self._gate, self.kept = gate, False

    def keep(self) -> None:
        """The block's end does not give the place back; `give_back` will be called."""
        self.kept = True

    def give_back(self, *_: object) -> None:
        """The place is free."""
        self._gate.inside -= 1
