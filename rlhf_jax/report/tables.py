"""The tables of a report: rows of text, for a Markdown file and for a terminal."""

import dataclasses
import html
import math

import rich.box
import rich.table


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A row of a table: an estimate of evaluation.json and how it is printed."""

    title: str
    name: str
    digits: int = 3
    scale: float = 1.0

    def show(self, estimate: dict | None) -> str:
        """`value ± half the width of its interval`; a dash for nothing."""
        if estimate is None:
            return "–"
        value = f"{self.scale * estimate['value']:.{self.digits}f}"
        half = self.scale * (estimate["high"] - estimate["low"]) / 2
        return f"{value} ± {half:.{self.digits}f}" if math.isfinite(half) else value


QUANTITIES = (
    Quantity("gold score", "gold/total"),
    Quantity("  helpful", "gold/helpful"),
    Quantity("  honest", "gold/honest"),
    Quantity("  harmless", "gold/harmless"),
    Quantity("  obeys constraints", "gold/constraint"),
    Quantity("  concise", "gold/concise"),
    Quantity("win rate against SFT (%)", "win_rate", 1, 100),
    Quantity("reward score", "score", 2),
    Quantity("KL to SFT (nats)", "kl", 2),
    Quantity("completion length (tokens)", "completion_length", 1),
    Quantity("ends by itself (%)", "eos", 1, 100),
    Quantity("retained skills, mean (%)", "skills/mean", 1, 100),
    Quantity("  closed QA (token F1)", "skills/closed_qa", 1, 100),
    Quantity("  translation (exact match)", "skills/translation", 1, 100),
    Quantity("  arithmetic (exact match)", "skills/arithmetic", 1, 100),
    Quantity("held-out loss (nats/token)", "valid_loss"),
)


@dataclasses.dataclass(frozen=True)
class Table:
    """Cells of text; a first cell that starts with spaces is a part of the row above it."""

    columns: list[str]
    rows: list[list[str]]

    def markdown(self, numbers: bool = True) -> str:
        """A Markdown table; `numbers` aligns all columns but the first to the right."""
        rule = ["---"] + ["---:" if numbers else "---"] * (len(self.columns) - 1)
        lines = [[cell(text) for text in self.columns], rule,
                 *([cell(text) for text in row] for row in self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def rich(self, title: str) -> rich.table.Table:
        """The same for a terminal."""
        table = rich.table.Table(title=title, box=rich.box.SIMPLE_HEAD, title_justify="left")
        for number, column in enumerate(self.columns):
            table.add_column(column, justify="right" if number else "left", no_wrap=True)
        for row in self.rows:
            table.add_row(*row)
        return table


def cell(text: str) -> str:
    """Any text as one Markdown cell that shows it as it is."""
    indent = len(text) - len(text.lstrip(" "))
    text = html.escape(text.strip(), quote=False).replace("|", "&#124;")
    for mark in "\\`*_[]":
        text = text.replace(mark, f"\\{mark}")
    return "&nbsp;" * indent + "<br>".join(text.splitlines())
