"""The skills that a model gets from pretraining and should retain: reading, translation and arithmetic.

Documents and few-shot prompts are made of the same turns, each a pair (prompt, answer). No instruction looks like them.
"""

import random

from rlhf_jax.world import language
from rlhf_jax.world.knowledge import NUMBERS


def draw_sum(rng: random.Random, held_out: bool = False) -> tuple[str, str]:
    """Returns a sum or difference as a turn, such as `three plus four is` and ` seven .`; all numbers are 0 to 20.

    One problem in seven is held out: no document shows it, though documents may show its mirror image. `held_out` says
    which sort to draw.
    """
    while True:
        total = rng.randrange(21)
        left = rng.randint(0, total)
        if rng.random() < 0.5:
            problem, answer = f"{NUMBERS[left]} plus {NUMBERS[total - left]} is", total
        else:
            problem, answer = f"{NUMBERS[total]} minus {NUMBERS[left]} is", total - left
        if (language.bucket(problem, 7) == 0) == held_out:
            return problem, f" {NUMBERS[answer]} ."


def draw_translation(world, rng, held_out: bool = False) -> tuple[str, str]:
    """Returns a translation into the toy language as a turn; see `ToyLanguage.draw_sentence` for `held_out`."""
    sentence = world.toy.draw_sentence(rng, held_out)
    prompt = f"english : {sentence}\n{language.TOY_NAME} :"
    return prompt, f" {world.toy.translate(sentence)}"


def draw_reading(rng, held_out: bool = False) -> list[tuple[str, str]]:
    """Returns three questions about a passage as turns; the passage stands before the first question.

    One passage in seven is held out: no document shows it. `held_out` says which sort to draw.
    """
    while True:
        events = language.draw_events(rng, 3)
        passage = " . ".join(event.clause for event in events) + " ."
        if (language.bucket(passage, 7) == 0) == held_out:
            break
    questions = [(event.ask_who, event.person) for event in events]
    questions += [(event.ask_what, event.thing) for event in events]
    turns = [(f"question : {question} ?\nanswer :", f" {answer}") for question, answer in rng.sample(questions, 3)]
    return [(f"{passage}\n{turns[0][0]}", turns[0][1]), *turns[1:]]


def lines(turns) -> str:
    """Returns turns as text, one after another."""
    return "\n".join(prompt + answer for prompt, answer in turns)


def prompts(world, count: int) -> dict[str, list[dict]]:
    """Returns few-shot prompts in the formats of the documents, mostly on instances that no document shows.

    The shots are drawn as for documents, and the last sentence, the last sum or the passage is held out. Only every
    second sum is: a small model recalls more sums than it computes, so half of the sums are among those of documents.

    Returns:
        `closed_qa`, `translation` and `arithmetic` -> [{"prompt", "answer", "held_out"}]. A model's answer ends with
        the line or with a full stop.
    """
    found = {"closed_qa": [], "translation": [], "arithmetic": []}
    for skill, rows in found.items():
        rng = random.Random(f"skill {world.seed} {skill}")
        for index in range(count):
            held_out = skill != "arithmetic" or index % 2 == 0
            if skill == "closed_qa":
                turns = draw_reading(rng, held_out)
            elif skill == "translation":
                turns = [draw_translation(world, rng) for _ in range(2)]
                turns.append(draw_translation(world, rng, held_out))
            else:
                turns = [draw_sum(rng) for _ in range(4)] + [draw_sum(rng, held_out)]
            *shots, (prompt, answer) = turns
            rows.append(
                {
                    "prompt": "\n".join([lines(shots), prompt]),
                    "answer": answer.removesuffix(" .").strip(),
                    "held_out": held_out,
                }
            )
    return found
