"""Learning-rate schedules: functions of the number of steps taken, which set an optimizer's `lr`.

`schedule.step()` after each `optimizer.step()`.
"""

from __future__ import annotations

import math
from typing import Any

__all__ = ["CosineSchedule", "ExponentialSchedule", "OneCycleSchedule", "Schedule", "StepSchedule", "WarmUpSchedule"]


class Schedule:
    """Sets an optimizer's learning rate by the number of steps taken: subclasses define `rate(step)`.

    Attributes
    ----------
    initial : float
        The optimizer's learning rate when the schedule was made.
    steps : int
        Steps taken so far; part of a checkpoint.
    """

    def __init__(self, optimizer: Any):
        self.optimizer = optimizer
        self.initial = float(optimizer.lr)
        self.steps = 0
        self._set()

    def rate(self, step: int) -> float:
        """The learning rate after a number of steps."""
        raise NotImplementedError(f"{type(self).__name__} must define rate")

    def _set(self) -> None:
        self.optimizer.lr = self.rate(self.steps)

    def step(self) -> None:
        """Count a step."""
        self.steps += 1
        self._set()

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint must hold."""
        return {"steps": self.steps, "initial": self.initial}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a checkpoint."""
        self.steps, self.initial = int(state["steps"]), float(state["initial"])
        self._set()


class StepSchedule(Schedule):
    """lr = initial * gamma^floor(step / step_size).

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> schedule = nn.StepSchedule(nn.SGD(nn.Linear(1, 1), lr=1.0), step_size=2, gamma=0.5)
    >>> [schedule.rate(step) for step in range(5)]
    [1.0, 1.0, 0.5, 0.5, 0.25]
    """

    def __init__(self, optimizer: Any, step_size: int, gamma: float = 0.1):
        if step_size < 1:
            raise ValueError(f"step_size must be at least 1, got {step_size!r}")
        self.step_size, self.gamma = step_size, gamma
        super().__init__(optimizer)

    def rate(self, step: int) -> float:
        """The learning rate after a number of steps."""
        return self.initial * self.gamma ** (step // self.step_size)


class ExponentialSchedule(Schedule):
    """lr = initial * gamma^step.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> nn.ExponentialSchedule(nn.SGD(nn.Linear(1, 1), lr=1.0), gamma=0.5).rate(3)
    0.125
    """

    def __init__(self, optimizer: Any, gamma: float):
        self.gamma = gamma
        super().__init__(optimizer)

    def rate(self, step: int) -> float:
        """The learning rate after a number of steps."""
        return self.initial * self.gamma ** step


class CosineSchedule(Schedule):
    """lr = final + (initial - final) (1 + cos(pi step / total_steps)) / 2, and final from there on.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> schedule = nn.CosineSchedule(nn.SGD(nn.Linear(1, 1), lr=1.0), total_steps=4)
    >>> [round(schedule.rate(step), 3) for step in (0, 2, 4, 9)]
    [1.0, 0.5, 0.0, 0.0]

    References
    ----------
    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts" (2017), equation 5.
    """

    def __init__(self, optimizer: Any, total_steps: int, final: float = 0.0):
        if total_steps < 1:
            raise ValueError(f"total_steps must be at least 1, got {total_steps!r}")
        self.total_steps, self.final = total_steps, final
        super().__init__(optimizer)

    def rate(self, step: int) -> float:
        """The learning rate after a number of steps."""
        share = min(step, self.total_steps) / self.total_steps
        return self.final + (self.initial - self.final) * (1 + math.cos(math.pi * share)) / 2


class WarmUpSchedule(Schedule):
    """lr grows linearly from `start` * initial over the first steps; then `after`, if given, counts its own steps from 0.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> optimizer = nn.SGD(nn.Linear(1, 1), lr=1.0)
    >>> schedule = nn.WarmUpSchedule(optimizer, 4, after=nn.CosineSchedule(optimizer, 10))
    >>> [round(schedule.rate(step), 3) for step in (0, 1, 4, 14)]
    [0.0, 0.25, 1.0, 0.0]

    References
    ----------
    Goyal et al., "Accurate, large minibatch SGD" (2017), section 2.2.
    """

    def __init__(self, optimizer: Any, warm_up_steps: int, start: float = 0.0, after: Schedule | None = None):
        if warm_up_steps < 1:
            raise ValueError(f"warm_up_steps must be at least 1, got {warm_up_steps!r}")
        self.warm_up_steps, self.start, self.after = warm_up_steps, start, after
        if after is not None:
            optimizer.lr = after.initial
        super().__init__(optimizer)

    def rate(self, step: int) -> float:
        """The learning rate after a number of steps."""
        if step < self.warm_up_steps:
            return self.initial * (self.start + (1 - self.start) * step / self.warm_up_steps)
        return self.initial if self.after is None else self.after.rate(step - self.warm_up_steps)


class OneCycleSchedule(Schedule):
    """lr from max_lr / div_factor up to max_lr and down to max_lr / (div_factor final_div_factor), along cosines, as torch's.

    Parameters
    ----------
    optimizer : Optimizer
        Whose `lr` is set.
    max_lr : float
        The highest learning rate.
    total_steps : int
        Length of the cycle; the last step of it has the lowest rate.
    pct_start : float
        The share of the cycle in which the rate grows.
    div_factor, final_div_factor : float
        Where the cycle starts and ends.

    Examples
    --------
    >>> import fastconv.nn as nn
    >>> schedule = nn.OneCycleSchedule(nn.SGD(nn.Linear(1, 1), lr=1.0), max_lr=1.0, total_steps=10)
    >>> [round(schedule.rate(step), 3) for step in (0, 2, 9)]
    [0.04, 1.0, 0.0]

    References
    ----------
    Smith and Topin, "Super-convergence" (2018), section 3.
    """

    def __init__(self, optimizer: Any, max_lr: float, total_steps: int, pct_start: float = 0.3, div_factor: float = 25.0,
                 final_div_factor: float = 1e4):
        if total_steps < 2:
            raise ValueError(f"total_steps must be at least 2, got {total_steps!r}")
        self.max_lr, self.total_steps, self.pct_start = max_lr, total_steps, pct_start
        self.lowest = max_lr / div_factor
        self.final = self.lowest / final_div_factor
        super().__init__(optimizer)

    def rate(self, step: int) -> float:
        """The learning rate after a number of steps."""
        step = min(step, self.total_steps - 1)
        peak = self.pct_start * self.total_steps - 1
        if step <= peak:
            start, end, share = self.lowest, self.max_lr, step / peak
        else:
            start, end, share = self.max_lr, self.final, (step - peak) / (self.total_steps - 1 - peak)
        return end + (start - end) * (1 + math.cos(math.pi * share)) / 2
