"""How well and how fast the dispatcher chooses."""

import numpy as np

import fastconv as fc
from fastconv.bench.measure import measure
from fastconv.bench.suite import items

CASES = {f"{item.suite} {item.name}": item for item in items("quick")}


class Regret:
    """Time of the chosen backend over the time of the fastest one: 1 is a perfect choice."""

    params = tuple(CASES)
    param_names = ("case",)
    unit = "ratio"

    def track_regret(self, case: str) -> float:
        """Measure all backends for a second and compare."""
        return measure(CASES[case], list(fc.backends()), budget=1.0, peak=1.0).regret


class Latency:
    """What a call costs besides the arithmetic: a convolution small enough to have next to none."""

    def setup(self) -> None:
        """Compile the kernel and fill the plan cache."""
        self.x = np.ones((1, 1, 4, 4), dtype=np.float32)
        self.w = np.ones((1, 1, 3, 3), dtype=np.float32)
        self.plan = fc.plan_conv2d(self.w, input_shape=self.x.shape)
        self.time_plan_cache_hit()

    def time_plan_cache_hit(self) -> None:
        """Call conv2d on a shape it has seen."""
        fc.conv2d(self.x, self.w)

    def time_plan_call(self) -> None:
        """Apply a plan, which has nothing to look up."""
        self.plan(self.x)

    def time_explain(self) -> None:
        """Rank all backends by the cost model."""
        fc.explain(self.x.shape, self.w.shape)
