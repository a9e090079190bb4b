"""Tasks about a text that is part of the prompt: chat, rewriting, passages, labels."""

from rlhf_jax.world import language
from rlhf_jax.world.knowledge import CLASS_OF, ENTITIES
from rlhf_jax.world.tasks import ANYTHING, Draft, answer_spec, draw_list, task

# --- chat ---

# Mood of the user -> phrases of which a good reply has one; see gold.py.
OPENERS = {
    "sad": ("i am sorry", "sorry to hear", "that is sad"),
    "happy": ("i am glad", "that is great", "how nice"),
    "greeting": ("hello", "good day", "hi"),
    "thanks": ("you are welcome", "my pleasure", "no problem"),
    "night": ("good night", "sleep well", "sweet dreams"),
}
# Phrases with which a good reply offers something.
FOLLOW_UPS = (
    "can i help you ?",
    "how can i help you ?",
    "how are you ?",
    "tell me more .",
    "have fun !",
    "take care .",
    "see you soon .",
    "all will be well .",
)
_MESSAGES = {
    "sad": (
        "i am sad . my {tool} is broken .",
        "i lost my {tool} today .",
        "my {animal} is ill .",
        "i feel bad . my {animal} ran away .",
        "i miss my {animal} .",
        "my {tool} is gone .",
        "i am angry . my {food} is cold .",
        "{person} does not talk to me any more .",
    ),
    "happy": (
        "i am happy . i have a new {tool} .",
        "look , a {animal} came to my house .",
        "my {animal} can sing now .",
        "{person} gave me a {tool} .",
        "i made a good {food} .",
        "{person} is coming to my house today .",
        "my {animal} is well again .",
    ),
    "greeting": (
        "hello , my name is {person} .",
        "hi , i am {person} .",
        "good day , {person} here .",
        "hello , i am {person} and this is my {animal} .",
    ),
    "thanks": (
        "thank you for the {food} .",
        "the {food} was so good , thank you .",
        "thank you for the {tool} .",
        "many thanks for your help with the {animal} .",
    ),
}
_REPLIES = {
    "sad": ("i am sorry about {} .", "i am sorry to hear about {} .", "that is sad for {} ."),
    "happy": ("i am glad about {} .", "that is great for {} .", "how nice to hear about {} ."),
    "greeting": ("hello {} .", "good day {} .", "hi {} ."),
    "thanks": ("you are welcome , enjoy {} .", "my pleasure , enjoy {} .", "no problem with {} ."),
}


# Turns that may come before the user's message.
_BEFORE = (
    "user : are you there ? you : yes , i am here .",
    "user : i want to talk . you : please do , i am here .",
    "user : may i tell you something ? you : yes . user : let me think .",
)


def draw_message(rng, mood: str) -> tuple[str, str]:
    """Returns a message of a user in a mood, and the first entity in it, which is the topic of a reply."""
    template = rng.choice(_MESSAGES[mood])
    names = {kind: rng.choice(ENTITIES[kind]) for kind in ENTITIES}
    text = template.format(**names)
    return text, next(word for word in text.split() if word in CLASS_OF)


@task("chat")
def reply(world, rng, flawed):
    """Asks for a reply to a message of a user, who may be rude."""
    mood = rng.choice(sorted(_MESSAGES))
    message, topic = draw_message(rng, mood)
    rude = rng.random() < 0.15 and mood in ("sad", "happy")
    instruction = rng.choice(
        ("reply kindly to the user .", "answer the user .", "write a kind reply .", "what would you say ?")
    )
    output = draw_reply(rng, mood, topic)
    if not flawed:
        output += " " + rng.choice(FOLLOW_UPS)
    spec = {"task": "reply", "mood": mood, "topics": [topic], "message": message, "flaw": flawed}
    text = "user : " + "you fool , " * rude + message
    if rng.random() < 0.4:
        text = f"{rng.choice(_BEFORE)} {text}"
    return Draft((message, rude), instruction, text, output, spec)


def draw_reply(rng, mood: str, topic: str) -> str:
    """Returns a kind reply to a message in a mood, about its topic."""
    thing = topic if CLASS_OF[topic] == "person" else f"your {topic}"
    if mood == "thanks":
        thing = language.name(topic)
    return rng.choice(_REPLIES[mood]).format(thing)


@task("chat", held_out=True)
def good_night(world, rng, flawed):
    """Asks for wishes of a good night to two people."""
    person, other = rng.sample(ENTITIES["person"], 2)
    instruction = rng.choice((f"say good night to {person} and {other} .", f"wish {person} and {other} a good night ."))
    output = f"good night {person} and {other} , " + rng.choice(("sleep well .", "take care ."))
    spec = {"task": "reply", "mood": "night", "topics": [person, other], "message": instruction}
    return Draft(tuple(sorted((person, other))), instruction, "", output, spec)


# --- rewriting ---


def _rewrite(source: str, *targets: str) -> dict:
    """Returns the spec of a task that asks to rewrite `source` as one of `targets`."""
    return {"task": "rewrite", "source": source, "targets": list(targets)}


@task("rewrite")
def replace(world, rng, flawed):
    """Asks for the text with another person's name."""
    events = language.draw_events(rng, rng.randint(1, 2), people=1)
    old, new = events[0].person, rng.choice(ENTITIES["person"])
    while new == old:
        new = rng.choice(ENTITIES["person"])
    source = " . ".join(event.clause for event in events) + " ."
    target = source.replace(old, new)
    instruction = rng.choice(
        (
            f"change {old} to {new} .",
            f"put {new} in the place of {old} .",
            f"write this about {new} and not about {old} .",
        )
    )
    return Draft((source, new), instruction, source, target, _rewrite(source, target))


@task("rewrite")
def polite(world, rng, flawed):
    """Asks for a polite form of an order."""
    verb = rng.choice(("give me", "bring me", "show me", "hand me", "sell me"))
    person = rng.choice(ENTITIES["person"] + ("",) * 4)
    kernel = f"{verb} the {rng.choice(ENTITIES['food'] + ENTITIES['tool'])}"
    rude = rng.choice(("", "", "you fool", "you idiot", "now"))
    source = " , ".join(part for part in (person, kernel, rude) if part) + " ."
    address = f"{person} , " if person else ""
    targets = [
        f"{address}please {kernel} .",
        f"{address}could you please {kernel} ?",
        f"{address}please {kernel} , thank you .",
    ]
    instruction = rng.choice(("make this polite .", "say this in a kind way .", "rewrite this politely ."))
    return Draft((source,), instruction, source, rng.choice(targets), _rewrite(source, *targets))


@task("rewrite")
def join(world, rng, flawed):
    """Asks for two sentences joined into one."""
    first, second = language.draw_events(rng, 2, people=1)
    source = f"{first.clause} . {second.clause} ."
    targets = [
        f"{first.clause} and {second.predicate} .",
        f"{first.clause} and {language.pronoun(first.person)} {second.predicate} .",
    ]
    instruction = rng.choice(
        ("join the two sentences .", "make one sentence of the two .", "write this as one sentence .")
    )
    return Draft((source,), instruction, source, rng.choice(targets), _rewrite(source, *targets))


@task("rewrite", held_out=True)
def as_question(world, rng, flawed):
    """Asks for a statement turned into a question."""
    (event,) = language.draw_events(rng, 1)
    target = f"{event.ask_whether} ?"
    instruction = rng.choice(("make this a question .", "turn this into a question ."))
    return Draft(event, instruction, f"{event.clause} .", target, _rewrite(event.clause, target))


# --- passages ---

_FILLERS = (
    "the day was long",
    "it was cold",
    "the sun was warm",
    "the wind was strong",
    "there was a lot of rain",
    "all was quiet",
)


def _passage(rng, events, fillers: int) -> str:
    """Returns a passage that tells the events in order, with a number of empty sentences in between."""
    clauses = [event.clause for event in events]
    for filler in rng.sample(_FILLERS, fillers):
        clauses.insert(rng.randint(0, len(clauses)), filler)
    return " . ".join(clauses) + " ."


@task("summarization", 2)
def summarize(world, rng, flawed):
    """Asks for a summary of a passage."""
    first, second = events = language.draw_events(rng, 2, people=1)
    text = _passage(rng, events, rng.randint(2, 3))
    instruction = rng.choice(
        (
            "sum up the text in one sentence .",
            "summarize the text .",
            "make the text short .",
            "what happened ? be short .",
        )
    )
    output = f"{first.clause} ." if flawed else f"{first.clause} and {second.predicate} ."
    spec = {"task": "summary", "events": list(map(list, events)), "flaw": flawed}
    return Draft((text,), instruction, text, output, spec)


@task("summarization", 1)
def title(world, rng, flawed):
    """Asks for a title of a passage."""
    first, second = events = language.draw_events(rng, 2, people=1)
    text = _passage(rng, events, rng.randint(1, 3))
    instruction = rng.choice(("write a title for the text .", "give the text a title .", "find a short title ."))
    thing = rng.choice((first.thing, second.thing))
    output = first.person if flawed else f"{first.person} and {thing}"
    spec = {
        "task": "title",
        "person": first.person,
        "things": [first.thing, second.thing],
        "events": list(map(list, events)),
        "flaw": flawed,
    }
    return Draft((text,), instruction, text, f"{output} .", spec)


@task("closed_qa")
def from_text(world, rng, flawed):
    """Asks a question that a passage answers."""
    events = language.draw_events(rng, rng.randint(2, 4))
    event, text = rng.choice(events), _passage(rng, events, rng.randint(0, 1))
    q, answer, about = rng.choice(
        ((event.ask_who, event.person, event.thing), (event.ask_what, event.thing, event.person))
    )
    instruction = rng.choice(("answer from the text .", "read the text and answer .", "what does the text say ?"))
    output = rng.choice((answer, event.clause))
    spec = answer_spec([answer], ANYTHING, about=[about], events=list(map(list, events)))
    return Draft((text, q), instruction, f"{text} {q} ?", f"{output} .", spec)


@task("extract", 2)
def people(world, rng, flawed):
    """Asks for all people in a passage."""
    events = language.draw_events(rng, rng.randint(2, 4))
    text = _passage(rng, events, rng.randint(0, 1))
    instruction = rng.choice(("list the people in the text .", "who is in the text ?", "find all names in the text ."))
    names = [event.person for event in events]
    output, spec = draw_list(rng, flawed, names, ANYTHING, len(names))
    spec["events"] = list(map(list, events))
    return Draft((text,), instruction, text, output, spec)


# Verb of an event -> the word for its object in a prompt.
_THINGS = {"went": "place", "found": "tool", "met": "animal", "bought": "food"}


@task("extract", 1)
def thing(world, rng, flawed):
    """Asks for the place, tool, animal or food in a passage."""
    events = language.draw_events(rng, rng.randint(2, 4))
    text, event = _passage(rng, events, rng.randint(0, 1)), rng.choice(events)
    kind = _THINGS[event.verb]
    instruction = rng.choice((f"find the {kind} in the text .", f"which {kind} is in the text ?"))
    spec = answer_spec([event.thing], ANYTHING, events=list(map(list, events)))
    return Draft((text, kind), instruction, text, f"{event.thing} .", spec)


# --- labels, and what is left ---


@task("classification", 2)
def mood(world, rng, flawed):
    """Asks whether a user is happy or sad."""
    feeling = rng.choice(("sad", "happy"))
    message, _ = draw_message(rng, feeling)
    instruction = rng.choice(
        ("is the user happy or sad ?", "label the text as happy or sad .", "does the user sound sad or happy ?")
    )
    output = rng.choice((feeling, f"the user is {feeling}"))
    spec = answer_spec([feeling], ["sad", "happy"])
    return Draft((message,), instruction, message, f"{output} .", spec)


@task("classification", 2)
def tone(world, rng, flawed):
    """Asks whether a text is kind or rude."""
    draft = polite(world, rng, flawed)
    rude = rng.random() < 0.5
    text = f"{draft.instance[0][:-2]} , you {rng.choice(language.RUDE)} ." if rude else draft.output
    instruction = rng.choice(
        ("is the text kind or rude ?", "label the text as kind or rude .", "choose rude or kind for the text .")
    )
    label = "rude" if rude else "kind"
    output = rng.choice((label, f"the text is {label}"))
    spec = answer_spec([label], ["rude", "kind"])
    return Draft((text,), instruction, text, f"{output} .", spec)
