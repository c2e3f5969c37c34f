"""Where the time of a training step goes, by phase, from the events of torch's profiler.

Every moment of a step on the thread that trains belongs to one phase: the innermost mark around it (see
`tml.common.profiling`), else it is Python and other. So the phases of a step add up to the step. Other threads are
counted apart, since they run at the same time.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, get_args

from torch.autograd import DeviceType

from tml.common.profiling import PREFIX, Phase

STEP = "tml.step"
OTHER = "Python and other"

# Marks of the libraries: torchrec's pipelines, and fbgemm's fused update, which is a part of the backward.
_LIBRARY_MARKS: dict[str, Phase] = {
    "## load batch": "read",
    "## next_batch": "read",
    "## copy_batch_to_gpu": "copy",
    "## wait_for_batch": "copy",
    "## start_sparse_data_dist": "exchange",
    "## wait_sparse_data_dist": "exchange",
    "## forward": "forward",
    "## backward": "backward",
    "## optimizer": "update",
    "fbgemm::split_embedding_backward": "update",
}
_ORDER = [*get_args(Phase), OTHER]


@dataclass(frozen=True)
class PhaseTime:
    """One phase of an average step.

    Attributes:
        name: of the phase.
        ms: milliseconds of the thread that trains (or of the other thread, in `StepProfile.background`).
        share: of the step, 0 to 1.
        operator_ms: those of `ms` that were spent inside operators, torch's and those marked as kernels; the rest is
            Python and its libraries.
        device_ms: milliseconds of the GPU on kernels and copies that this phase launched; None without a GPU. They may
            run later than the phase, and several at a time.
    """

    name: str
    ms: float
    share: float
    operator_ms: float
    device_ms: float | None


@dataclass(frozen=True)
class StepProfile:
    """An average over profiled steps.

    Attributes:
        num_steps: how many.
        step_ms: milliseconds of a step, under the profiler.
        plain_step_ms: median of the steps before them, without the profiler; None if there were none.
        phases: their `ms` add up to `step_ms`.
        background: phases on other threads, in the same time.
    """

    num_steps: int
    step_ms: float
    plain_step_ms: float | None
    phases: list[PhaseTime]
    background: list[PhaseTime]

    def as_json(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    def table(self) -> str:
        """For people: a line a phase."""
        has_device = any(phase.device_ms is not None for phase in self.phases)
        total = _sum("step", self.phases)
        lines = [_line(["phase", "ms", "share", "in operators", *(["GPU ms"] if has_device else [])])]
        lines += [_line(_cells(phase, has_device)) for phase in [*self.phases, total]]
        lines += [_line(_cells(phase, False)) + "  on another thread" for phase in self.background]
        plain = "" if self.plain_step_ms is None else f"; {self.plain_step_ms:.2f} ms without the profiler"
        return f"one step by phase, mean of {self.num_steps}{plain}\n" + "\n".join(lines)


def profile_of(
    events: Sequence[Any], num_steps: int, has_device: bool = False, plain_step_ms: float | None = None
) -> StepProfile:
    """Sum the events of a profile up.

    Args:
        events: of `torch.profiler.profile.events()`, in which each step is marked `STEP`.
        num_steps: complete steps; a later one that was cut off is left out.
        has_device: whether a GPU was profiled.
        plain_step_ms: see `StepProfile`.

    Raises:
        ValueError: there are fewer marked steps.
    """
    on_host = [event for event in events if event.device_type == DeviceType.CPU]
    steps = sorted((event for event in on_host if event.name == STEP), key=_start)[:num_steps]
    if len(steps) < max(1, num_steps):
        raise ValueError(f"{len(steps)} of {num_steps} steps are in the profile")
    begin, end, main_thread = _start(steps[0]), steps[-1].time_range.end, steps[0].thread
    training, elsewhere = _Sums(), _Sums()
    for step in steps:
        training.add(step, OTHER)
    for event in on_host:
        if event.cpu_parent is None and event.thread != main_thread and begin <= _start(event) < end:
            elsewhere.add(event, training.phase_at(_start(event)))
    # What autograd launches on a GPU from its own thread belongs to the phase that waits for it.
    for name, device_us in elsewhere.device.items():
        training.device[name] += device_us
    step_us = sum(step.time_range.elapsed_us() for step in steps)
    return StepProfile(
        num_steps,
        step_us / 1000 / num_steps,
        plain_step_ms,
        training.phases(num_steps, step_us, has_device),
        elsewhere.phases(num_steps, step_us, has_device=False),
    )


@dataclass
class _Sums:
    """Microseconds by phase."""

    host: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    operators: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    device: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    spans: list[tuple[float, float, str]] = field(default_factory=list)

    def add(self, event: Any, phase: str, in_operator: bool = False) -> None:
        """Add an event and all below it; `phase` and `in_operator` say what is around it."""
        elapsed, mark = event.time_range.elapsed_us(), phase_of(event.name)
        if event.name == STEP:
            self.host[phase] += elapsed
        elif mark is not None:
            self.host[mark] += elapsed
            self.host[phase] -= elapsed
            if in_operator:
                self.operators[phase] -= elapsed
            self.spans.append((_start(event), event.time_range.end, mark))
            phase, in_operator = mark, _is_operator(event.name)
            if in_operator:
                self.operators[phase] += elapsed
        elif not in_operator and _is_operator(event.name):
            self.operators[phase] += elapsed
            in_operator = True
        self.device[phase] += _device_us(event)
        for child in event.cpu_children:
            self.add(child, phase, in_operator)

    def phase_at(self, time: float) -> str:
        """The innermost phase at a time."""
        around = [(start, phase) for start, end, phase in self.spans if start <= time < end]
        return max(around)[1] if around else OTHER

    def phases(self, num_steps: int, step_us: float, has_device: bool) -> list[PhaseTime]:
        """The phases that occurred, in the order of a step."""
        scale = 1000 * num_steps
        return [
            PhaseTime(
                name,
                self.host[name] / scale,
                self.host[name] / step_us,
                self.operators[name] / scale,
                self.device[name] / scale if has_device else None,
            )
            for name in _ORDER
            if self.host[name] > 0 or (has_device and self.device[name] > 0)
        ]


def phase_of(name: str) -> str | None:
    """The phase that an event of this name marks, or None."""
    if name.startswith(PREFIX):
        return name.removeprefix(PREFIX) if name != STEP else None
    return next((phase for mark, phase in _LIBRARY_MARKS.items() if name.startswith(mark)), None)


def _is_operator(name: str) -> bool:
    # Autograd's own entries, and those of functions written in Python, have Python inside.
    return "::" in name and not name.startswith("autograd::")


def _device_us(event: Any) -> float:
    # An annotation's own entry on the GPU spans its kernels, which are counted where they were launched.
    return 0.0 if event.is_user_annotation else sum(kernel.duration for kernel in event.kernels)


def _start(event: Any) -> float:
    start: float = event.time_range.start
    return start


def _sum(name: str, phases: Sequence[PhaseTime]) -> PhaseTime:
    device = [phase.device_ms for phase in phases if phase.device_ms is not None]
    return PhaseTime(
        name,
        sum(phase.ms for phase in phases),
        sum(phase.share for phase in phases),
        sum(phase.operator_ms for phase in phases),
        sum(device) if device else None,
    )


def _cells(phase: PhaseTime, has_device: bool) -> list[str]:
    cells = [phase.name, f"{phase.ms:.2f}", f"{100 * phase.share:.1f} %", f"{phase.operator_ms:.2f}"]
    return [*cells, f"{phase.device_ms or 0.0:.2f}"] if has_device else cells


def _line(cells: Sequence[str]) -> str:
    return f"  {cells[0]:<16}" + "".join(f"{cell:>14}" for cell in cells[1:])
