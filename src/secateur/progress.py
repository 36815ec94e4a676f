"""How long work tells whoever waits for it."""

from types import TracebackType


class Progress:
    """Hears of work as it proceeds. This one keeps silent; the command line's draws bars."""

    def start(self, what: str, total: int, unit: str = "tokens") -> None:
        """Work on ``what`` begins; it will take ``total`` tokens, or whatever ``unit`` says."""

    def at(self, where: str) -> None:
        """The work has come to ``where``, such as ``"block 3/30 · mlp.down_proj"``."""

    def advance(self, amount: int) -> None:
        """So many more units are done."""

    def __enter__(self) -> "Progress":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        """The work is over."""
