"""Privacy: secrets are cut out of texts and URIs, and no library sends telemetry."""

import os
import re

HIDDEN = "***"

TELEMETRY_OFF = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    "RAY_USAGE_STATS_ENABLED": "0",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
}

_SCHEME = r"([A-Za-z][A-Za-z0-9+.-]*://)"
_BEFORE_PORT = r"(?!\d+(?:[/?#]|$))"
# user:password@, where the password may contain characters that should be escaped; token@; a password with ? or #.
_OWNER = re.compile(
    _SCHEME + rf"""(?:[^\s'"<>/:@?\#]*:{_BEFORE_PORT}[^\s'"<>?\#]*@|[^\s'"<>/?\#]*@|"""
    rf"""[^\s'"<>/:@?\#]*:{_BEFORE_PORT}[^\s'"<>]*@)"""
)
# In a database's URL only the password can contain an @, and it may contain anything else unescaped.
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
# Tokens that their form gives away wherever they stand: of Hugging Face, GitHub, GitLab, Slack, AWS, Google, Databricks
# npm, Docker Hub, OpenAI and others (sk-); and JSON web tokens.
_TOKEN = re.compile(
    r"""(?<![A-Za-z0-9])(?:(?:hf|gh[pousr]|npm|sk_live|rk_live)_[A-Za-z0-9]{20,}|github_pat_\w{20,}|glpat-[\w-]{20,}|"""
    r"""dckr_pat_[\w-]{20,}|xox[a-z]-[\w-]{10,}|(?:AKIA|ASIA)[A-Z0-9]{16}|AIza[\w-]{35}|ya29\.[\w-]{20,}|"""
    r"""dapi[0-9a-f]{32}|sk-(?=[\w-]*\d)[\w-]{20,}|eyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+)"""
)


def switch_telemetry_off() -> None:
    """Switch telemetry off for this process and its children; call this before the libraries are imported."""
    os.environ.update(TELEMETRY_OFF)


def redacted(text: str) -> str:
    """Return `text`, a URI or a message that may quote one, with `***` for each user, password, token and key in it.

    A text without secrets comes back unchanged, and so does one that was redacted before.
    """
    for pattern in (_DATABASE, _OWNER):
        text = pattern.sub(rf"\g<1>{HIDDEN}@", text)
    for pattern in (_IN_QUERY, _ASSIGNED, _HEADER):
        text = pattern.sub(rf"\g<1>{HIDDEN}", text)
    return _TOKEN.sub(HIDDEN, text)
