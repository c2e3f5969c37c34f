"""The one tree of errors that a user of `tml` can meet.

Every message answers five questions: what is wrong, where, which value, what the limit is and how to mend it.

    raise DataError(
        "node id out of range", where="edges/part-3.parquet, row 17, column rhs", value=72_543,
        limit="0 <= id < 72543 (table 'tweet')", fix="raise num_embeddings of 'tweet' or convert the data again",
    )
"""

from __future__ import annotations


class TmlError(Exception):
    """Base class: a fault the user can understand and mend.

    Args:
        what: one clause, lower case, without a full stop.
        where: file, row, column, config path or rank.
        value: the offending value (shown with `repr`, shortened at 200 characters).
        limit: what would have been right.
        fix: the next thing to do.
    """

    def __init__(
        self,
        what: str,
        *,
        where: object = None,
        value: object = None,
        limit: object = None,
        fix: str | None = None,
    ) -> None:
        self.what, self.where, self.value, self.limit, self.fix = what, where, value, limit, fix
        super().__init__(self._message())

    def _message(self) -> str:
        parts = [self.what]
        if self.where is not None:
            parts.append(f"  where: {self.where}")
        if self.value is not None:
            shown = repr(self.value)
            parts.append(f"  value: {shown if len(shown) <= 200 else shown[:197] + '...'}")
        if self.limit is not None:
            parts.append(f"  limit: {self.limit}")
        if self.fix is not None:
            parts.append(f"  fix: {self.fix}")
        return "\n".join(parts)

    def __reduce__(self) -> tuple[object, ...]:
        # Errors cross process borders (torchrun's error files, gathered failures); keyword-only arguments need help.
        return (_rebuild, (type(self), self.what, self.where, self.value, self.limit, self.fix))


def _rebuild(kind: type[TmlError], what: str, where: object, value: object, limit: object, fix: str | None) -> TmlError:
    return kind(what, where=where, value=value, limit=limit, fix=fix)


class ConfigError(TmlError):
    """A setting is missing, misspelt, of the wrong type, out of range or at odds with another."""


class DataError(TmlError):
    """Input data is missing, malformed, out of range or has changed."""


class UnknownIdError(DataError):
    """An id was asked for that the model does not know."""


class CheckpointError(TmlError):
    """A checkpoint cannot be written, found, trusted or matched with the model."""


class NonFiniteError(TmlError):
    """A loss, score or gradient is NaN or infinite."""


class LaunchError(TmlError):
    """The process group, the machine or its accelerators are not as declared."""
