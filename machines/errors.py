"""What can go wrong with machines, said in full. This room lies below `common.errors`, so it has its own small
error."""

from __future__ import annotations


class MachinesError(ValueError):
    """A `machines.yaml`, a task's environment or a launch is not as it must be.

    Args:
        what: one clause, lower case, without a full stop.
        where: file, variable or role.
        value: the offending value.
        limit: what would have been right.
        fix: the next thing to do.
    """

    def __init__(
        self, what: str, *, where: object = None, value: object = None, limit: object = None, fix: str | None = None
    ) -> None:
        self.what, self.where, self.value, self.limit, self.fix = what, where, value, limit, fix
        shown = {"where": where, "value": None if value is None else repr(value), "limit": limit, "fix": fix}
        super().__init__("\n".join([what] + [f"  {name}: {text}" for name, text in shown.items() if text is not None]))
