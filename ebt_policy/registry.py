"""Names in configurations to the classes that they stand for.

A class gets its name from the decorator `Registry.register`. Classes outside this package do the
same, in a module that ``--module`` imports or that an installed plug-in declares as an entry point
of the registry's group. A name in a checkpoint is only ever looked up, never imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from difflib import get_close_matches
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Generic, TypeVar

from ebt_policy.errors import ConfigError

T = TypeVar("T")
C = TypeVar("C")


class Registry(Generic[T]):
    """Classes or functions by name.

    Args:
        option: as the user types it, for messages: ``model``, ``robot.driver.name``.
        group: of the entry points by which installed plug-ins add to it.
    """

    def __init__(self, option: str, group: str) -> None:
        self.option, self.group = option, group
        self._items: dict[str, T] = {}

    def register(self, name: str) -> Callable[[C], C]:
        """Return a decorator that gives a class this name.

        Raises:
            ValueError: another class has it.
        """

        def add(item: Any) -> Any:
            if self._items.get(name, item) is not item:
                raise ValueError(f"{self.option}={name} is registered twice.")
            self._items[name] = item
            return item

        return add

    def get(self, name: Any, needs: str | None = None) -> T:
        """Return the class of this name.

        Args:
            name: from a configuration.
            needs: the module that has it, where a checkpoint says so.

        Raises:
            ConfigError: nothing has this name.
        """
        if isinstance(name, str) and name in self._items:
            return self._items[name]
        plugin = self._plugins().get(name) if isinstance(name, str) else None
        if plugin is not None:
            self._items.setdefault(name, plugin.load())
            return self._items[name]
        if needs:
            raise ConfigError(
                f"{self.option}={name} belongs to the module {needs}, which is not imported; add "
                f"--module {needs} to the command, or install the plug-in that has it."
            )
        near = get_close_matches(str(name), list(self), n=1)
        hint = f" Did you mean {near[0]}?" if near else ""
        raise ConfigError(f"{self.option}={name} is unknown; there are {', '.join(self)}.{hint}")

    def __iter__(self) -> Iterator[str]:
        """Yield all names, those of plug-ins last."""
        return iter(dict.fromkeys((*self._items, *self._plugins())))

    def __contains__(self, name: object) -> bool:
        return name in self._items or name in self._plugins()

    def _plugins(self) -> dict[str, EntryPoint]:
        return {point.name: point for point in entry_points(group=self.group)}
