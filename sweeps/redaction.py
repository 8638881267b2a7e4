"""Secrets in URIs and texts: left out of what is shown or stored, and taken from the environment again."""

import os
import re

HIDDEN = "***"
TRACKING_VARIABLE = "MLFLOW_TRACKING_URI"
STORAGE_VARIABLE = "ISOLOOP_STORAGE"

_SCHEME = r"([A-Za-z][A-Za-z0-9+.-]*://)"
_BEFORE_PORT = r"(?!\d+(?:[/?#]|$))"
# user:password@, where the password may have signs that should have been escaped; token@; a password with ? or #.
_OWNER = re.compile(
    _SCHEME + rf"""(?:[^\s'"<>/:@?\#]*:{_BEFORE_PORT}[^\s'"<>?\#]*@|[^\s'"<>/?\#]*@|"""
    rf"""[^\s'"<>/:@?\#]*:{_BEFORE_PORT}[^\s'"<>]*@)"""
)
# Nothing but the password may have an @ in a database's URL, and whatever else may be in it unescaped.
_DATABASE = re.compile(
    r"""\b((?:postgres(?:ql)?|mysql|mariadb|mssql|oracle|redis)(?:\+\w+)?://)[^\s'"<>]*@""", re.IGNORECASE
)
_IN_QUERY = re.compile(
    r"""([?&;\#][\w.-]*(?:password|passwd|pwd|secret|token|key|sig|auth|credential)[\w.-]*=)[^\s&;\#'"<>]+""",
    re.IGNORECASE,
)
_ASSIGNED = re.compile(
    r"""\b((?:[\w.-]*[_.-])?(?:password|passwd|pwd|secret|token|(?:api|access|secret|account)_?key)\s*=\s*)"""
    r"""(?:'[^']*'|"[^"]*"|[^\s&;,'"<>]+)""",
    re.IGNORECASE,
)
_HEADER = re.compile(r"\b((?:authorization:\s*(?:bearer|basic)|bearer)\s+)[\w.~+/=-]{8,}", re.IGNORECASE)


def redacted(text: str) -> str:
    """`text`, a URI or anything that may quote one, with `***` for each user, password, token and key in it.

    What has no secret comes back as it is, and what was redacted before isn't changed further.
    """
    for pattern in (_DATABASE, _OWNER):
        text = pattern.sub(rf"\g<1>{HIDDEN}@", text)
    for pattern in (_IN_QUERY, _ASSIGNED, _HEADER):
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    return text


def with_secret(uri: str, variable: str = TRACKING_VARIABLE) -> str:
    """`uri`, or, where it was stored without its secret, the whole of it from an environment variable.

    Raises:
        ValueError: the secret was left out, and the variable doesn't hold the same URI with it.
    """
    if HIDDEN not in uri:
        return uri
    whole = os.environ.get(variable, "")
    if HIDDEN in whole or redacted(whole) != uri:
        raise ValueError(
            f"a URI whose secret was left out must get it from the environment, but {variable} "
            f"{'is another one' if whole else 'is not set'}; set it to the whole of {uri}"
        )
    return whole
