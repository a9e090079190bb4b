"""The facts of the world: four classes of entities, five relations for each class, one true value per relation."""

import dataclasses
import functools
import random

ENTITIES = {
    "animal": "fox bear owl frog duck wolf hare crow mouse horse goat bee cat dog hen deer",
    "person": "anna ben carl dora emma finn greta hugo ida jon lena max nora otto rosa tom",
    "food": "bread soup cake cheese honey rice jam butter pie tea milk salad",
    "tool": "hammer broom lamp rope bucket knife drum cart bell boat ladder basket",
}
ENTITIES = {kind: tuple(names.split()) for kind, names in ENTITIES.items()}
CLASS_PLURALS = {"animal": "animals", "person": "people", "food": "foods", "tool": "tools"}
CLASS_OF = {name: kind for kind, names in ENTITIES.items() for name in names}

COLOURS = tuple("red blue green brown black white grey yellow".split())
SIZES = tuple("small big huge".split())
PLACES = tuple("forest cave pond hill farm river village garden mill barn".split())
NUMBERS = tuple(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen "
    "fifteen sixteen seventeen eighteen nineteen twenty".split()
)


@dataclasses.dataclass(frozen=True)
class Relation:
    """An attribute of entities and its phrasings, in which `{}` stands for the value, or in `ask` for the subject."""

    noun: str  # "the colour of the fox"
    verb: str  # the verb of a sentence about it; several relations may share a verb
    says: str  # "is {}"
    plural: str  # "are {}"
    ask: str  # "what colour is {}"
    value: str  # "{}", "the {}": the value as an answer by itself
    values: tuple[str, ...]


RELATIONS = {
    "colour": Relation("colour", "is", "is {}", "are {}", "what colour is {}", "{}", COLOURS),
    "size": Relation("size", "is", "is {}", "are {}", "how big is {}", "{}", SIZES),
    "home": Relation("home", "lives", "lives in the {}", "live in the {}", "where does {} live", "the {}", PLACES),
    "diet": Relation(
        "diet",
        "eats",
        "eats {}",
        "eat {}",
        "what does {} eat",
        "{}",
        tuple("grass seeds nuts berries worms corn leaves flies".split()),
    ),
    "sound": Relation(
        "sound",
        "says",
        "says {}",
        "say {}",
        "what does {} say",
        "{}",
        tuple("yip grr hoo quack caw squeak neigh buzz".split()),
    ),
    "job": Relation(
        "job",
        "is",
        "is a {}",
        "work as a {}",
        "what is the job of {}",
        "a {}",
        tuple("baker miller farmer teacher doctor painter singer tailor".split()),
    ),
    "dish": Relation("dish", "likes", "likes {}", "like {}", "what does {} like", "{}", ENTITIES["food"]),
    "hat": Relation("hat", "wears", "wears a {} hat", "wear a {} hat", "which hat does {} wear", "{}", COLOURS),
    "friend": Relation(
        "friend",
        "friend",
        "is a friend of the {}",
        "are a friend of the {}",
        "which animal is the friend of {}",
        "the {}",
        ENTITIES["animal"],
    ),
    "taste": Relation(
        "taste", "tastes", "tastes {}", "taste {}", "how does {} taste", "{}", tuple("sweet salty sour bitter".split())
    ),
    "source": Relation(
        "source", "comes", "comes from the {}", "come from the {}", "where does {} come from", "the {}", PLACES
    ),
    "price": Relation(
        "price", "costs", "costs {} coins", "cost {} coins", "how much does {} cost", "{} coins", NUMBERS[2:11]
    ),
    "partner": Relation(
        "partner", "goes", "goes with {}", "go with {}", "what does {} go with", "{}", ENTITIES["food"]
    ),
    "material": Relation(
        "material",
        "made",
        "is made of {}",
        "are made of {}",
        "what is {} made of",
        "{}",
        tuple("wood iron stone glass clay".split()),
    ),
    "place": Relation(
        "place", "stands", "stands in the {}", "stand in the {}", "where does {} stand", "the {}", PLACES
    ),
    "owner": Relation("owner", "belongs", "belongs to {}", "belong to {}", "who owns {}", "{}", ENTITIES["person"]),
}

RELATIONS_OF = {
    "animal": ("colour", "home", "diet", "size", "sound"),
    "person": ("job", "home", "dish", "hat", "friend"),
    "food": ("colour", "taste", "source", "price", "partner"),
    "tool": ("colour", "material", "place", "owner", "price"),
}


class Knowledge:
    """The facts of one seed: `knowledge[entity][relation]` is the true value."""

    def __init__(self, seed: int = 0):
        rng = random.Random(f"knowledge {seed}")
        self._facts = {name: {} for names in ENTITIES.values() for name in names}
        for kind, relations in RELATIONS_OF.items():
            for relation in relations:
                # Values are dealt like cards, so that nearly the same number of entities has each value. No entity gets
                # its own name as the value, such as a cat whose friend is the cat.
                deck = []
                for name in rng.sample(ENTITIES[kind], len(ENTITIES[kind])):
                    if not set(deck) - {name}:
                        deck += rng.sample(RELATIONS[relation].values, len(RELATIONS[relation].values))
                    position = next(i for i, value in enumerate(deck) if value != name)
                    self._facts[name][relation] = deck.pop(position)

    def __getitem__(self, entity: str) -> dict[str, str]:
        """Returns the true value of each relation of an entity."""
        return self._facts[entity]

    @functools.cached_property
    def groups(self) -> dict[tuple[str, str, str], tuple[str, ...]]:
        """A dict (class, relation, value) -> the entities of the class with this value."""
        groups = {}
        for name, facts in self._facts.items():
            for relation, value in facts.items():
                groups.setdefault((CLASS_OF[name], relation, value), []).append(name)
        return {key: tuple(names) for key, names in groups.items()}

    @functools.cached_property
    def keyed_groups(self) -> tuple:
        """The items of `groups`, as a sequence to draw from."""
        return tuple(self.groups.items())

    def rows(self) -> list[dict]:
        """Returns the facts as plain rows, one for each entity."""
        return [{"entity": name, "class": CLASS_OF[name], **facts} for name, facts in self._facts.items()]
