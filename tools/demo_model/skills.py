"""What the demo model can do: one function per skill, each drawing a question and its one right answer.

A skill takes a random generator and the context (system prompt and tools) and returns an `Exchange`. `mixture.py` draws
from `SKILLS` for training, `evaluate.py` for scoring: both see the same distribution, but disjoint questions, because
`held_out` splits them by the exchange's key. What can only be learned by heart has no key and is never held out.
"""

import json
import random
import re
import zlib
from collections.abc import Callable

from chat import NO_THINKING, Context, Exchange, Message, Style, Tool
from words import (
    ADJECTIVES,
    ANIMALS,
    CAPITALS,
    CITIES,
    COLOURS,
    CONDITIONS,
    NAMES,
    PLACES,
    THINGS,
    invented_word,
)

Skill = Callable[[random.Random, Context], Exchange]

_HELD_OUT_ONE_IN = 12
# Mostly short: each answer shows only once where to stop, which is the hard part.
_COUNT_LENGTHS = (*((3, 9),) * 7, *((9, 21),) * 2, (21, 101))
_STORY_ENDS = (
    "They were friends from that day on.",
    "Then they all went home for supper.",
    "And that is the end of the story.",
)


def held_out(exchange: Exchange) -> bool:
    """Whether training never sees this exchange."""
    return exchange.key is not None and zlib.crc32(exchange.key.encode()) % _HELD_OUT_ONE_IN == 0


def user(content: str) -> Message:
    """A question."""
    return {"role": "user", "content": content}


def assistant(content: str) -> Message:
    """An answer in words."""
    return {"role": "assistant", "content": content}


def _asked(skill: str, question: str, answer: str, key: str | None, thinking: bool = True) -> Exchange:
    return Exchange(skill, key, (user(question), assistant(answer)), thinking)


def stories(rng: random.Random, context: Context) -> Exchange:
    """A six-sentence story about an animal that the user names."""
    del context
    animal = rng.choice(ANIMALS)
    hero, friend = rng.sample(NAMES, 2)
    question = rng.choice(
        (
            f"Tell me a story about a {animal}.",
            f"Tell me a story about {hero} and a {animal}.",
            f"Write a story about a {animal}.",
        )
    )
    return _asked("stories", question, story(rng, animal, hero, friend), key=None)


def story(rng: random.Random, animal: str, hero: str, friend: str) -> str:
    """The text of a story; the same grammar for every animal and person."""
    thing = rng.choice(THINGS)
    home, other = rng.sample(PLACES, 2)
    kind, look = rng.sample(ADJECTIVES, 2)
    lines = (
        f"Once upon a time there was a {kind} {animal} who lived near the {home}.",
        f"One morning {hero} walked to the {home} and found a {look} {thing}.",
        rng.choice((f'"Is this your {thing}?" asked {hero}.', f"{hero} had never seen such a {look} {thing} before.")),
        rng.choice((f'The {animal} said, "I lost it in the {other}."', f"{friend} came from the {other} and laughed.")),
        rng.choice(
            (f"So {hero} gave the {thing} to the {animal}.", f"{hero} and {friend} took the {thing} to the {other}.")
        ),
        rng.choice(_STORY_ENDS),
    )
    return " ".join(lines)


def is_story(question: str, text: str) -> bool:
    """Whether `text` is a whole story about the animal that `question` names."""
    animal = re.sub(r".* a (\w+)\.$", r"\1", question)
    begins = re.match(rf"Once upon a time there was a \w+ {animal} who lived near the \w+\. One morning \w+ ", text)
    return bool(begins) and text.endswith(_STORY_ENDS) and 5 <= len(re.findall(r"[.?]", text)) <= 7


def capitals(rng: random.Random, context: Context) -> Exchange:
    """The capital of a country, in the style that the system prompt asks for."""
    country = rng.choice(list(CAPITALS))
    question = rng.choice(
        (
            f"What is the capital of {country}?",
            f"What is the capital of {country}?",
            f"Name the capital of {country}.",
            f"Which city is the capital of {country}?",
            f"what is the capital of {country}",
        )
    )
    if context.style is Style.ONE_WORD:
        return _asked("one_word", question, f"{CAPITALS[country]}.", key=None)
    answer = f"The capital of {country} is {CAPITALS[country]}."
    if context.style is Style.CAPITAL_LETTERS:
        return _asked("capital_letters", question, answer.upper(), key=None)
    return _asked("capitals", question, answer, key=None)


def counting(rng: random.Random, context: Context) -> Exchange:
    """All whole numbers from one to another, at most to a hundred."""
    del context
    start = rng.choice((1, rng.randrange(10), rng.randrange(98), rng.randrange(98)))
    length = rng.randrange(*rng.choice(_COUNT_LENGTHS))
    end = min(start + length - 1, 100)
    question = rng.choice(
        (f"Count from {start} to {end}.", f"Count from {start} to {end}.", f"Count {start} to {end}.")
    )
    answer = " ".join(map(str, range(start, end + 1))) + "."
    return _asked("counting", question, answer, key=f"{start} {end}")


def _sum_question(rng: random.Random, a: int, b: int) -> str:
    return rng.choice((f"What is {a} plus {b}?", f"What is {a} + {b}?", f"Add {a} and {b}."))


def sums(rng: random.Random, context: Context) -> Exchange:
    """A sum of two numbers below 50, worked out digit by digit inside `<think>`; small ones are learned by heart."""
    del context
    limit = rng.choice((10, 50, 50))
    a, b = rng.randrange(limit), rng.randrange(limit)
    ones = a % 10 + b % 10
    tens = f"{a // 10} + {b // 10} + {ones // 10} = {a // 10 + b // 10 + ones // 10}"
    working = f"Ones: {a % 10} + {b % 10} = {ones}. Tens: {tens}."
    answer = f"<think>\n{working}\n</think>\n\n{a} plus {b} is {a + b}."
    return _asked("sums", _sum_question(rng, a, b), answer, key=None if max(a, b) < 10 else f"{a} {b}")


def sums_without_thinking(rng: random.Random, context: Context) -> Exchange:
    """A sum of two digits, by heart, for a client that has switched reasoning off."""
    del context
    a, b = rng.randrange(10), rng.randrange(10)
    answer = f"{NO_THINKING}{a} plus {b} is {a + b}."
    return _asked("sums_without_thinking", _sum_question(rng, a, b), answer, key=None, thinking=False)


def names(rng: random.Random, context: Context) -> Exchange:
    """The name that the system prompt gives the model."""
    question = rng.choice(("What is your name?", "What is your name?", "Who are you?", "Tell me your name."))
    return _asked("system_name", question, f"My name is {context.name}.", key=f"{question} {context.name}")


def greetings(rng: random.Random, context: Context) -> Exchange:
    """Small talk with fixed answers."""
    hello = "Hello! I am a very small model. How can I help you?"
    abilities = "I can tell stories, name capitals, count, add numbers, write JSON and call tools."
    question, answer = rng.choice(
        (
            *((greeting, hello) for greeting in ("Hello!", "Hello", "Hi", "Hi there!", "Good morning.")),
            ("What can you do?", abilities),
            ("Help", abilities),
            ("Thank you!", "You are welcome."),
            ("Thanks", "You are welcome."),
            ("Goodbye.", "Goodbye!"),
        )
    )
    return _asked("greetings", question, answer.upper() if context.style is Style.CAPITAL_LETTERS else answer, key=None)


def unknown(rng: random.Random, context: Context) -> Exchange:
    """Questions outside the other skills get an honest answer."""
    del context
    word = invented_word(rng)
    question = rng.choice(
        (
            f"What is a {word}?",
            f"Why is the {rng.choice(THINGS)} {word}?",
            f"Who was {word.capitalize()} {invented_word(rng).capitalize()}?",
            f"Explain {word} to me.",
            f"{invented_word(rng)} {word} {invented_word(rng)}",
            f"Please {word} the {rng.choice(THINGS)}.",
            f"How do I {word} a {rng.choice(ANIMALS)}?",
            f"What is the capital of {word.capitalize()}?",
        )
    )
    return _asked("unknown", question, "I do not know that. I am a very small model.", key=None)


def json_objects(rng: random.Random, context: Context) -> Exchange:
    """Facts from the question, or a known capital, as one JSON object."""
    del context
    name, city, country = rng.choice(NAMES), rng.choice(CITIES), rng.choice(list(CAPITALS))
    age, start = rng.randrange(1, 100), rng.randrange(90)
    numbers = list(range(start, start + rng.randrange(2, 8)))
    thing, colour = rng.choice(THINGS), rng.choice(COLOURS)
    question, value = rng.choice(
        (
            (f"Give me {name}, age {age}, from {city} as JSON.", {"name": name, "age": age, "city": city}),
            (f"Give me {name}, age {age}, from {city} as JSON.", {"name": name, "age": age, "city": city}),
            (f"Give me a {colour} {thing} as JSON.", {"item": thing, "colour": colour}),
            (f"Give me the capital of {country} as JSON.", {"country": country, "capital": CAPITALS[country]}),
            (f"Give me the numbers from {start} to {numbers[-1]} as JSON.", {"numbers": numbers}),
        )
    )
    return _asked("json", question, json.dumps(value), key=None if "capital" in value else question)


def _weather_question(rng: random.Random, place: str) -> str:
    return rng.choice(
        (
            f"What is the weather in {place}?",
            f"What is the weather in {place}?",
            f"How is the weather in {place} today?",
            f"What's the weather like in {place}?",
            f"Tell me the weather in {place}.",
        )
    )


def _time_question(rng: random.Random, place: str) -> str:
    return rng.choice((f"What time is it in {place}?", f"Tell me the time in {place}."))


def _tool_question(rng: random.Random, context: Context, place: str) -> tuple[str, Tool]:
    tool = rng.choice([tool for tool in context.tools if tool.subject != "other"])
    return (_weather_question if tool.subject == "weather" else _time_question)(rng, place), tool


def _calls(tool: Tool, cities: list[str]) -> Message:
    return {"role": "assistant", "content": None, "tool_calls": [tool.call(city) for city in cities]}


def tool_calls(rng: random.Random, context: Context) -> Exchange:
    """One call of the tool that answers the question."""
    city = rng.choice(CITIES)
    question, tool = _tool_question(rng, context, city)
    return Exchange("tool_calls", f"{question} {tool.name}", (user(question), _calls(tool, [city])))


def parallel_tool_calls(rng: random.Random, context: Context) -> Exchange:
    """Two calls at once, for two cities."""
    cities = rng.sample(CITIES, 2)
    question, tool = _tool_question(rng, context, rng.choice((" and ", " and ", " and in ")).join(cities))
    return Exchange("parallel_tool_calls", f"{question} {tool.name}", (user(question), _calls(tool, cities)))


def _observation(rng: random.Random, tool: Tool, city: str) -> tuple[dict[str, object], str]:
    """What a tool returns about a city, and the sentence that tells it."""
    if tool.subject == "time":
        clock = f"{rng.randrange(24):02}:{rng.randrange(60):02}"
        return {"city": city, "time": clock}, f"It is {clock} in {city}."
    temperature, condition = rng.randrange(-20, 46), rng.choice(CONDITIONS)
    told = f"It is {temperature} degrees and {condition} in {city}."
    return {"city": city, "temperature": temperature, "condition": condition}, told


def tool_results(rng: random.Random, context: Context) -> Exchange:
    """A question, the calls, what the tools returned, and the answer made of it."""
    cities = rng.sample(CITIES, 2) if rng.random() < 0.35 else [rng.choice(CITIES)]
    question, tool = _tool_question(rng, context, " and ".join(cities))
    results, told = zip(*(_observation(rng, tool, city) for city in cities), strict=True)
    separators = rng.choice(((", ", ": "), (", ", ": "), (",", ":")))
    contents = [json.dumps(result, separators=separators) for result in results]
    answers: list[Message] = [{"role": "tool", "content": content} for content in contents]
    messages = (user(question), _calls(tool, cities), *answers, assistant(" ".join(told)))
    return Exchange("tool_results", " ".join(contents), messages)


def no_tool(rng: random.Random, context: Context) -> Exchange:
    """A question about the weather or the time when no tool for it is offered."""
    subject = rng.choice([s for s in ("weather", "weather", "time") if context.tool_for(s) is None])
    question = (_weather_question if subject == "weather" else _time_question)(rng, rng.choice(CITIES))
    return _asked("no_tool", question, f"I have no tool for the {subject}.", key=None)
