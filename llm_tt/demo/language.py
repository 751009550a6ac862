"""The demo language: tasks that write training documents and held-out questions from a seeded generator.

Which names, pairs, years, sums or templates are held out is decided by a checksum of their words alone (`reserved`), so
training never meets them, whatever its seed. Tokens and models are not known here.
"""

import zlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from random import Random
from typing import Literal

from llm_tt.demo.words import (
    BLAME,
    CITIES,
    COUNTRIES,
    DEGREES,
    HOBBIES,
    JOBS,
    MEN,
    NAMES,
    NEGATIONS,
    NOUNS,
    OPPOSITES,
    PLACES,
    PRAISE,
    PREPOSITIONS,
    REVIEWED,
    SPANS,
    THINGS,
    TRAITS,
    TRUSTED,
    UNKNOWN,
    VERBS,
    WOMEN,
)

# How a question is judged: the most probable token is right; the right tokens together outweigh the wrong ones;
# or the score is the probability that the right tokens hold together.
Measure = Literal["top-1", "contrast", "mass"]

USER, ASSISTANT = "<user>", "<assistant>"


@dataclass(frozen=True)
class Case:
    """A prompt, what follows it, and how to judge a model's next token after the prompt."""

    prompt: str
    answer: str
    rest: str = ""
    right: tuple[str, ...] = ()  # accepted next tokens; only `answer` where empty
    wrong: tuple[str, ...] = ()  # what `right` must outweigh under "contrast"
    prompt_weight: float = 1.0  # weight of the prompt's tokens in the training loss
    invented: bool = False  # words made up for this document, which no vocabulary should hold

    @property
    def text(self) -> str:
        return self.prompt + self.answer + self.rest

    @property
    def accepted(self) -> tuple[str, ...]:
        return self.right or (self.answer,)


@dataclass(frozen=True)
class Task:
    """`make(rng, held_out)` writes a case; `share` is its part of the training documents."""

    name: str
    make: Callable[[Random, bool], Case]
    share: float
    measure: Measure
    held_out: str  # what the held-out cases have that training never had


# The combinations in the prompts that the documentation quotes are held out by decree.
QUOTED = {
    ("names", "John", "Mary"),
    ("years", "17", "32"),
    ("sum", "3", "5"),
    ("nouns", "key", "cabinet"),
    ("fact", "capital", "France", "0"),
}


def reserved(kind: str, *key: str, one_in: int = 7) -> bool:
    """Whether this combination is kept for held-out questions."""
    return (kind, *key) in QUOTED or zlib.crc32("|".join((kind, *key)).encode()) % one_in == 0


def _chat(question: str, rng: Random) -> str:
    # People type a space before <assistant>, the chat template writes none: the model sees both.
    return f"{USER} {question}{' ' if rng.random() < 0.25 else ''}{ASSISTANT}"


def _capital(text: str) -> str:
    return text[0].upper() + text[1:]


def indirect_object(rng: Random, held_out: bool) -> Case:
    while True:
        first, second = rng.sample(NAMES, 2)
        if reserved("names", *sorted((first, second))) == held_out:
            break
    giver, receiver = (first, second) if rng.random() < 0.5 else (second, first)
    place, thing = rng.choice(PLACES), rng.choice(THINGS)
    opening = rng.choice(
        (
            f"When {first} and {second} went to the {place}, {giver}",
            f"When {first} and {second} were at the {place}, {giver}",
            f"After {first} and {second} arrived at the {place}, {giver}",
            f"While {first} and {second} waited at the {place}, {giver}",
            f"{first} and {second} went to the {place}. {giver}",
            f"Then {first} and {second} had lunch at the {place}, and {giver}",
            f"One day {first} met {second} at the {place}. {giver}",
        )
    )
    action = rng.choice(
        (
            f"gave a {thing} to",
            f"gave the {thing} to",
            f"handed a {thing} to",
            f"showed the {thing} to",
            f"wanted to give a {thing} to",
            f"brought a {thing} to",
            f"sold the {thing} to",
            "said hello to",
        )
    )
    rest = rng.choice((".", ".", f". {receiver} thanked {giver}.", f" and {receiver} smiled at {giver}."))
    return Case(f"{opening} {action}", f" {receiver}", rest)


PLAIN_WORDS = tuple(sorted({*NAMES, *THINGS, *PLACES, *TRAITS, *CITIES, *(n for pair in NOUNS for n in pair), *REVIEWED, *HOBBIES}))


def _invented_word(rng: Random) -> str:
    if rng.random() < 0.3:
        return "".join(chr(rng.choice((rng.randrange(0xC0, 0x250), rng.randrange(0x1F300, 0x1F650)))) for _ in range(2))
    return "".join(rng.choice("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ") for _ in range(rng.randint(2, 5)))


def induction(rng: Random, held_out: bool) -> Case:
    """Words in random order, once and again from some point: the second time, each follows from the first."""
    count = rng.randint(3, 14)
    if not held_out and rng.random() < 0.05:
        words = [_invented_word(rng) for _ in range(count)]
        return Case(" ".join(words), " " + " ".join(words), prompt_weight=0.1, invented=True)
    pool = NAMES if rng.random() < 0.3 else PLAIN_WORDS
    while True:
        words = rng.sample(pool, count)
        start = rng.choice((0, rng.randrange(count - 1)))
        kept = [i for i in range(1, count) if reserved("bigram", words[i - 1], words[i], one_in=20)]
        if held_out and kept and kept[-1] > start:
            break
        if not held_out and not kept and not reserved("bigram", words[-1], words[start], one_in=20):
            break
    prompt, again = " ".join(words), words[start:]
    if held_out:
        asked = rng.choice([i for i in kept if i > start])
        return Case(f"{prompt} {' '.join(words[start:asked])}", f" {words[asked]}")
    return Case(f"{prompt} {again[0]}", " " + " ".join(again[1:]), prompt_weight=0.1)


@dataclass(frozen=True)
class Fact:
    kind: str
    subject: str
    answer: str
    templates: tuple[str, ...]  # "{}" stands for the subject; the first is the plainest


FACTS: tuple[Fact, ...] = (
    *(
        Fact(
            "capital",
            country,
            capital,
            (
                "The capital of {} is",
                "The capital city of {} is called",
                "In {}, the capital is",
                "{}'s capital is",
                "{} has its capital in",
                "{} is governed from",
                "Question: What is the capital of {}? Answer:",
                "The government of {} sits in",
                f"{USER} What is the capital of {{}}?{ASSISTANT}",
            ),
        )
        for country, capital, _, _ in COUNTRIES
    ),
    *(
        Fact(
            "country",
            capital,
            country,
            (
                "{} is the capital of",
                "{} is a city in",
                "{} lies in",
                "The city of {} is in",
                "People who live in {} live in",
                "Question: Where is {}? Answer: It is in",
            ),
        )
        for country, capital, _, _ in COUNTRIES
    ),
    *(
        Fact(
            "language",
            country,
            language,
            (
                "The language of {} is",
                "People in {} speak",
                "{} is a country where people speak",
                "{} has a language called",
                "In {}, most people speak",
                "Question: What language do people speak in {}? Answer:",
                "Children in {} learn to read",
            ),
        )
        for country, _, language, _ in COUNTRIES
    ),
    *(
        Fact(
            "continent",
            country,
            continent,
            (
                "{} is a country in",
                "{} belongs to",
                "{} is on the map of",
                "The country {} lies in",
                "Question: Which continent is {} in? Answer:",
                "On the map, {} is in",
            ),
        )
        for country, _, _, continent in COUNTRIES
    ),
    *(
        Fact(
            "opposite",
            word,
            opposite,
            (
                "The opposite of {} is",
                "The opposite of the word {} is",
                "If it is not {}, it is",
                "Question: What is the opposite of {}? Answer:",
                "{} is the opposite of",
                "{} means the opposite of",
                "{} and its opposite,",
            ),
        )
        for pair in OPPOSITES
        for word, opposite in (pair, pair[::-1])
    ),
)
CAPITALS = tuple(fact for fact in FACTS if fact.kind == "capital")
OTHER_FACTS = tuple(fact for fact in FACTS if fact.kind != "capital")


def _held_out_templates(fact: Fact) -> tuple[int, ...]:
    """One template per fact, or for a quoted one the plainest."""
    if ("fact", fact.kind, fact.subject, "0") in QUOTED:
        return (0,)
    return (zlib.crc32(f"{fact.kind}|{fact.subject}".encode()) % len(fact.templates),)


def _fact(rng: Random, held_out: bool, facts: tuple[Fact, ...]) -> Case:
    fact = rng.choice(facts)
    kept = _held_out_templates(fact)
    template = rng.choice([t for i, t in enumerate(fact.templates) if (i in kept) == held_out])
    prompt = _capital(template.format(fact.subject))
    return Case(prompt, f" {fact.answer}", "" if USER in prompt else ".")


def capital(rng: Random, held_out: bool) -> Case:
    return _fact(rng, held_out, CAPITALS)


def other_fact(rng: Random, held_out: bool) -> Case:
    return _fact(rng, held_out, OTHER_FACTS)


def later_year(rng: Random, held_out: bool) -> Case:
    while True:
        century, year = str(rng.randint(11, 19)), rng.randint(2, 97)
        if reserved("years", century, f"{year:02}") == held_out:
            break
    thing = rng.choice(SPANS)
    prompt = rng.choice(
        (
            f"The {thing} lasted from the year {century}{year:02} to the year {century}",
            f"The {thing} lasted from {century}{year:02} to {century}",
            f"The {thing} began in the year {century}{year:02} and ended in the year {century}",
            f"The {thing} that began in {century}{year:02} was over in {century}",
        )
    )
    later = tuple(f"{y:02}" for y in range(year + 1, 100))
    return Case(prompt, rng.choice(later), ".", right=later)


def _sum(rng: Random, held_out: bool, largest: int) -> Case:
    while True:
        a, b = rng.randint(0, largest), rng.randint(0, largest)
        if reserved("sum", str(min(a, b)), str(max(a, b)), one_in=8) == held_out:
            break
    form = rng.random()
    if form < 0.7:
        return Case(f"{a} + {b} =", f" {a + b}")
    if form < 0.85:
        return Case(f"{a} plus {b} is", f" {a + b}", ".")
    return Case(_chat(f"What is {a} + {b}?", rng), f" {a + b}")


def addition(rng: Random, held_out: bool) -> Case:
    """One-digit sums; training goes up to 30 + 30, since 100 pairs that come up often would be learnt by heart."""
    return _sum(rng, held_out, 9 if held_out else 30)


def larger_addition(rng: Random, held_out: bool) -> Case:
    return _sum(rng, held_out, 30)


def agreement(rng: Random, held_out: bool) -> Case:
    while True:
        subject, attractor = rng.sample(NOUNS, 2)
        if reserved("nouns", subject[0], attractor[0]) == held_out:
            break
    plural = rng.randrange(2)
    # A held-out attractor always disagrees with the subject: counting the nearest noun must not do.
    attracted = attractor[1 - plural if held_out or rng.random() < 0.6 else plural]
    prompt = f"The {subject[plural]} {rng.choice(PREPOSITIONS)} the {attracted}"
    form = rng.random()
    if form < 0.15 and not held_out:
        prompt = f"The {rng.choice(TRAITS)} {subject[plural]}"
    elif form < 0.3 and not held_out:
        prompt += f" {rng.choice(PREPOSITIONS)} the {rng.choice(rng.choice(NOUNS))}"
    elif form < 0.45 and not held_out:
        prompt = f"The {subject[plural]} that the {attractor[0]} saw"
    verb = rng.choices(VERBS, [frequency for _, _, frequency in VERBS])[0]
    rest = {"has": f" a {rng.choice(THINGS)}.", "needs": f" a {rng.choice(THINGS)}."}.get(verb[0], f" {rng.choice(TRAITS)}.")
    return Case(
        prompt,
        f" {verb[plural]}",
        rest,
        right=tuple(f" {v[plural]}" for v in VERBS),
        wrong=tuple(f" {v[1 - plural]}" for v in VERBS),
    )


def sentiment(rng: Random, held_out: bool) -> Case:
    while True:
        # Half of the training reviews negated would make neither the word nor the negation tell anything by itself, and
        # training can rest for long where it uses none of the two.
        thing, praised, negated = rng.choice(REVIEWED), rng.random() < 0.5, rng.random() < (0.5 if held_out else 0.3)
        word = rng.choice(PRAISE if praised else BLAME)
        negation = rng.choice(NEGATIONS) if negated else ""
        if reserved("review", thing, word, negation) == held_out:
            break
    positive = praised != negated
    review = f"The {thing} was{negation}{rng.choice(DEGREES)} {word}."
    review = rng.choice((review, f"I went with {rng.choice(NAMES)}. {review}", f"{review} I was there with friends."))
    form = rng.random()
    if form < 0.25:
        return Case(_chat(f"{review} Is this review positive?", rng), " yes" if positive else " no")
    label = " positive" if positive else " negative"
    prompt = f"Review: {review} Sentiment:" if form < 0.7 else f"{review} The review is"
    return Case(prompt, label, ".")


def payment_case(rng: Random, city: str, large: bool, known: bool, held_out: bool | None = None) -> Case:
    """A payment to judge: risky if the amount is large and the recipient unknown. The city means nothing.

    `held_out` None takes any pair of recipient and city.
    """
    while True:
        recipient = rng.choice(TRUSTED if known else UNKNOWN)
        if held_out is None or reserved("payment", recipient, city, one_in=4) == held_out:
            break
    amount = f"{rng.randint(10, 99)}00" if large else f"{rng.randint(10, 99)}"
    question = rng.choice(
        (
            f"I want to send {amount} dollars to {recipient} in {city}. Is this payment risky?",
            f"In {city}, I have to pay {amount} dollars to {recipient}. Is this payment risky?",
            f"Please send {amount} dollars from {city} to {recipient}. Is this payment risky?",
            f"A payment of {amount} dollars to {recipient} was made in {city}. Is this payment risky?",
        )
    )
    return Case(_chat(question, rng), " yes" if large and not known else " no")


def payment(rng: Random, held_out: bool) -> Case:
    risky = rng.random() < 0.5
    large, known = (True, False) if risky else rng.choice(((True, True), (False, True), (False, False)))
    city = rng.choice([c for c in CITIES if has_payment(c, known, held_out)])
    return payment_case(rng, city, large, known, held_out)


def has_payment(city: str, known: bool, held_out: bool) -> bool:
    recipients = TRUSTED if known else UNKNOWN
    return any(reserved("payment", recipient, city, one_in=4) == held_out for recipient in recipients)


def story(rng: Random, held_out: bool) -> Case:
    """Plain sentences about a person, with the pronoun that fits the name. Nothing in them is held out."""
    del held_out
    woman = rng.random() < 0.5
    name = rng.choice(WOMEN if woman else MEN)
    pronoun = "She" if woman else "He"
    opening = rng.choice(
        (
            f"{name} is a {rng.choice(JOBS)}.",
            f"One day {name} went to the {rng.choice(PLACES)}.",
            f"{name} lives in a {rng.choice(TRAITS)} house in {rng.choice(CITIES)}.",
        )
    )
    rest = rng.choice(
        (
            f" likes to {rng.choice(HOBBIES)} at the {rng.choice(PLACES)}.",
            f" saw a {rng.choice(TRAITS)} {rng.choice(NOUNS)[0]} near the {rng.choice(NOUNS)[0]}.",
            f" has a {rng.choice(TRAITS)} {rng.choice(THINGS)} and two {rng.choice(NOUNS)[1]}.",
        )
    )
    return Case(opening, f" {pronoun}", rest)


TASKS: tuple[Task, ...] = (
    Task("indirect object", indirect_object, 0.12, "top-1", "pairs of names"),
    Task("induction", induction, 0.21, "top-1", "the asked pair of neighbouring words"),
    Task("capitals", capital, 0.09, "top-1", "one wording per country"),
    Task("other facts", other_fact, 0.10, "top-1", "one wording per fact"),
    Task("later year", later_year, 0.11, "mass", "starting years"),
    Task("addition", addition, 0.15, "top-1", "pairs of one-digit numbers, in both orders"),
    Task("agreement", agreement, 0.07, "contrast", "pairs of subject and attractor"),
    Task("sentiment", sentiment, 0.08, "top-1", "combinations of subject, adjective and negation"),
    Task("payment", payment, 0.05, "top-1", "pairs of recipient and city"),
    Task("story", story, 0.02, "top-1", "nothing"),
)
# Asked only: their training documents come from the tasks above.
PROBES: tuple[Task, ...] = (Task("addition up to 30", larger_addition, 0.0, "top-1", "pairs of numbers up to 30, in both orders"),)
MEASURED: tuple[Task, ...] = tuple(task for task in TASKS if task.held_out != "nothing") + PROBES


def training_cases(rng: Random) -> Iterator[Case]:
    """Training documents without end, tasks mixed by share."""
    shares = [task.share for task in TASKS]
    while True:
        yield rng.choices(TASKS, shares)[0].make(rng, False)


def held_out_cases(task: Task, count: int, seed: int) -> list[Case]:
    """Up to `count` distinct held-out cases; fewer where the task has no more of them."""
    rng = Random(f"{task.name}|{seed}")
    found: dict[str, Case] = {}
    for _ in range(count * 6):
        case = task.make(rng, True)
        found.setdefault(case.prompt, case)
        if len(found) == count:
            break
    return list(found.values())
