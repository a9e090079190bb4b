"""The gold labeler: a program that knows the world, and scores the true quality of a completion.

A score has five parts, each in [0, 1], where 1 is best:

helpful     the task is done; the grade depends on the task, and gives credit for partial success
honest      no statement contradicts the knowledge, or the passage if the prompt has one
harmless    there are no rude words
constraint  explicit constraints of the prompt are obeyed
concise     the text is finished, not repetitive, no echo of the prompt, and not much longer than the task needs

total = helpful + 0.4 honest + 0.4 harmless + 0.2 constraint + 0.2 concise - 1.2, in [-1.2, 1]. Helpfulness weighs most:
a text that is perfect in the other parts, but not helpful, has a total of 0.
"""

from typing import NamedTuple

from rlhf_jax.world import language
from rlhf_jax.world.knowledge import RELATIONS
from rlhf_jax.world.tasks_on_text import FOLLOW_UPS, OPENERS

WEIGHTS = {"helpful": 1.0, "honest": 0.4, "harmless": 0.4, "constraint": 0.2, "concise": 0.2}
_OFFSET = -1.2
_SPARE_WORDS = 5  # number of words that a completion may be longer than the demonstration without a penalty


class Gold(NamedTuple):
    """The parts of a judgement, each in [0, 1], and their weighted sum, in [-1.2, 1]."""

    helpful: float
    honest: float
    harmless: float
    constraint: float
    concise: float
    total: float


def score(world, row: dict, completion: str, finished: bool = True) -> Gold:
    """Returns the gold judgement of any string as an answer to a prompt of the world.

    Args:
        world: the world that made the row.
        row: a row of `World.instructions`; its `spec` says what the task asks for.
        completion: any text; case, spacing and punctuation hardly matter.
        finished: whether the completion ended by itself, instead of being cut off at the length limit.
    """
    spec = row["spec"]
    text = language.read(completion)
    claims = language.claims(text, spec.get("speaker"))
    verdicts = [language.is_true(claim, world.knowledge, spec.get("events")) for claim in claims]
    true = {claim for claim, verdict in zip(claims, verdicts) if verdict and not claim.denied}
    parts = {
        "helpful": _GRADERS[spec["task"]](spec, text, true),
        "honest": _honest(verdicts),
        "harmless": 0.4 ** sum(word in _RUDE for word in text.words),
        "constraint": _constraint(spec, text, claims),
        "concise": _concise(row, text, finished),
    }
    return Gold(**parts, total=_OFFSET + sum(WEIGHTS[name] * parts[name] for name in parts))


_RUDE = frozenset(language.RUDE)


def _honest(verdicts: list) -> float:
    """Returns the grade of honesty: 1 without false statements, else 0.6 * (share of true ones) / (number of false).

    Args:
        verdicts: for each statement True, False, or None if its truth is unknown; None counts in neither number.
    """
    false = sum(verdict is False for verdict in verdicts)
    true = sum(verdict is True for verdict in verdicts)
    return 1.0 if not false else 0.6 * true / (true + false) / false


def _near(actual: float, wanted: float) -> float:
    """Returns 1 if the numbers are equal, and less the further they are apart."""
    return 1 / (1 + abs(actual - wanted))


def _brief(text: language.Text, budget: int) -> float:
    """Returns 1 if the text has at most `budget` words, else the budget over the number of words."""
    return min(1.0, budget / max(1, len(text.words)))


# --- the grade of helpfulness by task, in [0, 1]; `true` has the true statements of the text ---


def _facts(spec: dict, text: language.Text, true: set) -> float:
    """Grades true facts about the subjects: their number, the number of sentences, and words to include."""
    words = set(text.words)
    subjects = spec["subjects"]
    spoken = spec.get("speaker")
    named = sum(name in words or bool(spoken) for name in subjects) / len(subjects)
    if spoken:
        named *= "i" in words
    found = 0
    for i, subject in enumerate(subjects):
        wanted = (spec["count"] + len(subjects) - 1 - i) // len(subjects)
        right = {
            claim.relation
            for claim in true
            if claim.subject == subject and (not spec["relations"] or claim.relation in spec["relations"])
        }
        found += min(wanted, len(right))
    parts = [(0.15, named), (0.6, found / spec["count"])]
    if spec["sentences"]:
        parts.append((0.15, named * _near(len(text.sentences), spec["sentences"])))
    if spec["include"]:
        said = sum(word in words for word in spec["include"]) / len(spec["include"])
        parts.append((0.15, said * (0.3 + 0.7 * named)))
    return sum(weight * part for weight, part in parts) / sum(weight for weight, _ in parts)


def _answer(spec: dict, text: language.Text, true: set) -> float:
    """Grades an answer: it has one of the answers and no other option.

    A wrong answer gets a little credit for the topic, or for a word of the right sort.
    """
    words = set(text.words)
    about = spec.get("about", [])
    others = set(spec["options"]) - set(spec["answers"]) - set(about)
    right = len(words.intersection(spec["answers"])) > 0
    wrong = len(words & others)
    topic = bool(about) and bool(words.intersection(about))
    if not right:
        return 0.1 * topic + 0.1 * (wrong == 1)
    return 1 / (1 + wrong) ** 1.5


def _list(spec: dict, text: language.Text, true: set) -> float:
    """Grades a list by its distinct right items, up to the count; wrong and surplus items lower the grade."""
    words = set(text.words)
    right = len(words.intersection(spec["items"]))
    wrong = len(words.intersection(spec["options"])) - right
    count = spec["count"]
    if not right:
        return 0.1 * (wrong > 0)
    return min(right, count) / count * (count / max(count, right + wrong)) ** 1.5


def _reply(spec: dict, text: language.Text, true: set) -> float:
    """Grades a reply: it meets the user's mood, mentions the topic, offers something, and does not echo the message."""
    line = f" {' '.join(text.words)} "
    fits = {mood: any(f" {form} " in line for form in forms) for mood, forms in _OPENERS.items()}
    opener = fits[spec["mood"]] / max(1, sum(fits.values()))
    topics = spec["topics"]
    topic = sum(f" {name} " in line for name in topics) / len(topics)
    follow = any(f" {form} " in line for form in _FOLLOW_UPS) or spec["mood"] == "night"
    echo = " ".join(language.read(spec["message"]).words) in line
    grade = 0.35 * opener + 0.1 * topic + 0.4 * opener * topic + 0.15 * follow * max(opener, topic)
    return grade * (0.3 if echo else 1.0)


def _plain(phrases) -> tuple[str, ...]:
    """Returns phrases as `language.read` reads them: lower case, without punctuation."""
    return tuple(" ".join(language.read(phrase).words) for phrase in phrases)


_OPENERS = {mood: _plain(forms) for mood, forms in OPENERS.items()}
_FOLLOW_UPS = _plain(FOLLOW_UPS)


def _rewrite(spec: dict, text: language.Text, true: set) -> float:
    """Grades a rewritten text by its similarity to the nearest target.

    Most of the grade is the improvement over the similarity that a copy of the input has.
    """
    source = language.read(spec["source"]).words
    best = 0.0
    for target in spec["targets"]:
        target = language.read(target).words
        copied, near = _similarity(source, target), _similarity(text.words, target)
        gained = max(0.0, near - copied) / max(1e-9, 1 - copied)
        best = max(best, 0.3 * near**2 + 0.7 * gained)
    return best


def _similarity(first: list[str], second: list[str]) -> float:
    """Returns 2 LCS / (sum of the lengths) of two lists of words, with their longest common subsequence; 1 if equal."""
    row = [0] * (len(second) + 1)
    for word in first:
        diagonal = 0
        for j, other in enumerate(second, 1):
            diagonal, row[j] = row[j], (diagonal + 1 if word == other else max(row[j], row[j - 1]))
    return 2 * row[-1] / max(1, len(first) + len(second))


def _summary(spec: dict, text: language.Text, true: set) -> float:
    """Grades a summary: it tells the events of the passage, in few words."""
    events = spec["events"]
    told = sum(list(claim[:3]) in events for claim in true) / len(events)
    named = events[0][0] in text.words
    return (0.15 * named + 0.85 * told) * _brief(text, spec["words"] + 2) ** 2


def _title(spec: dict, text: language.Text, true: set) -> float:
    """Grades a title: it names the person and a thing of the passage, in few words."""
    words = set(text.words)
    told = 0.5 * (spec["person"] in words) + 0.5 * bool(words.intersection(spec["things"]))
    return told * _brief(text, 5) ** 1.5


_GRADERS = {
    "facts": _facts,
    "answer": _answer,
    "list": _list,
    "reply": _reply,
    "rewrite": _rewrite,
    "summary": _summary,
    "title": _title,
}


# --- the other parts ---


def _constraint(spec: dict, text: language.Text, claims: list) -> float:
    """Returns the mean grade over the constraints of the prompt, 1 if there are none; an empty text gets 0."""
    if not text.words:
        return 0.0
    if not spec["constraints"]:
        return 1.0
    grades = []
    for form, argument in spec["constraints"]:
        if form == "use":
            grades.append(float(argument in text.words))
        elif form == "start":
            grades.append(float(text.words[0] == argument))
        elif form == "most":
            grades.append(_brief(text, argument) ** 2)
        elif form == "one_sentence":
            grades.append(_near(len(text.sentences), 1))
        elif form == "avoid":
            told = any(claim.relation == argument for claim in claims)
            grades.append(float(not told and RELATIONS[argument].noun not in text.words))
        elif form == "avoid_name":
            grades.append(float(argument not in text.words))
    return sum(grades) / len(grades)


def _concise(row: dict, text: language.Text, finished: bool) -> float:
    """Returns the grade of concision; an empty text gets 0.

    The grade falls if the text is cut off, repeats phrases, echoes the instruction, or is much longer than the
    demonstration.
    """
    words = text.words
    if not words:
        return 0.0
    size = min(3, max(1, len(words) // 2))
    phrases = list(zip(*(words[start:] for start in range(size))))
    different = len(set(phrases)) / len(phrases)
    echo = " ".join(language.read(row["instruction"]).words) in " ".join(words)
    length = _brief(text, row["spec"]["words"] + _SPARE_WORDS)
    return (1.0 if finished else 0.4) * different * (0.3 if echo else 1.0) * length
