"""Types of entries of a configuration: collections without duplicates or that aren't empty, and URIs with secrets."""

import os
from typing import Any

from pydantic import AfterValidator, Field, Secret

from isoloop.sweeps.privacy import HIDDEN, redacted


def _refuse_duplicates(values: tuple[Any, ...]) -> tuple[Any, ...]:
    """Raise ValueError if two values are equal; return them otherwise."""
    if len(set(map(repr, values))) < len(values):
        raise ValueError(f"values must be distinct, but got {list(values)}; drop one")
    return values


NotEmpty = Field(min_length=1)
Distinct = AfterValidator(_refuse_duplicates)


class SecretUri(Secret[str]):
    """A URI of the configuration: printed, logged, dumped and stored with `***` for its secrets."""

    def _display(self) -> str:
        return redacted(self.get_secret_value())

    def __len__(self) -> int:
        return len(self.get_secret_value())

    def with_secret(self, variable: str) -> str:
        """Return the whole URI, taken from an environment variable if it was stored without its secret.

        Raises:
            ValueError: the secret was left out, and the variable doesn't hold the same URI with it.
        """
        uri = self.get_secret_value()
        if HIDDEN not in uri:
            return uri
        whole = os.environ.get(variable, "")
        if HIDDEN in whole or redacted(whole) != uri:
            raise ValueError(
                f"a URI stored without its secret must be completed from the environment, but {variable} "
                f"{'holds another URI' if whole else 'is not set'}; set it to the whole of {uri}"
            )
        return whole
