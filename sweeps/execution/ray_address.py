"""The address of Ray: a cluster that `--address` or the variable RAY_ADDRESS names, or a Ray on this machine."""

import os
import socket
from collections.abc import Mapping
from dataclasses import dataclass

AUTO, LOCAL = "auto", "local"
OPTION, VARIABLE = "--address", "RAY_ADDRESS"
CONNECT_SECONDS = 5.0


@dataclass(frozen=True, kw_only=True)
class RayAddress:
    """The address of a Ray cluster, and what named it.

    Attributes:
        value: host:port, ray://host:port, or `auto` for the cluster that this machine belongs to; None for a Ray of our
            own on this machine.
        named_by: the option or variable that the value was read from.
    """

    value: str | None
    named_by: str = OPTION

    @classmethod
    def resolve(cls, option: str | None, environment: Mapping[str, str] | None = None) -> "RayAddress":
        """Return the address that the option names; without it, or for `auto`, that of the variable, as Ray does.

        Raises:
            ValueError: it doesn't read like an address.
        """
        variable = (os.environ if environment is None else environment).get(VARIABLE)
        value, named_by = (variable, VARIABLE) if variable and option in (None, AUTO) else (option, OPTION)
        if value is None or value == LOCAL:
            return cls(value=None, named_by=named_by)
        if value != AUTO:
            _host_and_port(value, named_by)
        return cls(value=value, named_by=named_by)

    def __str__(self) -> str:
        if self.value is None:
            return "Ray on this machine" + ("" if self.named_by == OPTION else f" ({self.named_by})")
        if self.value == AUTO:
            return f"Ray that this machine belongs to ({self.named_by} {AUTO})"
        return f"Ray at {self.value} ({self.named_by})"


def check_reachable(address: str, named_by: str = OPTION) -> None:
    """Raise ValueError in seconds where Ray itself would try for minutes."""
    if address == AUTO:
        return
    try:
        socket.create_connection(_host_and_port(address, named_by), timeout=CONNECT_SECONDS).close()
    except OSError as error:
        raise ValueError(
            f"a Ray cluster must answer at {named_by}, but {address} does not ({error}); start one with 'ray start "
            f"--head', or give {OPTION} {LOCAL} for a Ray on this machine"
        ) from error


def _host_and_port(address: str, named_by: str) -> tuple[str, int]:
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not host or "/" in host or not port.isdigit() or len(port) > 5 or not 0 < int(port) < 65536:
        raise ValueError(
            f"{named_by} must read host:port, ray://host:port, {AUTO} or {LOCAL}, but got '{address}'; correct it, or "
            f"give {OPTION} {LOCAL} for a Ray on this machine"
        )
    return host, int(port)
