"""The terminal: results on standard output, progress on standard error."""

from rich.console import Console
from rich.progress import BarColumn, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.progress import Task as Bar
from rich.text import Text

from secateur.progress import Progress

out = Console()
err = Console(stderr=True)


class _Rate(ProgressColumn):
    """Units per second."""

    def render(self, bar: Bar) -> Text:
        speed = bar.finished_speed or bar.speed
        return Text(f"{speed:,.0f} {bar.fields['unit']}/s" if speed else "", style="progress.data.speed")


class TerminalProgress(Progress):
    """A bar with block, layer, tokens per second and time left."""

    def __init__(self) -> None:
        self._bars = Bars(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.percentage:>3.0f} %"),
            _Rate(),
            TimeRemainingColumn(compact=True),
            TextColumn("{task.fields[where]}", style="dim"),
            console=err,
            transient=True,
            disable=not err.is_terminal,
        )
        self._bar: TaskID | None = None

    def start(self, what: str, total: int, unit: str = "tokens") -> None:
        self._stop()
        self._bar = self._bars.add_task(what, total=total, unit=unit, where="")
        self._bars.start()

    def at(self, where: str) -> None:
        if self._bar is not None:
            self._bars.update(self._bar, where=where)

    def advance(self, amount: int) -> None:
        if self._bar is not None:
            self._bars.advance(self._bar, amount)

    def _stop(self) -> None:
        if self._bar is not None:
            self._bars.stop()
            self._bars.remove_task(self._bar)
            self._bar = None

    def __exit__(self, *_: object) -> None:
        self._stop()
