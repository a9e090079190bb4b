"""What a compiled program does inside its loops, read from its text."""

import re


def loop_collectives(text: str, kind: str = "all-gather") -> list[tuple[int, ...]]:
    """The shapes of the results of all collectives of a kind that lie in the body of a loop.

    Args:
      text: of a compiled program, `jitted.lower(...).compile().as_text()`.
    """
    computations = {}
    for block in re.split(r"\n(?=\S)", text):
        if match := re.match(r"(?:ENTRY )?%?([\w.\-]+) ", block):
            computations[match[1]] = block
    inside, queue = set(), re.findall(r"body=%?([\w.\-]+)", text)
    while queue:
        name = queue.pop()
        if name not in inside and name in computations:
            inside.add(name)
            queue += re.findall(r"(?:to_apply|body|calls|condition)=%?([\w.\-]+)", computations[name])
    shapes = []
    for name in inside:
        for result in re.findall(rf"= (.*?) {kind}(?:-start)?\(", computations[name]):
            shapes += [tuple(map(int, dims.split(","))) for dims in re.findall(r"\w+\[([\d,]+)\]", result)]
    return shapes
