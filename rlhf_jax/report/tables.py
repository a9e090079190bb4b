"""The tables of a report, as Markdown, LaTeX, CSV or for a terminal, and how each quantity is printed."""

import csv
import dataclasses
import io
import math
import re
import textwrap

import rich.box
import rich.table
from rich.text import Text

from rlhf_jax.runtime.markdown import cell
from rlhf_jax.runtime.terminal import visible


def has_ends(estimate: dict) -> bool:
    """Whether an interval {value, low, high} has ends; a missing end is None, or infinity in older files."""
    return all(end is not None and math.isfinite(end) for end in (estimate["low"], estimate["high"]))


@dataclasses.dataclass(frozen=True)
class Quantity:
    """A number of evaluation.json or metrics.jsonl, and how it is printed.

    Attributes:
      title: the name for readers, with the unit. "the reference" in it is what KL and win rates refer to; see `against`.
      name: the name in the file.
      digits: digits after the point; None: four significant digits.
      scale: factor from the number to what is printed, such as 100 for percent.
    """

    title: str
    name: str
    digits: int | None = 3
    scale: float = 1.0

    def against(self, reference: str) -> "Quantity":
        """Returns the quantity with the name of the reference in its title."""
        return dataclasses.replace(self, title=self.title.replace(REFERENCE, reference))

    @property
    def words(self) -> str:
        """The title for a sentence, where shares are not in percent."""
        return self.title.removesuffix(" (%)")

    def show(self, estimate: dict | None, sign: bool = False) -> str:
        """Returns `value ± half the width of its interval`, or the value alone if the interval has no ends.

        None is a dash. `sign` also shows the sign of a positive value.
        """
        if estimate is None:
            return "–"
        form = f"{'+' if sign else ''}{'.4g' if self.digits is None else f'.{self.digits}f'}"
        value = f"{self.scale * estimate['value']:{form}}"
        if not has_ends(estimate):
            return value
        half = self.scale * (estimate["high"] - estimate["low"]) / 2
        return f"{value} ± {half:{'.2g' if self.digits is None else form.lstrip('+')}}"


REFERENCE = "the reference"
QUANTITIES = (
    Quantity("gold score", "gold/total"),
    Quantity("  helpful", "gold/helpful"),
    Quantity("  honest", "gold/honest"),
    Quantity("  harmless", "gold/harmless"),
    Quantity("  obeys constraints", "gold/constraint"),
    Quantity("  concise", "gold/concise"),
    Quantity(f"win rate against {REFERENCE} (%)", "win_rate", 1, 100),
    Quantity("reward score", "score", 2),
    Quantity(f"KL to {REFERENCE} (nats)", "kl", 2),
    Quantity("completion length (tokens)", "completion_length", 1),
    Quantity("ends by itself (%)", "eos", 1, 100),
    Quantity("retained skills, mean (%)", "skills/mean", 1, 100),
    Quantity("  closed QA (token F1)", "skills/closed_qa", 1, 100),
    Quantity("  translation (exact match)", "skills/translation", 1, 100),
    Quantity("  arithmetic (exact match)", "skills/arithmetic", 1, 100),
    Quantity("held-out loss (nats/token)", "valid_loss"),
    Quantity("test demonstrations, exact match (%)", "demonstrations/exact_match", 1, 100),
    Quantity("test demonstrations, ROUGE-L (%)", "demonstrations/rouge_l", 1, 100),
)
REWARD_QUANTITIES = tuple(
    Quantity(f"{title}, {labelers}{unit}", f"{split}/{name}", digits, scale)
    for split, labelers in (("valid", "training labelers"), ("heldout", "held-out labelers"))
    for name, title, unit, digits, scale in (
        ("accuracy", "accuracy", " (%)", 1, 100),
        ("log_loss", "log loss", " (nats)", 3, 1),
        ("ece", "calibration error", " (%)", 1, 100),
    )
)
_MORE = (
    Quantity("time (s)", "seconds", 1),
    Quantity("time of the evaluation (s)", "evaluation_seconds", 1),
    Quantity("peak memory (GiB)", "peak_memory_gib", 2),
    Quantity("reward score of the batch", "objective/scores", None),
    Quantity(f"KL to {REFERENCE} of the batch (nats)", "objective/kl", None),
    Quantity("share of arms that failed (%)", "failed", 0, 100),
    Quantity("gold score of the batch", "objective/gold", None),
    Quantity(f"exact KL to {REFERENCE} of the batch (nats)", "objective/kl_exact", None),
    Quantity("explained variance of the value model", "ppo/val/explained_variance", None),
    Quantity("approximate KL of an update (nats)", "ppo/policy/approxkl", None),
    Quantity("validation loss (nats/token)", "valid/loss", None),
    Quantity("reward score on validation prompts", "valid/score", None),
)
_BY_NAME = {
    quantity.name: dataclasses.replace(quantity, title=quantity.title.strip())
    for quantity in (*QUANTITIES, *REWARD_QUANTITIES, *_MORE)
}


def quantity_of(name: str) -> Quantity:
    """Returns how a quantity (see spec) is called and printed.

    An unknown quantity is called by its name, and printed with four digits.
    """
    if name in _BY_NAME:
        return _BY_NAME[name]
    if name.startswith("history:"):
        metric, _, how = name.removeprefix("history:").partition("@")
        title = f"{quantity_of(metric).title}, {how.replace('_', ' ')}"
        return dataclasses.replace(quantity_of(metric), title=title, name=name)
    if name.startswith("skills/"):
        return Quantity(f"{name.removeprefix('skills/').replace('_', ' ')} (%)", name, 1, 100)
    if name.startswith("lm_eval/"):
        return Quantity(" ".join(name.split("/")[1:]), name, None)
    words = name.removeprefix("evaluation:").replace("_", " ").split("/")
    return Quantity(
        f"score by {' '.join(words[1:])}" if words[0] == "score" and words[1:] else " ".join(words), name, None
    )


@dataclasses.dataclass(frozen=True)
class TextTable:
    """A table of text.

    Attributes:
      columns: the heads of the columns.
      rows: the cells by row; a first cell that starts with spaces is a part of the row above it.
      words: the number of columns with words, which come first and are flush left; numbers are flush right.
    """

    columns: list[str]
    rows: list[list[str]]
    words: int = 1

    def markdown(self) -> str:
        """Returns the table as Markdown."""
        rule = ["---" if number < self.words else "---:" for number in range(len(self.columns))]
        lines = [[cell(text) for text in self.columns], rule, *([cell(text) for text in row] for row in self.rows)]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def latex(self, caption: str = "", label: str = "") -> str:
        """Returns the table as LaTeX for pdfLaTeX and newer engines, with the packages booktabs and graphicx.

        All text is escaped, and heads are broken into lines. A table that is wider than the page is made smaller.
        """
        sides = ["l" if number < self.words else "r" for number in range(len(self.columns))]
        broken = [r" \\ ".join(map(latex, textwrap.wrap(name, 14))) for name in self.columns]
        heads = [rf"\begin{{tabular}}[b]{{@{{}}{side}@{{}}}}{name}\end{{tabular}}" for side, name in zip(sides, broken)]
        rows = [" & ".join(row) + r" \\" for row in (heads, *(map(latex, row) for row in self.rows))]
        lines = [
            r"\begin{table}",
            r"\centering",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{%",
            rf"\begin{{tabular}}{{{''.join(sides)}}}",
            r"\toprule",
            rows[0],
            r"\midrule",
            *rows[1:],
            r"\bottomrule",
            r"\end{tabular}}",
        ]
        lines += [rf"\caption{{{latex(caption)}}}"] * bool(caption) + [rf"\label{{{label}}}"] * bool(label)
        return "\n".join([*lines, r"\end{table}"]) + "\n"

    def rich(self, title: str, wrap: bool = False, most: int | None = None) -> rich.table.Table:
        """Returns the table for a terminal.

        Args:
          title: the title above the table.
          wrap: whether lines in cells are broken if there is no room.
          most: how many columns are shown; None: all.
        """

        def text(words):
            return Text(visible(words))

        table = rich.table.Table(title=text(title), box=rich.box.SIMPLE_HEAD, title_justify="left")
        for number, column in enumerate(self.columns[:most]):
            table.add_column(
                text(column), justify="left" if number < self.words else "right", no_wrap=not wrap or not number
            )
        for row in self.rows:
            table.add_row(*map(text, row[:most]))
        return table


def latex(text: str) -> str:
    """Returns any text as LaTeX that shows the same text.

    Leading spaces stay, line ends become spaces, and the hyphen of a negative number becomes a minus.
    """
    indent = len(text) - len(text.lstrip(" "))
    text = re.sub(_SPECIAL, lambda match: _LATEX[match[0]], visible(" ".join(text.split())))
    return r"\quad " * (indent // 2) + re.sub(r"(?<![\w.)$-])-(?=[\d.])", "$-$", text)


_LATEX = {
    "\\": r"\textbackslash{}",
    "{": r"\{",
    "}": r"\}",
    "$": r"\$",
    "&": r"\&",
    "#": r"\#",
    "%": r"\%",
    "_": r"\_",
    "^": r"\textasciicircum{}",
    "~": r"\textasciitilde{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    "`": r"\textasciigrave{}",
    "[": "{[}",
    "]": "{]}",  # a plain bracket after a line end would be its optional argument
    "±": r"$\pm$",
    "−": "$-$",
    "–": "--",
    "—": "---",
    "×": r"$\times$",
    "·": r"$\cdot$",
    "…": r"\ldots{}",
    "√": r"$\surd$",
    "α": r"$\alpha$",
    "β": r"$\beta$",
    "γ": r"$\gamma$",
    "λ": r"$\lambda$",
    "π": r"$\pi$",
    "²": "$^2$",
}
_SPECIAL = re.compile("|".join(map(re.escape, _LATEX)))


def csv_text(columns: list[str], rows: list[list]) -> str:
    """Returns CSV with a line of names; None becomes an empty field, and a float has all its digits."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if value is None else value for value in row] for row in rows])
    return text.getvalue()
