"""Registries, which map names in configurations to classes.

A class gets its name from the decorator `Registry.register`. Classes outside this package use the
same decorator. Their module is imported by ``--module``, or an installed plug-in declares it as an
entry point of the registry's group. A name in a checkpoint is looked up but never imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from ebt_policy.errors import ConfigError, did_you_mean

T = TypeVar("T")
C = TypeVar("C")


class Registry(Generic[T]):
    """A registry of classes or functions by name.

    Args:
        option: option that selects a name, for messages, such as ``robot.driver.name``.
        group: group of the entry points through which installed plug-ins add to it.
    """

    def __init__(self, option: str, group: str) -> None:
        self.option, self.group = option, group
        self._items: dict[str, T] = {}
        self._declared: dict[str, str] = {}  # name -> "module:attribute", not imported yet

    def register(self, name: str) -> Callable[[C], C]:
        """Return a decorator that gives a class this name.

        Raises:
            ValueError: if another class has this name.
        """

        def add(item: Any) -> Any:
            if self._items.get(name, item) is not item:
                raise ValueError(f"{self.option}={name} is registered twice.")
            self._items[name] = item
            return item

        return add

    def declare(self, name: str, place: str) -> None:
        """Give a name to a class of this package that is imported only when it is used.

        Args:
            name: name of the class.
            place: location of the class, ``module:attribute``.
        """
        self._declared[name] = place

    def get(self, name: Any, needs: str | None = None) -> T:
        """Return the class of this name.

        Names of this package and of modules that ``--module`` imported take precedence over names
        of installed plug-ins.

        Args:
            name: name in a configuration.
            needs: module that registers the name, if a checkpoint states one. It is never imported.

        Raises:
            ConfigError: if the name is unknown, or its plug-in is ambiguous or cannot be imported.
        """
        if not isinstance(name, str):
            raise self._unknown_name_error(name)
        if name not in self._items and name in self._declared:
            module, _, attribute = self._declared[name].partition(":")
            self._items[name] = getattr(import_module(module), attribute)
        if name not in self._items and (points := self._plugins().get(name)):
            item = self._load_plugin(name, points)
            self._items.setdefault(name, item)  # importing its module may have registered it
        if name in self._items:
            return self._items[name]
        if needs:
            raise ConfigError(
                f"{self.option}={name} belongs to the module {needs}, which is not imported; add "
                f"--module {needs} to the command, or install the plug-in that provides it."
            )
        raise self._unknown_name_error(name)

    def __iter__(self) -> Iterator[str]:
        """Yield all names; names of plug-ins come last."""
        return iter(dict.fromkeys((*self._declared, *self._items, *self._plugins())))

    def __contains__(self, name: object) -> bool:
        return name in (*self._declared, *self._items) or name in self._plugins()

    def _plugins(self) -> dict[str, list[EntryPoint]]:
        plugins: dict[str, list[EntryPoint]] = {}
        for point in entry_points(group=self.group):
            points = plugins.setdefault(point.name, [])
            if point.value not in [other.value for other in points]:  # installed twice
                points.append(point)
        return plugins

    def _load_plugin(self, name: str, points: list[EntryPoint]) -> T:
        if len(points) > 1:
            packages = " and ".join(sorted({_distribution(point) for point in points}))
            raise ConfigError(
                f"{self.option}={name} is in several installed plug-ins, {packages}; uninstall all "
                "but one."
            )
        try:
            return points[0].load()
        except (ImportError, AttributeError) as error:
            raise ConfigError(
                f"{self.option}={name} of the plug-in {_distribution(points[0])} cannot be "
                f"imported ({error}); repair or uninstall the plug-in."
            ) from error

    def _unknown_name_error(self, name: Any) -> ConfigError:
        hint = did_you_mean(str(name), self)
        return ConfigError(f"{self.option}={name} is unknown; there are {', '.join(self)}.{hint}")


def _distribution(point: EntryPoint) -> str:
    """Return the name of the distribution that declares an entry point."""
    return point.dist.name if point.dist is not None else point.value
