"""The interface through which long work reports how far it is."""


class Progress:
    """A watcher of long work. This one shows nothing; the command line shows a bar.

    The trainer and the fits, which import nothing of the sweeps, take the method `update` as a plain function.
    """

    def update(self, label: str, done: float, total: float) -> None:
        """Report that `done` of `total` (0 if unknown) is done; a label with a new first word begins a new stage."""

    def event(self, line: str) -> None:
        """Report in one line that something has happened."""
