"""Classes of the user's own, named `module:Class` in a configuration."""

import importlib
from typing import Any


def own_class(path: str, contract: type | None = None) -> Any:
    """The class that `path`, of the form `module:Class`, names.

    Raises:
        ValueError: there is no such module on Python's path, no such name in it, or it isn't a subclass of `contract`.
    """
    module, _, name = path.partition(":")
    try:
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"a class of your own must be importable as module:Class, but '{path}' is not ({error}); start isoloop "
            "with PYTHONPATH naming the folder of the module"
        ) from error
    if contract is not None and not (isinstance(found, type) and issubclass(found, contract)):
        raise ValueError(
            f"'{path}' must be a subclass of {contract.__module__}.{contract.__name__}, but is {found!r}; "
            "docs/trainer.md shows one"
        )
    return found
