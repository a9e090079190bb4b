"""Tasks about the facts of the world: writing, questions, ideas, corrections."""

from rlhf_jax.world import language
from rlhf_jax.world.knowledge import CLASS_OF, CLASS_PLURALS, ENTITIES, NUMBERS, PLACES, RELATIONS, RELATIONS_OF
from rlhf_jax.world.tasks import Draft, answer_spec, any_entity, draw_list, task

# --- generation ---


def _facts(world, rng, flawed, subjects, count, *, relations=None, sentences=None, include=()):
    """Returns the demonstration and the spec of a task that asks for true facts about the subjects.

    Some of these tasks get a constraint: to avoid a relation, or to use one sentence.

    Args:
        world: the world.
        rng: the source of randomness.
        flawed: whether the demonstration lacks one fact.
        subjects: entities that the facts are about.
        count: number of facts.
        relations: relations that the facts may be about; None for all.
        sentences: number of sentences that the prompt asks for; None if it does not ask.
        include: words that an answer must have.
    """
    spec = {
        "task": "facts",
        "subjects": list(subjects),
        "relations": relations,
        "count": count,
        "sentences": sentences,
        "include": list(include),
        "constraints": [],
    }
    shared = [
        relation
        for relation in (relations or RELATIONS_OF[CLASS_OF[subjects[0]]])
        if all(relation in RELATIONS_OF[CLASS_OF[subject]] for subject in subjects)
    ]
    joined = sentences == 1
    if not relations and shared and rng.random() < 0.12:
        spec["constraints"] = [["avoid", rng.choice(shared)]]
    elif sentences is None and rng.random() < 0.12:
        spec["constraints"] = [["one_sentence", True]]
        joined = True
    avoided = {argument for constraint, argument in spec["constraints"] if constraint == "avoid"}
    facts = []
    for i, subject in enumerate(subjects):
        wanted = (count + len(subjects) - 1 - i) // len(subjects)
        free = [r for r in relations or RELATIONS_OF[CLASS_OF[subject]] if r not in avoided]
        facts += [(subject, r, world.knowledge[subject][r]) for r in rng.sample(free, wanted)]
    if flawed and len(facts) > 1:
        facts.pop()
        spec["flaw"] = True
    return language.tell(rng, facts, joined or (sentences is None and rng.random() < 0.4)), spec


_READERS = ("a child", "my class", "a friend", "my mother")


def _for_reader(rng) -> str:
    """Returns whom the text is for, in a quarter of the prompts, else ""; it does not change the task."""
    return f" for {rng.choice(_READERS)}" if rng.random() < 0.25 else ""


@task("generation", 3)
def about(world, rng, flawed):
    """Asks for a text of one to three sentences about an entity."""
    subject, count = any_entity(rng), rng.randint(1, 3)
    x = language.name(subject) + _for_reader(rng)
    n = f"{NUMBERS[count]} sentence{'s' * (count > 1)}"
    instruction = rng.choice(
        (
            f"write {n} about {x} .",
            f"please write {n} about {x} .",
            f"describe {x} in {n} .",
            f"in {n} , describe {x} .",
            f"write a text of {n} about {x} .",
        )
    )
    output, spec = _facts(world, rng, flawed, [subject], count, sentences=count)
    return Draft((subject, count), instruction, "", output, spec)


@task("generation", 2)
def things(world, rng, flawed):
    """Asks for two or three facts about an entity."""
    subject, count = any_entity(rng), rng.randint(2, 3)
    x, n = language.name(subject), NUMBERS[count]
    reader = _for_reader(rng)
    instruction = rng.choice(
        (
            f"tell me {n} things about {x} .",
            f"say {n} things about {x} .",
            f"give me {n} facts about {x}{reader} .",
            f"i need {n} facts about {x}{reader} .",
            f"what can you say about {x} ? give {n} facts{reader} .",
        )
    )
    output, spec = _facts(world, rng, flawed, [subject], count)
    return Draft((subject, count), instruction, "", output, spec)


@task("generation", 2)
def parts(world, rng, flawed):
    """Asks for two given relations of an entity."""
    subject = any_entity(rng)
    relations = rng.sample(RELATIONS_OF[CLASS_OF[subject]], 2)
    x = language.name(subject)
    first, second = (f"the {RELATIONS[relation].noun}" for relation in relations)
    instruction = rng.choice(
        (
            f"write about {first} and {second} of {x} .",
            f"describe {first} and {second} of {x} .",
            f"tell me about {x} , {first} and {second} .",
        )
    )
    output, spec = _facts(world, rng, flawed, [subject], 2, relations=relations)
    return Draft((subject, *sorted(relations)), instruction, "", output, spec)


@task("generation", 2)
def pair(world, rng, flawed):
    """Asks for a story about two entities."""
    subjects = any_entity(rng), any_entity(rng)
    while subjects[0] == subjects[1]:
        subjects = any_entity(rng), any_entity(rng)
    x, y = map(language.name, subjects)
    instruction = rng.choice(
        (
            f"write a short story about {x} and {y} .",
            f"write a story with {x} and {y} .",
            f"tell me something about {x} and {y} .",
            f"write about {x} and about {y} .",
        )
    )
    output, spec = _facts(world, rng, flawed, subjects, 2)
    return Draft(tuple(sorted(subjects)), instruction, "", output, spec)


@task("generation", 1)
def note(world, rng, flawed):
    """Asks for a note to a person about an entity."""
    subject, person = any_entity(rng), rng.choice(ENTITIES["person"])
    x = language.name(subject)
    instruction = rng.choice(
        (
            f"write a note to {person} about {x} .",
            f"write a letter to {person} about {x} .",
            f"write to {person} about {x} .",
        )
    )
    output, spec = _facts(world, rng, False, [subject], 1, include=["dear", person])
    opener = "" if flawed else f"dear {person} , "
    return Draft((subject, person), instruction, "", opener + output, spec | {"flaw": flawed})


@task("generation", 1)
def ad(world, rng, flawed):
    """Asks for an ad for a food or a tool."""
    subject = rng.choice(ENTITIES["food"] + ENTITIES["tool"])
    x = language.name(subject)
    instruction = rng.choice((f"write an ad for {x} .", f"help me to sell {x} .", f"write why one should buy {x} ."))
    output, spec = _facts(world, rng, flawed, [subject], 2, include=["buy"])
    if any(constraint == "one_sentence" for constraint, _ in spec["constraints"]):
        return Draft((subject,), instruction, "", f"buy {x} , {output}", spec)
    return Draft((subject,), instruction, "", f"{output} buy {x} !", spec)


@task("generation", 1.5)
def go_on(world, rng, flawed):
    """Asks for new facts about an entity, after a text that tells some."""
    subject, other = rng.sample(sorted(CLASS_OF), 2)
    relations = rng.sample(RELATIONS_OF[CLASS_OF[subject]], 5)
    told, count = rng.randint(1, 3), rng.randint(1, 2)
    facts = [(subject, relation) for relation in relations[:told]]
    facts += [(other, r) for r in rng.sample(RELATIONS_OF[CLASS_OF[other]], rng.randint(1, 3))]
    text = language.tell(rng, [(name, r, world.knowledge[name][r]) for name, r in facts], False)
    n, x = NUMBERS[count], language.name(subject)
    instruction = rng.choice(
        (
            f"go on with {n} more about {x} .",
            f"the text goes on with {n} new facts about {x} .",
            f"add {n} new facts about {x} .",
        )
    )
    output, spec = _facts(world, rng, flawed, [subject], count, relations=relations[told:])
    return Draft((text, count), instruction, text, output, spec)


@task("generation", held_out=True)
def riddle(world, rng, flawed):
    """Asks for a riddle about an entity, which must not name it."""
    subject, person = any_entity(rng), rng.choice(ENTITIES["person"])
    relations = rng.sample(RELATIONS_OF[CLASS_OF[subject]], 2)
    clues = relations[:1] if flawed else relations
    output = (
        " . ".join("i " + RELATIONS[r].plural.format(world.knowledge[subject][r]).replace("are ", "am ") for r in clues)
        + " . what am i ?"
    )
    spec = {
        "task": "facts",
        "subjects": [subject],
        "relations": None,
        "count": 2,
        "sentences": None,
        "include": ["what", "am", "i"],
        "constraints": [["avoid_name", subject]],
        "speaker": subject,
        "flaw": flawed,
    }
    instruction = rng.choice(
        (
            f"write a riddle about {language.name(subject)} for {person} .",
            f"write {person} a riddle about {language.name(subject)} . do not say the name .",
        )
    )
    return Draft((subject, person), instruction, "", output, spec)


# --- questions and lists about the knowledge ---


@task("open_qa", 3)
def ask(world, rng, flawed):
    """Asks for the value of a relation of an entity."""
    subject = any_entity(rng)
    relation = rng.choice(RELATIONS_OF[CLASS_OF[subject]])
    value, q = world.knowledge[subject][relation], language.question(subject, relation)
    instruction = rng.choice((f"{q} ?", f"tell me , {q} ?", f"please answer , {q} ?", f"do you know {q} ?"))
    output = rng.choice(
        (
            RELATIONS[relation].value.format(value),
            language.statement(subject, relation, value),
            language.noun_statement(subject, relation, value),
        )
    )
    spec = answer_spec([value], RELATIONS[relation].values, about=[subject])
    return Draft((subject, relation), instruction, "", f"{output} .", spec)


@task("open_qa", 1)
def which(world, rng, flawed):
    """Asks for an entity with a given value."""
    (kind, relation, value), members = rng.choice(world.knowledge.keyed_groups)
    subject, phrase = rng.choice(members), language.predicate(relation, value)
    who = "who" if kind == "person" else f"which {kind}"
    instruction = rng.choice((f"{who} {phrase} ?", f"do you know {who} {phrase} ?"))
    output = rng.choice((language.name(subject), language.statement(subject, relation, value)))
    spec = answer_spec(members, ENTITIES[kind], about=[value])
    return Draft((kind, relation, value), instruction, "", f"{output} .", spec)


@task("open_qa", held_out=True)
def yes_no(world, rng, flawed):
    """Asks whether a statement is true."""
    subject = any_entity(rng)
    relation = rng.choice(RELATIONS_OF[CLASS_OF[subject]])
    truth = world.knowledge[subject][relation]
    guess = rng.choice((truth, rng.choice(RELATIONS[relation].values)))
    instruction = f"is it true that {language.statement(subject, relation, guess)} ?"
    word = "yes" if guess == truth else "no"
    output = rng.choice((f"{word} .", f"{word} , {language.statement(subject, relation, truth)} ."))
    spec = answer_spec([word], ["yes", "no"], about=[subject])
    return Draft((subject, relation, guess), instruction, "", output, spec)


@task("brainstorming", 3)
def search(world, rng, flawed):
    """Asks for several entities of a class with a given value."""
    members = ()
    while len(members) < 2:
        (kind, relation, value), members = rng.choice(world.knowledge.keyed_groups)
    count = rng.randint(2, min(3, len(members)))
    n = NUMBERS[count]
    such = f"{CLASS_PLURALS[kind]} that {RELATIONS[relation].plural.format(value)}"
    instruction = rng.choice(
        (f"name {n} {such} .", f"list {n} {such} .", f"give me {n} {such} .", f"i am looking for {n} {such} .")
    )
    output, spec = draw_list(rng, flawed, members, ENTITIES[kind], count)
    return Draft((kind, relation, value, count), instruction, "", output, spec)


_OCCASIONS = ("for a party", "for a gift", "for a trip", "for the winter", "for today")


@task("brainstorming", 1)
def gifts(world, rng, flawed):
    """Asks for foods or tools for an occasion."""
    person, kind = rng.choice(ENTITIES["person"]), rng.choice(("food", "tool"))
    count, occasion = rng.randint(2, 4), rng.choice(_OCCASIONS)
    n = NUMBERS[count]
    instruction = rng.choice(
        (
            f"which {CLASS_PLURALS[kind]} could i bring {person} {occasion} ? give {n} ideas .",
            f"give me {n} ideas of {CLASS_PLURALS[kind]} {occasion} with {person} .",
        )
    )
    options = ENTITIES["food"] + ENTITIES["tool"]
    output, spec = draw_list(rng, flawed, ENTITIES[kind], options, count)
    return Draft((person, kind, count, occasion), instruction, "", output, spec)


@task("brainstorming", 1)
def visits(world, rng, flawed):
    """Asks for places for an occasion."""
    friend, count, occasion = any_entity(rng), rng.randint(2, 4), rng.choice(_OCCASIONS)
    while CLASS_OF[friend] not in ("person", "animal"):
        friend = any_entity(rng)
    n = NUMBERS[count]
    instruction = rng.choice(
        (
            f"where could i go with {language.name(friend)} {occasion} ? name {n} places .",
            f"give me {n} ideas of places {occasion} with {language.name(friend)} .",
        )
    )
    options = PLACES + ENTITIES["food"] + ENTITIES["tool"]
    output, spec = draw_list(rng, flawed, PLACES, options, count, "the {}".format)
    return Draft((friend, count, occasion), instruction, "", output, spec)


@task("brainstorming", held_out=True)
def all_but(world, rng, flawed):
    """Asks for entities of a class, except one or two."""
    kind, count = rng.choice(sorted(ENTITIES)), rng.randint(2, 4)
    banned = rng.sample(ENTITIES[kind], rng.randint(1, 2))
    instruction = rng.choice(
        (
            f"name {NUMBERS[count]} {CLASS_PLURALS[kind]} , but not {language.listing(banned, 'or')} .",
            f"list {NUMBERS[count]} {CLASS_PLURALS[kind]} without {language.listing(banned, 'or')} .",
        )
    )
    items = [name for name in ENTITIES[kind] if name not in banned]
    output, spec = draw_list(rng, flawed, items, CLASS_OF, count)
    return Draft((kind, count, *sorted(banned)), instruction, "", output, spec)


# --- labels, and what is left ---


@task("classification", 1)
def kind_of(world, rng, flawed):
    """Asks for the class of an entity."""
    subject = any_entity(rng)
    x, kinds = language.name(subject), rng.sample(sorted(ENTITIES), 3)
    if CLASS_OF[subject] not in kinds:
        kinds[rng.randrange(3)] = CLASS_OF[subject]
    instruction = f"what is {x} ? choose {language.listing(kinds, 'or')} ."
    output = rng.choice((CLASS_OF[subject], f"{x} is a {CLASS_OF[subject]}"))
    spec = answer_spec([CLASS_OF[subject]], sorted(ENTITIES))
    return Draft((subject,), instruction, "", f"{output} .", spec)


@task("other", 1)
def odd_one(world, rng, flawed):
    """Asks for the one of four words that is of another class."""
    kind, other = rng.sample(sorted(ENTITIES), 2)
    words = rng.sample(ENTITIES[kind], 3) + [rng.choice(ENTITIES[other])]
    odd = words[-1]
    rng.shuffle(words)
    instruction = rng.choice(
        ("which word does not belong ?", "find the odd word .", "one word is not like the others .")
    )
    text = " , ".join(words)
    return Draft(tuple(sorted(words)), instruction, text, f"{odd} .", answer_spec([odd], words))


@task("other", 1)
def complete(world, rng, flawed):
    """Asks for the end of a true sentence."""
    subject = any_entity(rng)
    relation = rng.choice(RELATIONS_OF[CLASS_OF[subject]])
    value = world.knowledge[subject][relation]
    start, end = RELATIONS[relation].says.split("{}")
    instruction = rng.choice(("finish the sentence .", "complete the sentence .", "how does the sentence end ?"))
    output = rng.choice((f"{value}{end}", language.statement(subject, relation, value)))
    spec = answer_spec([value], RELATIONS[relation].values)
    text = f"{language.name(subject)} {start}".strip()
    return Draft((subject, relation), instruction, text, f"{output} .", spec)


@task("other", 1)
def correct(world, rng, flawed):
    """Asks for the correction of a false sentence."""
    subject = any_entity(rng)
    relation = rng.choice(RELATIONS_OF[CLASS_OF[subject]])
    truth = wrong = world.knowledge[subject][relation]
    while wrong in (truth, subject):
        wrong = rng.choice(RELATIONS[relation].values)
    instruction = rng.choice(
        ("the sentence is wrong . correct it .", "find the mistake and write the sentence again .")
    )
    spec = {"task": "facts", "subjects": [subject], "relations": [relation], "count": 1, "sentences": 1, "include": []}
    text = language.statement(subject, relation, wrong)
    output = language.statement(subject, relation, truth)
    return Draft((subject, relation, wrong), instruction, f"{text} .", f"{output} .", spec)
