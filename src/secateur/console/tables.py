"""Tables as data, shown in two ways: framed in the width of a terminal, or plainly, a line for each row.

Whatever is no terminal is a file or a program: it gets whole names, no frames, and no line that is broken. There are at
least two spaces between columns and at most one inside of a cell, so that ``grep`` and ``awk -F '  +'`` find things.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from rich.box import SIMPLE_HEAD
from rich.cells import cell_len
from rich.table import Table
from rich.text import Text

# Several measures of one thing, which a terminal stacks and a plain table sets side by side.
Cell = str | tuple[str, ...]
GAP, EMPTY = 2, "-"


@dataclass(frozen=True)
class Row:
    """Cells, and how they are set off.

    Attributes:
        cells: one for each column, of as many parts as its name has.
        group: what this row and its neighbours have in common, such as the workload of times.
        ends: a section ends here.
        style: of rich, in a terminal.
    """

    cells: tuple[Cell, ...]
    group: str = ""
    ends: bool = False
    style: str = ""


@dataclass
class Grid:
    """A table.

    Attributes:
        title: a line above it.
        columns: their names.
        words: the number of columns, from the left, that hold words, and say which row it is; the others hold numbers.
        group: the name of the column that says the groups of rows where they are no headings.
    """

    title: str
    columns: Sequence[Cell]
    words: int = 1
    group: str = ""
    rows: list[Row] = field(default_factory=list)

    def add(self, *cells: Cell, group: str = "", ends: bool = False, style: str = "") -> None:
        """Another row, as :class:`Row` has it."""
        self.rows.append(Row(cells, group, ends, style))

    def plain(self) -> str:
        """The title, the names of the columns and a line for each row; a measure that no row has is left out."""
        names = [_parts(self.columns[place])[part] for place, parts in self._used for part in parts]
        lines = [[_parts(row.cells[place])[part] for place, parts in self._used for part in parts] for row in self.rows]
        words = self.words
        if self.group:
            names, lines = [self.group, *names], [[row.group, *x] for row, x in zip(self.rows, lines, strict=True)]
            words += 1
        cells = [[_line(cell) or EMPTY for cell in line] for line in [names, *lines]]
        widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
        table = [
            (" " * GAP).join(_aligned(cell, widths[place], place < words) for place, cell in enumerate(line)).rstrip()
            for line in cells
        ]
        return "\n".join([*([_line(self.title)] if self.title else []), *table])

    def framed(self, width: int) -> Iterator[Table | Text]:
        """The same for a terminal: columns that ``width`` has no room for follow below, with the words repeated."""
        if self.title:
            yield Text(self.title, style="bold")
        cells = [[_stacked(row.cells[place], parts) for place, parts in self._used] for row in self.rows]
        for row, line in zip(self.rows, cells, strict=True):
            line[0] = f"  {line[0]}" if row.group else line[0]
        names = [_stacked(self.columns[place], parts) for place, parts in self._used]
        widths = [
            max(cell_len(line) for cell in column for line in cell.split("\n"))
            for column in zip(names, *cells, strict=True)
        ]
        widths[0] = max(widths[0], *(cell_len(row.group) for row in self.rows), 0)
        apart = any(len(parts) > 1 for _, parts in self._used)
        for number, places in enumerate(_pieces(widths, self.words, width)):
            if number:
                yield Text()
            table = Table(
                box=SIMPLE_HEAD,
                padding=(0, GAP - 1, 0, 0),  # and the space that this box has between columns
                pad_edge=False,
                show_edge=False,
            )
            for place in places:  # words are broken where they find no room, numbers never
                whole = place >= self.words and widths[place] <= width // 2
                table.add_column(
                    Text(names[place]),
                    justify="left" if place < self.words else "right",
                    no_wrap=whole,
                    overflow="fold",
                )
            group = ""
            for row, line in zip(self.rows, cells, strict=True):
                if row.group not in ("", group):
                    table.add_row(Text(row.group, style="bold"))
                    group = row.group
                table.add_row(*(Text(line[place]) for place in places), style=row.style, end_section=row.ends or apart)
            yield table

    @property
    def _used(self) -> list[tuple[int, list[int]]]:
        """The columns that hold words or that any row has something in, each with those parts."""
        found = []
        for place, name in enumerate(self.columns):
            parts = [
                part for part in range(len(_parts(name))) if any(_parts(row.cells[place])[part] for row in self.rows)
            ]
            if parts or place < self.words:
                found.append((place, parts or [0]))
        return found


def _parts(cell: Cell) -> tuple[str, ...]:
    return (cell,) if isinstance(cell, str) else cell


def _line(text: str) -> str:
    """On one line, with single spaces: names may be of several."""
    return " ".join(text.split())


def _stacked(cell: Cell, used: Sequence[int]) -> str:
    return "\n".join(_parts(cell)[part] for part in used).rstrip("\n")


def _aligned(cell: str, width: int, left: bool) -> str:
    spaces = " " * (width - cell_len(cell))
    return cell + spaces if left else spaces + cell


def _pieces(widths: Sequence[int], words: int, width: int) -> Iterator[list[int]]:
    """Columns that fit beside each other, the first ``words`` of them in each piece, which may take half the room."""
    keys = list(range(words))
    first = min(sum(widths[place] + GAP for place in keys), width // 2)
    piece, taken = list(keys), first
    for place in range(words, len(widths)):
        if len(piece) > words and taken + min(widths[place], width - first - GAP) + GAP > width:
            yield piece
            piece, taken = list(keys), first
        piece.append(place)
        taken += widths[place] + GAP
    yield piece
