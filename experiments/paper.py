"""All tables and figures, one after the other, on one page.

    python -m experiments.paper --small --local FOLDER --page docs/results/smollm2-135m.md

It can be stopped at any time: the same command goes on. An experiment that cannot be had here says so, and the others
go on.
"""

import importlib
import inspect
import json
import sys
import time
import traceback
import warnings
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path

from experiments.common import LLAMA2, Setting, execute, parser, plain_warning, setting_of
from secateur.benchmark.machine import this_machine
from secateur.devices import choose_device
from secateur.errors import InputError

EXPERIMENTS = (
    *(f"table{number}" for number in range(1, 13)),
    "section5_4",
    "figure2",
    *(f"figure{number}" for number in range(4, 10)),
    "appendix_c",
    "appendix_g",
    "h100",
)
CAPTION = """\
*95 %* is an interval over texts of the same kind; *rise* is over the dense model; *prevented* is the share of
magnitude's rise that is prevented (Appendix J); *retained* is the share of the score; \\* marks what is better than
dense by a paired test."""
VERSIONS = ("secateur", "transformers")  # the machine says that of torch


@dataclass(frozen=True)
class Section:
    """An experiment on the page.

    Attributes:
        name: its module.
        title: the first line of its docstring.
        about: the rest.
        text: its report, as Markdown.
        seconds: what it took, all runs together.
    """

    name: str
    title: str
    about: str
    text: str
    seconds: float


def section(name: str, setting: Setting) -> Section:
    """Run an experiment.

    Raises:
        InputError: when it cannot be had here.
    """
    began, seconds = time.perf_counter(), 0.0
    try:
        text = execute(name, setting)
    finally:  # what was spent counts, whatever ended it
        seconds = _spent(setting.out, name, time.perf_counter() - began)
    title, _, about = (inspect.getdoc(importlib.import_module(f"experiments.{name}")) or "").partition("\n")
    return Section(name, title.rstrip("."), about.strip(), text, seconds)


def _spent(out: Path, name: str, seconds: float) -> float:
    """The seconds of an experiment with those of earlier runs, which are kept: what was finished is not done again."""
    out.mkdir(parents=True, exist_ok=True)
    file = out / "seconds.json"
    spent = json.loads(file.read_text("utf-8")) if file.exists() else {}
    spent[name] = spent.get(name, 0) + seconds
    file.write_text(json.dumps(spent, indent=1), "utf-8")
    return float(spent[name])


def page(sections: list[Section], setting: Setting) -> str:
    """The page as Markdown."""
    machine = this_machine(choose_device("auto"))
    versions = ", ".join(f"{name} {version(name)}" for name in VERSIONS)
    recipe, protocol = setting.recipe, setting.protocol
    windows = f"the first {protocol['limit']} windows" if protocol["limit"] else "all windows"
    windows += f" of {protocol['window'] or 'at most 2048'} tokens"
    dtype = "float32" if (protocol["dtype"], machine.gpu) == ("auto", None) else protocol["dtype"]
    seeds = ", ".join(map(str, setting.seeds))
    head = [
        f"# The paper, table by table: {', '.join(setting.models)}",
        f"{date.today():%d %B %Y}; {machine}; {versions}. Made by `python -m experiments.paper {setting.command}` in "
        f"{sum(one.seconds for one in sections) / 60:.0f} minutes.",
        f"Unless a table says otherwise: calibrated on {recipe['samples']} samples of {recipe['length']:,} tokens of "
        f"C4 (seeds: {seeds}), measured in {dtype} on {windows}.",
        CAPTION,
    ]
    parts = [
        f"## {one.title}\n\n" + (f"{one.about}\n\n" if one.about else "") + f"{one.text}\n`python -m experiments."
        f"{one.name} {setting.command}`: {one.seconds:,.0f} s.\n"
        for one in sections
    ]
    return "\n\n".join(head) + "\n\n" + "\n".join(parts)


def main() -> None:
    arguments = parser(__doc__)
    arguments.add_argument("--page", type=Path, help="write the page here, and its plots beside it")
    args = arguments.parse_args()
    warnings.showwarning = plain_warning  # type: ignore[assignment]
    try:
        setting = setting_of(args, LLAMA2[:1])
    except InputError as error:
        sys.exit(f"error: {error}")
    sections, failed = [], []
    for name in EXPERIMENTS:
        sys.stderr.write(f"{name}\n")
        try:
            sections.append(section(name, setting))
        except InputError as error:
            failed.append(f"{name}: {error}")
        except KeyboardInterrupt:
            sys.exit(f"stopped at {name}; the same command goes on")
        except Exception:  # the others go on
            failed.append(f"{name}: {traceback.format_exc()}")
    text = page(sections, setting)
    if args.page:
        args.page.parent.mkdir(parents=True, exist_ok=True)
        args.page.write_text(text, "utf-8")
        for plot in setting.out.glob("*.svg"):
            (args.page.parent / plot.name).write_bytes(plot.read_bytes())
    else:
        sys.stdout.write(text)
    if failed:
        sys.exit("\n".join(["failed:", *failed]))


if __name__ == "__main__":
    main()
