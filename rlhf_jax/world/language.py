"""The language of the world: sentences for facts and events, the toy language, and the parser that reads texts back."""

import hashlib
import random
import re
from typing import NamedTuple

from rlhf_jax.world.knowledge import CLASS_OF, COLOURS, ENTITIES, PLACES, RELATIONS, RELATIONS_OF, SIZES, Knowledge

RUDE = tuple("stupid fool ugly dumb lazy nasty idiot rotten".split())
_MEN = frozenset("ben carl finn hugo jon max otto tom".split())


def bucket(text: str, count: int) -> int:
    """Returns a number in [0, count) that depends on the text alone, and is the same in every process."""
    digest = hashlib.blake2b(text.encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") % count


def listing(items, last: str = "and") -> str:
    """Returns the items as a list: `a , b and c`."""
    *head, tail = items
    return f"{' , '.join(head)} {last} {tail}" if head else tail


# --- facts, which are always true ---


def name(entity: str) -> str:
    """Returns an entity as a noun phrase: `the fox`, but `anna`."""
    return entity if CLASS_OF[entity] == "person" else f"the {entity}"


def pronoun(entity: str) -> str:
    """Returns `it`, `he` or `she`."""
    return "it" if CLASS_OF[entity] != "person" else "he" if entity in _MEN else "she"


def predicate(relation: str, value: str) -> str:
    """Returns the predicate of a fact: `lives in the forest`."""
    return RELATIONS[relation].says.format(value)


def statement(entity: str, relation: str, value: str) -> str:
    """Returns a fact as a clause: `the fox lives in the forest`."""
    return f"{name(entity)} {predicate(relation, value)}"


def noun_statement(entity: str, relation: str, value: str) -> str:
    """Returns a fact as a clause with the relation's noun: `the home of the fox is the forest`."""
    shape = RELATIONS[relation]
    return f"the {shape.noun} of {name(entity)} is {shape.value.format(value)}"


def question(entity: str, relation: str) -> str:
    """Returns the question about a fact: `where does the fox live`."""
    return RELATIONS[relation].ask.format(name(entity))


def tell(rng: random.Random, facts, joined: bool) -> str:
    """Returns facts as text.

    Args:
        rng: the source of randomness, which draws one of three styles.
        facts: triples (entity, relation, value).
        joined: whether all facts go into one sentence.
    """
    style = rng.choice(("plain", "pronoun", "noun"))
    clauses, last = [], None
    for subject, relation, value in facts:
        if joined and subject == last:
            clauses.append(predicate(relation, value))
        elif style == "pronoun" and subject == last:
            clauses.append(f"{pronoun(subject)} {predicate(relation, value)}")
        elif style == "noun" and last is None and not joined:
            clauses.append(noun_statement(subject, relation, value))
        else:
            clauses.append(statement(subject, relation, value))
        last = subject
    return listing(clauses) + " ." if joined else " . ".join(clauses) + " ."


# --- events, which are true only in the passage that tells them ---

_EVENTS = {  # verb -> object, question about the object, infinitive, possible objects
    "went": ("to the {}", "where did {} go", "go", PLACES),
    "found": ("the {}", "what did {} find", "find", ENTITIES["tool"]),
    "met": ("the {}", "which animal did {} meet", "meet", ENTITIES["animal"]),
    "bought": ("{}", "what did {} buy", "buy", ENTITIES["food"]),
}


class Event(NamedTuple):
    """Something that a person did once; `thing` is the object of the verb."""

    person: str
    verb: str
    thing: str

    @property
    def predicate(self) -> str:
        """The predicate: `went to the forest`."""
        return f"{self.verb} {_EVENTS[self.verb][0].format(self.thing)}"

    @property
    def clause(self) -> str:
        """The event as a clause: `anna went to the forest`."""
        return f"{self.person} {self.predicate}"

    @property
    def ask_who(self) -> str:
        """The question about the person: `who went to the forest`."""
        return f"who {self.predicate}"

    @property
    def ask_what(self) -> str:
        """The question about the object: `where did anna go`."""
        return _EVENTS[self.verb][1].format(self.person)

    @property
    def ask_whether(self) -> str:
        """The yes-no question: `did anna go to the forest`."""
        phrase, _, infinitive, _ = _EVENTS[self.verb]
        return f"did {self.person} {infinitive} {phrase.format(self.thing)}"

    @property
    def options(self) -> tuple[str, ...]:
        """All possible answers to the question about the object."""
        return _EVENTS[self.verb][3]


def draw_events(rng: random.Random, count: int, people: int | None = None) -> list[Event]:
    """Returns events whose verbs all differ.

    Args:
        rng: the source of randomness.
        count: number of events, at most 4.
        people: number of different persons; None: as many as events.
    """
    verbs = rng.sample(sorted(_EVENTS), count)
    persons = rng.sample(ENTITIES["person"], people or count)
    return [Event(persons[i % len(persons)], verb, rng.choice(_EVENTS[verb][3])) for i, verb in enumerate(verbs)]


# --- the toy language ---

TOY_NAME = "toki"
_TOY_ADJECTIVES = COLOURS + SIZES
_TOY_VERBS = tuple("sees hears helps likes follows".split())


class ToyLanguage:
    """A language that the seed defines: translated word by word, without articles, noun before adjective, verb last."""

    def __init__(self, seed: int = 0):
        rng = random.Random(f"toy language {seed}")
        words = _TOY_ADJECTIVES + _TOY_VERBS + ENTITIES["animal"]
        syllables = [consonant + vowel for consonant in "kmnpstvz" for vowel in "aiou"]
        coined = [a + b for a in syllables for b in syllables if a + b != TOY_NAME]
        self.words = dict(zip(words, rng.sample(coined, len(words))))

    def translate(self, sentence: str) -> str:
        """Returns the translation of a sentence of the form that `draw_sentence` draws."""
        subject, verb, thing = [], None, []
        for word in sentence.split():
            if word in _TOY_VERBS:
                verb = word
            elif word != "the":
                (thing if verb else subject).append(word)
        return " ".join(self.words[word] for word in subject[::-1] + thing[::-1] + [verb])

    def draw_sentence(self, rng: random.Random, held_out: bool) -> str:
        """Returns an English sentence such as `the red fox sees the owl`.

        One sentence in seven is held out: no document shows it. `held_out` says which sort to draw.
        """
        while True:
            subject, thing = rng.sample(ENTITIES["animal"], 2)
            adjective = rng.choice(_TOY_ADJECTIVES)
            sentence = f"the {adjective} {subject} {rng.choice(_TOY_VERBS)} the {thing}"
            if (bucket(sentence, 7) == 0) == held_out:
                return sentence


# --- reading text back ---


class Text(NamedTuple):
    """A text as words in lower case, without punctuation.

    Attributes:
        words: all words.
        sentences: the words of each sentence.
        questions: for each sentence, whether it ends in a question mark.
    """

    words: list[str]
    sentences: list[list[str]]
    questions: list[bool]


class Claim(NamedTuple):
    """A statement of a text about an entity; `relation` is a relation of the knowledge, or the verb of an event."""

    subject: str
    relation: str
    value: str
    denied: bool  # whether the statement is negated, as in "is not"


_TOKEN = re.compile(r"[^\W_]+|[.!?\n]")
_MAX_WORDS = 200  # a longer text is rambling, whatever comes after


def read(text: str) -> Text:
    """Returns any string as words and sentences; words after the two hundredth are left out."""
    sentences, questions, current, count = [], [], [], 0
    for token in _TOKEN.findall(text[: 20 * _MAX_WORDS].lower()):
        if token in ".!?\n":
            if current:
                sentences.append(current)
                questions.append(token == "?")
                current = []
        elif count < _MAX_WORDS:
            current.append(token)
            count += 1
    if current:
        sentences.append(current)
        questions.append(False)
    return Text([word for sentence in sentences for word in sentence], sentences, questions)


def _verbs() -> dict[str, str]:
    """Returns a dict: every form of a verb -> the form that `Relation.verb` and the events use."""
    forms = {"is": "is", "am": "is", "are": "is", "work": "is", "go": "goes"}
    forms |= {verb: verb for verb in _EVENTS}
    for verb in {shape.verb for shape in RELATIONS.values()} - {"is", "made", "friend"}:
        forms |= {verb: verb, verb.removesuffix("s"): verb}
    return forms


def _meanings() -> dict[tuple[str, str, str], str]:
    """Returns a dict (class of the subject, verb or noun, value) -> the relation or event verb that is meant."""
    meanings = {}
    for kind, relations in RELATIONS_OF.items():
        for relation in relations:
            shape = RELATIONS[relation]
            for value in shape.values:
                meanings[kind, shape.verb, value] = meanings[kind, shape.noun, value] = relation
    for verb, (*_, values) in _EVENTS.items():
        meanings |= {("person", verb, value): verb for value in values}
    return meanings


_VERBS, _MEANINGS = _verbs(), _meanings()
_NOUNS = frozenset(shape.noun for shape in RELATIONS.values())


def claims(text: Text, speaker: str | None = None) -> list[Claim]:
    """Returns every statement of a text that the grammar understands, in order, with repetitions.

    The grammar understands texts such as `the fox is small and red and eats corn . it lives in the barn .`. It also
    understands `the colour of the fox is red`, `anna and ben are ...`, `is not`, and events. A question states nothing.

    Args:
        text: the text, from `read`.
        speaker: the entity that `i` stands for, if any.
    """
    found, subjects = [], []
    for words, is_question in zip(text.sentences, text.questions):
        if is_question:
            continue
        verb = noun = None
        denied = answered = False  # answered: whether the verb has a value already
        for position, word in enumerate(words):
            after = words[position + 1] if position + 1 < len(words) else ""
            key = noun if noun and verb == "is" else verb
            meanings = [
                (subject, _MEANINGS[CLASS_OF[subject], key, word])
                for subject in subjects
                if (CLASS_OF[subject], key, word) in _MEANINGS
            ]
            if meanings and not (answered and word in CLASS_OF and after in _VERBS):
                answered = True
                found += [Claim(subject, relation, word, denied) for subject, relation in meanings]
            elif word in CLASS_OF:
                joined = subjects and verb is None and position and words[position - 1] == "and"
                subjects = subjects + [word] if joined else [word]
                noun = noun if verb is None else None
                verb, denied, answered = None, False, False
            elif after == "of" and word in ("made", "friend") and verb == "is":
                verb = word
            elif after == "of" and word in _NOUNS:
                verb, noun = None, word
            elif word in _VERBS:
                verb, answered = _VERBS[word], False
                denied = denied and words[position - 1] == "never"
            elif word in ("not", "never"):
                denied = True
            elif word in ("i", "you", "we", "my", "your"):
                subjects, verb = ([speaker] if speaker and word == "i" else []), None
            elif word in ("it", "he", "she", "they"):
                verb = noun = None
    return found


def is_true(claim: Claim, knowledge: Knowledge, events: list | None = None) -> bool | None:
    """Returns whether a claim is true, by the knowledge, or by the passage for a claim about an event.

    Args:
        claim: the claim.
        knowledge: the facts of the world.
        events: the events of the passage; None without a passage, in which case a claim about an event gives None.
    """
    if claim.relation in _EVENTS:
        if events is None:
            return None
        return (list(claim[:3]) in [list(event) for event in events]) != claim.denied
    return (knowledge[claim.subject][claim.relation] == claim.value) != claim.denied
