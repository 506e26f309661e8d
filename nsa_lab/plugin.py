"""Plug-ins: classes that bring their own settings and checks, each in a file of its own, listed in literal dicts.

A family of plug-ins is a dict from names to classes. The config of an experiment is derived from these dicts: `chosen`
makes a section that picks one name (`partition.kind`), `parts` one whose parts are switched on one by one
(`branches.window.enabled`).
"""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, TypeVar

from nsa_lab.errors import Problem

T = TypeVar("T")


class Plugin:
    """What every plug-in has besides what its family asks for.

    Config: a dataclass of the plug-in's settings, their defaults included. It may nest dataclasses of its own.
    scales: which settings mean another thing on longer videos or larger frames, and what they are a share of: a
    `frame`'s tokens (a `tile` too, of which 1 means none), the `context`'s, or the context's in `blocks`.
    control: there to be compared with; no design that anybody would train at scale.
    divisible: computes right where each of several processes has some rows of a sample (training.context_parallel).
    """

    scales: ClassVar[Mapping[str, Literal["frame", "tile", "context", "blocks"]]] = {}
    control: ClassVar[bool] = False
    divisible: ClassVar[bool] = True

    @dataclass
    class Config:
        """Settings of a plug-in that has none."""

    @classmethod
    def problems(cls, config: Any, design: Any) -> Iterator[Problem]:
        """What is wrong with `config` (a `Config` of this class), paths counted from its section.

        `design` is what surrounds it: the settings of the layer's attention, or of the task itself for a task.
        """
        return iter(())


Registry = Mapping[str, type[Plugin]]


def chosen(**registries: Registry) -> Callable[[type[T]], type[T]]:
    """Decorates a dataclass: its setting `key` picks a name of `registry`, and the settings of all listed join it.

    Two classes may have a setting of the same name if type and default are the same. Raises TypeError where they
    differ, naming both.
    """

    def extend(base: type[T]) -> type[T]:
        own = _columns(base)
        columns = {key: (Literal[tuple(registry)], own[key][1]) for key, registry in registries.items()}
        owner = dict.fromkeys(own, base.__qualname__)
        for plugin in (plugin for registry in registries.values() for plugin in registry.values()):
            for name, column in _columns(plugin.Config).items():
                if not _same((own | columns).setdefault(name, column), column):
                    raise TypeError(
                        f"{plugin.__qualname__}.Config.{name} has another type or default than that of {owner[name]}; "
                        "rename it, or nest it in a dataclass of its own"
                    )
                columns |= {} if name in own else {name: column}
                owner.setdefault(name, plugin.__qualname__)
        return _make(base, columns, CHOICES=registries, OWN=tuple(own))

    return extend


def parts(registry: Registry) -> Callable[[type[T]], type[T]]:
    """Decorates a dataclass: a section for every class of `registry`, whose `Config` has a setting `enabled`."""

    def extend(base: type[T]) -> type[T]:
        sections = {name: (plugin.Config, field(default_factory=plugin.Config)) for name, plugin in registry.items()}
        return _make(base, sections, PARTS=registry)

    return extend


def settings(section: Any, key: str = "kind") -> Any:
    """The `Config` of the plug-in that `section` names at `key`, with the section's values."""
    config = type(section).CHOICES[key][getattr(section, key)].Config
    return config(**{f.name: getattr(section, f.name) for f in dataclasses.fields(config)})


def build(section: Any, key: str, *arguments: Any) -> Any:
    """An instance of the plug-in that `section` names at `key`: its class called with its settings and `arguments`."""
    return type(section).CHOICES[key][getattr(section, key)](settings(section, key), *arguments)


def problems_of(section: Any, key: str, design: Any) -> Iterator[Problem]:
    """What the plug-in that `section` names at `key` finds wrong with its settings."""
    return type(section).CHOICES[key][getattr(section, key)].problems(settings(section, key), design)


def switched_on(section: Any) -> dict[str, Any]:
    """The parts of an `enabled` section that are on, by name."""
    return {name: getattr(section, name) for name in type(section).PARTS if getattr(section, name).enabled}


def in_use(section: Any, path: str = "") -> Iterator[tuple[str, str, type[Plugin]]]:
    """Path, name and class of each plug-in that a section names or has switched on, those below it included.

    The path is that of the plug-in's settings: with a dot at its end, or empty.
    """
    kind = type(section)
    for key, registry in getattr(kind, "CHOICES", {}).items():
        yield path, getattr(section, key), registry[getattr(section, key)]
    for name, plugin in getattr(kind, "PARTS", {}).items():
        if getattr(section, name).enabled:
            yield f"{path}{name}.", name, plugin
    gone = unread(section)
    for own in dataclasses.fields(section):
        value = getattr(section, own.name)
        if own.name not in gone and dataclasses.is_dataclass(value) and getattr(value, "enabled", True):
            yield from in_use(value, f"{path}{own.name}.")


def unread(section: Any) -> set[str]:
    """The fields of a section that nothing reads as it stands: those of names not chosen, all of what is off."""
    kind, names = type(section), {f.name for f in dataclasses.fields(section)}
    if "enabled" in names and not section.enabled:
        return names - {"enabled"}
    choices: dict[str, Registry] = getattr(kind, "CHOICES", {})
    if not choices:
        return set()
    read = {f for key, registry in choices.items() for f in _columns(registry[getattr(section, key)].Config)}
    return names - read - set(kind.OWN)


def at(path: str, problems: Iterator[Problem]) -> Iterator[Problem]:
    """`problems` as seen from above: their paths with `path` before them."""
    return (dataclasses.replace(p, path=f"{path}.{p.path}" if p.path else path) for p in problems)


def _columns(config: Any) -> dict[str, tuple[Any, Any]]:
    """Type and default of each field of a dataclass, as make_dataclass takes them."""
    return {f.name: (f.type, _copy(f)) for f in dataclasses.fields(config)}


def _copy(own: "dataclasses.Field[Any]") -> Any:
    """A field() of the same default; a Field object can be part of one class only."""
    if own.default_factory is dataclasses.MISSING:
        return field(default=own.default)
    return field(default_factory=own.default_factory)


def _same(one: tuple[Any, Any], other: tuple[Any, Any]) -> bool:
    return one[0] == other[0] and _default(one[1]) == _default(other[1])


def _default(own: "dataclasses.Field[Any]") -> Any:
    factory: Callable[[], Any] | Any = own.default_factory
    return own.default if factory is dataclasses.MISSING else factory()


def _make(base: type, columns: Mapping[str, tuple[Any, Any]], **facts: Any) -> type:
    fields = [(name, *column) for name, column in columns.items()]
    made = dataclasses.make_dataclass(base.__name__, fields, bases=(base,))
    made.__doc__, made.__module__, made.__qualname__ = base.__doc__, base.__module__, base.__qualname__
    for name, fact in facts.items():
        setattr(made, name, fact)
    return made
