"""Reads the JSON dictionaries that configure tiny-cuda-nn: defaults, checks, and warnings of keys without effect."""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Collection, Mapping
from typing import Any


class Options:
    """One dictionary, read key by key; what nobody asked for is then told by `warn_of_unknown`.

    Args:
        config: as tiny-cuda-nn takes it.
        name: what messages call it.

    Raises:
        ValueError: it is no dictionary, or a value is of the wrong type.
    """

    def __init__(self, config: Any, name: str) -> None:
        if not isinstance(config, Mapping):
            raise ValueError(
                f"`{name}` must be a dictionary such as {{'otype': ...}}, got {config!r}; json.loads makes one of text"
            )
        self.config, self.name = config, name
        self._asked: set[str] = set()

    def __contains__(self, key: str) -> bool:
        return key in self.config

    def get(self, key: str, default: Any = None) -> Any:
        """The value as it is."""
        self._asked.add(key)
        return self.config.get(key, default)

    def called(self, key: str) -> str:
        """What messages call the value of ``key``."""
        return f"{self.name}[{key!r}]"

    def integer(self, key: str, default: int, least: int = 0, most: float = math.inf) -> int:
        """A whole number; 16.0 is one, as it is to tiny-cuda-nn."""
        value = self.get(key, default)
        number = self._number(key, value, "an integer")
        if number != int(number) or not least <= number <= most:
            limits = f"in {least}..{most}" if most < math.inf else f"of at least {least}"
            raise ValueError(f"`{self.called(key)}` must be an integer {limits}, got {value!r}")
        return int(number)

    def number(self, key: str, default: float) -> float:
        """A finite number."""
        return self._number(key, self.get(key, default), "a number")

    def flag(self, key: str, default: bool = False) -> bool:
        value = self.get(key, default)
        if not isinstance(value, bool):
            raise ValueError(f"`{self.called(key)}` must be True or False, got {value!r}")
        return value

    def choice(self, key: str, default: str, allowed: Collection[str]) -> str:
        """One of ``allowed``, in any case, as it is spelled there."""
        value = self.get(key, default)
        found = {name.lower(): name for name in allowed}.get(value.lower() if isinstance(value, str) else "")
        if found is None:
            raise ValueError(f"`{self.called(key)}` must be one of {', '.join(allowed)}, got {value!r}")
        return found

    def nested(self, key: str) -> list[Options]:
        """Dictionaries of a list."""
        value = self.get(key)
        if not isinstance(value, Collection) or isinstance(value, (str, Mapping)):
            raise ValueError(f"`{self.called(key)}` must be a list of encodings, got {value!r}")
        return [Options(config, f"{self.called(key)}[{i}]") for i, config in enumerate(value)]

    def warn_of_unknown(self) -> None:
        """Warns of keys that nobody asked for, by name: tiny-cuda-nn says nothing, and they have no effect there
        either."""
        unknown = [key for key in self.config if key not in self._asked]
        if unknown:
            known = ", ".join(sorted(map(repr, self._asked)))
            warn(f"`{self.name}` has keys without effect: {', '.join(map(repr, unknown))}; those read are {known}")

    def _number(self, key: str, value: Any, kind: str) -> float:
        is_number = hasattr(value, "__float__") and not isinstance(value, bool)
        number = float(value) if is_number else math.nan
        if not math.isfinite(number):
            raise ValueError(f"`{self.called(key)}` must be {kind}, got {value!r}")
        return number


def warn(message: str) -> None:
    """Warns, as if from the code that called this package."""
    level, frame = 1, sys._getframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("hashgrid."):
        level, frame = level + 1, frame.f_back  # type: ignore[assignment]
    warnings.warn(message, UserWarning, stacklevel=level)
