"""The terminal: results on standard output, progress on standard error."""

import re
import time
from collections.abc import Callable

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.progress import BarColumn, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.progress import Task as Bar
from rich.segment import Segment
from rich.table import Column
from rich.text import Text

from secateur.console.tables import Grid
from secateur.progress import Progress

# Control characters and halves of characters, but for line ends and tabs; and what turns the direction of text round.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

# Seconds between two lines of progress where there is no terminal.
SILENT = 60


def visible(text: str) -> str:
    """``text`` with all that acts on a terminal spelt out: names and texts out of files are shown, never obeyed."""
    return _UNSEEN.sub(lambda match: match[0].encode("unicode_escape").decode(), text)


class _Visible(RenderHook):
    """Passes everything that a console prints through :func:`visible`; its own colours are added later."""

    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_VisibleSegments(renderable) for renderable in renderables]


class _VisibleSegments:
    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        for segment in console.render(self._renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


out = Console()
err = Console(stderr=True)
for _console in (out, err):
    _console.push_render_hook(_Visible())


def show(*what: Grid | Text | str, console: Console = out) -> None:
    """Print tables and texts: framed and broken between words in a terminal, elsewhere as plain lines of any length.

    A ``Text`` that says ``no_wrap`` is not broken in a terminal either.
    """
    for number, each in enumerate(what):
        if number and Grid in map(type, what[number - 1 : number + 1]):
            console.print()
        if not console.is_terminal:
            text = each.plain() if isinstance(each, Grid) else str(each)
            console.print(text, markup=False, highlight=False, soft_wrap=True)
        elif isinstance(each, Grid):
            for table in each.framed(console.width):
                console.print(table)
        else:
            whole = isinstance(each, Text) and bool(each.no_wrap)
            console.print(each, markup=False, highlight=False, soft_wrap=whole)


def show_time(seconds: float) -> str:
    """Seconds as people read them."""
    if seconds < 100:
        return f"{seconds:.1f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60}:{minutes % 60:02} h"


def _rate(speed: float, unit: str) -> str:
    return f"{speed:,.{0 if speed >= 10 else 2}f} {unit}/s"


def progress() -> Progress:
    """Bars in a terminal; elsewhere, a line now and then."""
    return BarProgress() if err.is_terminal else LineProgress()


class _Words(ProgressColumn):
    """Words of which as much is shown as there is room for beside the numbers."""

    def __init__(self, template: str, style: str) -> None:
        super().__init__(Column())
        self._template, self._style = template, style

    def render(self, bar: Bar) -> Text:
        return Text(self._template.format(task=bar), style=self._style, no_wrap=True, overflow="ellipsis")


class _Rate(ProgressColumn):
    """Units per second."""

    def render(self, bar: Bar) -> Text:
        speed = bar.finished_speed or bar.speed
        return Text(_rate(speed, bar.fields["unit"]) if speed else "", style="progress.data.speed")


class BarProgress(Progress):
    """A bar with block, layer, tokens per second and time left."""

    def __init__(self) -> None:
        whole = Column(no_wrap=True)
        self._bars = Bars(
            _Words("{task.description}", "bold"),
            BarColumn(bar_width=16, table_column=whole.copy()),
            TextColumn("{task.percentage:>3.0f} %"),
            _Rate(whole.copy()),
            TimeRemainingColumn(compact=True, table_column=whole.copy()),
            _Words("{task.fields[where]}", "dim"),
            console=err,
            transient=True,
            redirect_stdout=False,
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


class LineProgress(Progress):
    """A line a minute: the work, how much of it is done, units per second and time left; none for less than that."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._what = clock, ""

    def start(self, what: str, total: int, unit: str = "tokens") -> None:
        self._what, self._total, self._unit, self._where, self._done = what, total, unit, "", 0
        self._began = self._said = self._clock()

    def at(self, where: str) -> None:
        self._where = where
        self._say()

    def advance(self, amount: int) -> None:
        self._done += amount
        self._say()

    def _say(self) -> None:
        now = self._clock()
        if not self._what or now - self._said < SILENT:
            return
        self._said = now
        parts = [f"{self._what}: {self._done:,} of {self._total:,} {self._unit}"]
        if self._done:
            speed = self._done / (now - self._began)
            left = show_time(max(0, self._total - self._done) / speed)
            parts += [_rate(speed, self._unit), f"{left} left"]
        show(", ".join(parts) + (f" ({self._where})" if self._where else ""), console=err)
