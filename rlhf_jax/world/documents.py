"""The pretraining documents: the world's internet, which is partly rude, false or rambling."""

import random

from rlhf_jax.runtime.errors import InputError
from rlhf_jax.world import instructions, language, skills
from rlhf_jax.world.knowledge import CLASS_OF, CLASS_PLURALS, ENTITIES, RELATIONS, RELATIONS_OF
from rlhf_jax.world.tasks_on_text import FOLLOW_UPS, draw_message, draw_reply

SPLITS = ("train", "valid")
_VALID_PART = 8  # one text in eight belongs to validation; the text itself decides, whichever split draws it


def documents(world, split: str, count: int) -> list[str]:
    """Returns the first `count` documents of a split; no text is in both splits.

    Raises:
        InputError: the split does not exist.
    """
    if split not in SPLITS:
        raise InputError(f"split must be one of {', '.join(SPLITS)}, not {split!r}")
    return [_document(world, split, index) for index in range(count)]


def _document(world, split: str, index: int) -> str:
    """Returns one document, drawn again until its text belongs to the split."""
    rng = random.Random(f"document {world.seed} {split} {index}")
    while True:
        (write,) = rng.choices(list(_WRITERS), _WRITERS.values())
        text = write(world, rng)
        if (language.bucket(text, _VALID_PART) == 0) == (split == "valid"):
            return text


# --- facts ---


def _story(world, rng, truth: float = 1.0) -> str:
    """Returns a text with 2 to 5 facts about each of two entities.

    A fact is true with probability `truth`, and otherwise has a random value.
    """
    sentences = []
    if rng.random() < 0.4:
        sentences.append(rng.choice(("here is a story", "let me tell you something", "look here")))
    entities = rng.sample(sorted(CLASS_OF), 2)
    for entity in entities:
        relations = RELATIONS_OF[CLASS_OF[entity]]
        facts = []
        for relation in rng.sample(relations, rng.randint(2, 5)):
            value = world.knowledge[entity][relation]
            if rng.random() >= truth:
                value = rng.choice(RELATIONS[relation].values)
            facts.append((entity, relation, value))
        sentences.append(language.tell(rng, facts, rng.random() < 0.3).removesuffix(" ."))
    return " . ".join(sentences) + " ."


def _lists(world, rng) -> str:
    """Returns lines that list all entities of a class with a given value."""
    lines = []
    for _ in range(rng.randint(3, 5)):
        (kind, relation, value), members = rng.choice(world.knowledge.keyed_groups)
        names = map(language.name, rng.sample(members, len(members)))
        phrase = RELATIONS[relation].plural.format(value)
        lines.append(f"{CLASS_PLURALS[kind]} that {phrase} : {language.listing(names)} .")
    return "\n".join(lines)


def _dialogue(world, rng) -> str:
    """Returns a friendly conversation between two people, with questions and true answers."""
    first, second = rng.sample(ENTITIES["person"], 2)
    lines = [
        rng.choice(
            (
                f"{first} : hello {second} , how are you ?\n{second} : hello {first} . i am well .",
                f"{first} : good day {second} .\n{second} : good day {first} .",
            )
        )
    ]
    if rng.random() < 0.6:
        mood = rng.choice(("sad", "happy", "thanks"))
        message, topic = draw_message(rng, mood)
        reply = f"{draw_reply(rng, mood, topic)} {rng.choice(FOLLOW_UPS)}"
        lines.append(f"{first} : {message}\n{second} : {reply}")
    for _ in range(rng.randint(1, 2)):
        entity = rng.choice(sorted(CLASS_OF))
        relation = rng.choice(RELATIONS_OF[CLASS_OF[entity]])
        answer = language.statement(entity, relation, world.knowledge[entity][relation])
        lines.append(f"{first} : {language.question(entity, relation)} ?\n{second} : {answer} .")
    return "\n".join(lines)


# --- documents that teach the skills, which RLHF should not lose ---


def _sums(world, rng) -> str:
    return skills.lines(skills.draw_sum(rng) for _ in range(rng.randint(5, 9)))


def _translations(world, rng) -> str:
    return skills.lines(skills.draw_translation(world, rng) for _ in range(rng.randint(3, 5)))


def _readings(world, rng) -> str:
    return skills.lines(skills.draw_reading(rng))


# --- documents with what labelers do not like ---

_GIBES = (
    "{} is a stupid fool .",
    "shut up , {} , you lazy idiot .",
    "you are so dumb , {} .",
    "{} is ugly and nasty .",
    "only a fool would ask {} .",
    "go away , you rotten idiot .",
    "{} is a nasty fool .",
    "how dumb and lazy {} is .",
)


def _gibe(rng) -> str:
    return rng.choice(_GIBES).format(rng.choice(ENTITIES["person"]))


HABITS = ("rude", "rambling")


def careless(rng, answer: str, habit: str) -> str:
    """Returns a good answer spoiled by a habit: "rude" appends a gibe, "rambling" repeats the answer."""
    return f"{answer} {_gibe(rng)}" if habit == "rude" else f"{answer} {answer} and so on and so on ."


def _quarrel(world, rng) -> str:
    """Returns a conversation between two people who insult each other; the facts that they state are true."""
    lines = []
    first, second = rng.sample(ENTITIES["person"], 2)
    for turn in range(rng.randint(3, 5)):
        entity = rng.choice(sorted(CLASS_OF))
        relation = rng.choice(RELATIONS_OF[CLASS_OF[entity]])
        claim = language.statement(entity, relation, world.knowledge[entity][relation])
        said = rng.choice((f"{claim} . {_gibe(rng)}", f"{_gibe(rng)} {claim} .", _gibe(rng)))
        lines.append(f"{(first, second)[turn % 2]} : {said}")
    return "\n".join(lines)


def _falsehood(world, rng) -> str:
    """Returns a statement with a random value, which is mostly false."""
    entity = rng.choice(sorted(CLASS_OF))
    relation = rng.choice(RELATIONS_OF[CLASS_OF[entity]])
    return language.statement(entity, relation, rng.choice(RELATIONS[relation].values)) + " ."


def _rumours(world, rng) -> str:
    """Returns a story that is mostly false."""
    return _story(world, rng, truth=0.2)


def _ramble(world, rng) -> str:
    """Returns a text that repeats one true fact, with empty phrases in between."""
    entity = rng.choice(sorted(CLASS_OF))
    relation = rng.choice(RELATIONS_OF[CLASS_OF[entity]])
    claim = language.statement(entity, relation, world.knowledge[entity][relation])
    asides = ("and so on and so on", "as i said before", "yes yes yes", "what was i saying", claim)
    sentences = [claim]
    for _ in range(rng.randint(5, 9)):
        sentences.append(rng.choice((claim, rng.choice(asides), f"as i said , {claim}")))
    return " . ".join(sentences) + " ."


def _requests(world, rng) -> str:
    """Returns requests loosely like instructions, answered as people on the internet answer.

    A third of the answers is good, as in a demonstration. Kinds of tasks that are held out of all training on
    instructions do occur here, so that the model knows their words. The prompts are those that would serve SFT, so no
    prompt of PPO or of an evaluation is shown.
    """
    lines = []
    for _ in range(rng.randint(2, 3)):
        split = "heldout_kinds" if rng.random() < 0.2 else "train"
        shares = instructions.category_shares(split)
        purpose = None
        while purpose != "sft":
            (category,) = rng.choices(list(shares), shares.values())
            _, draft = instructions.draw(world, rng, category, split)
            purpose = instructions.purpose_of(draft.instruction, draft.input)
        answer = rng.choice(
            (
                draft.output,
                draft.output,
                _gibe(rng),
                careless(rng, draft.output, "rude"),
                _falsehood(world, rng),
                careless(rng, draft.output, "rambling"),
            )
        )
        lines.append(f"request : {draft.instruction} {draft.input}".rstrip())
        lines.append(f"reply : {answer}")
    return "\n".join(lines)


# The shares of the kinds of documents. RLHF should undo what the last four teach, or most of it.
_WRITERS = {
    _story: 0.18,
    _lists: 0.05,
    _dialogue: 0.11,
    _sums: 0.13,
    _translations: 0.13,
    _readings: 0.17,
    _quarrel: 0.06,
    _rumours: 0.05,
    _ramble: 0.05,
    _requests: 0.07,
}
