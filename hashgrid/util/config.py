"""Options as dataclasses that a command line, a JSON file and a checkpoint have in common."""

from __future__ import annotations

import dataclasses
import types
import typing
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal, TypeVar

C = TypeVar("C", bound="Config")


@dataclass(frozen=True)
class Config:
    """Options with defaults; groups of them are nested. A name occurs once, in whichever group. The group ``field`` may
    be one of several, the ``Config`` of a field."""

    fields: ClassVar[Mapping[str, Any]] = {}  # what ``field`` may be the options of, by the name of the options
    name: ClassVar[str] = ""

    def replace(self: C, **changes: Any) -> C:
        """The same with other values, of nested options too.

        Raises:
            ValueError: there is no such option, or it does not take the value.
        """
        own = self._values()
        direct = {key: changes.pop(key) for key in list(changes) if key in own}
        for name, group in self._groups().items():
            inner = {key: changes.pop(key) for key in list(changes) if group.knows(key)}
            if inner:
                direct[name] = direct.get(name, group).replace(**inner)
        if changes:
            raise ValueError(f"there is no option {_quoted(changes)}")
        config = dataclasses.replace(self, **direct)
        config.check_types()
        return config

    def knows(self, name: str) -> bool:
        """Whether there is an option of this name, here or in a group."""
        return name in self._values() or any(group.knows(name) for group in self._groups().values())

    def check_types(self) -> None:
        """Raises ValueError where a value is not what its option takes; JSON and callers are not checked otherwise."""
        hints = typing.get_type_hints(type(self))
        for name, value in self._values().items():
            if isinstance(value, Config):
                value.check_types()
            elif not _fits(value, hints[name]):
                raise ValueError(f"`{name}` must be {_spelled(hints[name])}, got {value!r}")

    def check(self) -> None:
        """Raises ValueError where a value cannot be used: what would be found after training otherwise."""
        self.check_types()
        for group in self._groups().values():
            group.check()

    def to_dict(self) -> dict[str, Any]:
        """As JSON."""
        values = {key: _plain(value) for key, value in self._values().items()}
        return {"name": self.name, **values} if self.name else values

    @classmethod
    def from_dict(cls: type[C], values: dict[str, Any], source: str = "the configuration") -> C:
        """The inverse of :meth:`to_dict`; options that are not given have their defaults.

        Raises:
            ValueError: an option is not known, or does not take its value. ``source`` says where it came from.
        """
        values = {key: value for key, value in values.items() if not (key == "name" and cls.name)}
        defaults = {field.name: field.default for field in dataclasses.fields(cls)}
        if unknown := set(values) - set(defaults):
            raise ValueError(f"{source}: there is no option {_quoted(unknown)}")
        hints = typing.get_type_hints(cls)
        given: dict[str, Any] = {}
        for key, value in values.items():
            if isinstance(default := defaults[key], Config):
                if not isinstance(value, dict):
                    raise ValueError(f"{source}: `{key}` must be a group of options, got {value!r}")
                kind: Any = type(default)
                if key == "field" and cls.fields:
                    name: Any = value.get("name")
                    if name not in cls.fields:
                        raise ValueError(f"{source}: `field` must be one of {tuple(cls.fields)}, got {name!r}")
                    kind = cls.fields[name].Config
                given[key] = kind.from_dict(value, source)
            else:
                given[key] = _restored(value, hints[key])
        try:
            config = cls(**given)
            config.check_types()
        except ValueError as error:
            raise ValueError(f"{source}: {error}") from error
        return config

    def _values(self) -> dict[str, Any]:
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}

    def _groups(self) -> dict[str, Config]:
        return {name: value for name, value in self._values().items() if isinstance(value, Config)}


def _quoted(names: Iterable[str]) -> str:
    return ", ".join(f"`{name}`" for name in sorted(names))


def _fits(value: Any, hint: Any) -> bool:
    """Whether a value is of an annotated type; integers are floats, too."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return value in arguments
    if origin in (typing.Union, types.UnionType):
        return any(_fits(value, argument) for argument in arguments)
    if origin is tuple:
        each = [arguments[0]] * len(value) if arguments[-1:] == (...,) and isinstance(value, tuple) else arguments
        return isinstance(value, tuple) and len(value) == len(each) and all(map(_fits, value, each))
    if hint is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return hint is Any or isinstance(value, hint)


def _spelled(hint: Any) -> str:
    if typing.get_origin(hint) is Literal:
        return f"one of {typing.get_args(hint)}"
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(_spelled(argument) for argument in typing.get_args(hint))
    if hint is type(None):
        return "None"
    return str(hint) if typing.get_origin(hint) else getattr(hint, "__name__", str(hint))


def _plain(value: Any) -> Any:
    if isinstance(value, Config):
        return value.to_dict()
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def _restored(value: Any, hint: Any) -> Any:
    """A value from JSON: lists as tuples, strings as paths where paths are meant."""
    if isinstance(value, list):
        return tuple(_restored(item, hint) for item in value)
    if isinstance(value, str) and Path in (hint, *typing.get_args(hint)):
        return Path(value)
    return value
