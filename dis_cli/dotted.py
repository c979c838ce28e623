"""Objects by their dotted names, as rows of tables have them: a table is read without what its rows name."""

import importlib
from collections.abc import Callable
from typing import Any


def load(place: str) -> Any:
    """The object that "module:name" names."""
    module, _, name = place.partition(":")
    return getattr(importlib.import_module(module), name)


def later(place: str) -> Callable[..., Any]:
    """The function that "module:name" names, whose module is imported when it is called."""

    def call(*arguments: Any, **options: Any) -> Any:
        return load(place)(*arguments, **options)

    return call
