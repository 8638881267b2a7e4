"""What an error says in one line."""

from sweeps.secrets import redacted


def first_line(error: BaseException) -> str:
    """The first line of an error's message without secrets, or its type where it has none."""
    lines = redacted(str(error)).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
