"""The terminal: results on standard output, progress on standard error."""

import re

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook, RenderResult
from rich.progress import BarColumn, ProgressColumn, TaskID, TextColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.progress import Task as Bar
from rich.segment import Segment
from rich.text import Text

from secateur.progress import Progress

# Control characters and halves of characters, but for line ends and tabs; and what turns the direction of text round.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")


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
