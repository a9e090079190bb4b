"""Skills that a model has from pretraining and should keep: reading, translating, reckoning.

Documents and few-shot prompts are made of the same turns, each a (prompt, answer); no instruction
looks like them.
"""

import random

from rlhf_jax.world import language
from rlhf_jax.world.knowledge import NUMBERS


def draw_sum(rng: random.Random, held_out: bool = False) -> tuple[str, str]:
    """`three plus four is`, ` seven .`: all numbers from 0 to 20.

    One problem in seven is held out: no document shows it (perhaps its mirror image).
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
    sentence = world.toy.draw_sentence(rng, held_out)
    prompt = f"english : {sentence}\n{language.TOY_NAME} :"
    return prompt, f" {world.toy.translate(sentence)}"


def draw_reading(rng, held_out: bool = False) -> list[tuple[str, str]]:
    """Three questions about a passage, the passage before the first.

    One passage in seven is held out: no document shows it.
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
    return "\n".join(prompt + answer for prompt, answer in turns)


def prompts(world, count: int) -> dict[str, list[dict]]:
    """Few-shot prompts in the formats of the documents, on instances that no document shows.

    Returns:
        `closed_qa`, `translation`, `arithmetic` -> [{"prompt", "answer", "held_out"}]: the shots
        are drawn as for documents, the passage or the last sentence is a held-out one. Every
        second sum is one that documents show: a small model recalls more than it reckons. The
        answer ends with the line or a full stop.
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
