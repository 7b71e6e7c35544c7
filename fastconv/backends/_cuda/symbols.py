"""Symbolic registers: a formula that is run on them once becomes straight-line code.

Numbers that are not symbols are constants of the code; products with 0, 1 and -1 cost nothing.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

__all__ = ["Emitter", "Symbol", "outputs_of"]


class Emitter(Protocol):
    """What writes the operations down."""

    def constant(self, value: float) -> Any: ...

    def add(self, a: Any, b: Any) -> Any: ...

    def subtract(self, a: Any, b: Any) -> Any: ...

    def multiply(self, a: Any, b: Any) -> Any: ...


class Symbol:
    """A register; its sums and products are written down."""

    __slots__ = ("emitter", "value")

    def __init__(self, emitter: Emitter, value: Any):
        self.emitter, self.value = emitter, value

    def _of(self, other: Any) -> Any:
        return other.value if isinstance(other, Symbol) else self.emitter.constant(other)

    def __add__(self, other: Any) -> Symbol:
        if not isinstance(other, Symbol) and other == 0:
            return self
        return Symbol(self.emitter, self.emitter.add(self.value, self._of(other)))

    __radd__ = __add__

    def __sub__(self, other: Any) -> Symbol:
        if not isinstance(other, Symbol) and other == 0:
            return self
        return Symbol(self.emitter, self.emitter.subtract(self.value, self._of(other)))

    def __rsub__(self, other: Any) -> Symbol:
        return Symbol(self.emitter, self.emitter.subtract(self._of(other), self.value))

    def __neg__(self) -> Symbol:
        return 0.0 - self

    def __mul__(self, other: Any) -> Any:
        if not isinstance(other, Symbol):
            if other == 0:
                return 0.0
            if other == 1:
                return self
            if other == -1:
                return -self
        return Symbol(self.emitter, self.emitter.multiply(self.value, self._of(other)))

    __rmul__ = __mul__


def outputs_of(formula: Callable[..., list[Any]], counts: list[int]) -> list[Any]:
    """The formula's results for zeros: how many there are."""
    return formula(*((0.0,) * count for count in counts))
