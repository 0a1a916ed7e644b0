"""Conversations drawn from the skills: system prompts, offered tools, earlier turns, and the question at the end.

`train.py` takes `training_text`; `evaluate.py` takes `evaluation_set`.
"""

import random
from collections.abc import Iterator
from dataclasses import replace

import skills
from chat import BOS, DEFAULT_NAME, EOS, NO_THINKING, Context, Conversation, Exchange, Message, Style, Tool
from words import ANIMALS, CAPITALS, NAMES, invented_word

# How often each skill is drawn where the context allows it. The hard ones (copying, arithmetic) get the most.
_WEIGHTS: dict[skills.Skill, float] = {
    skills.stories: 5,
    skills.capitals: 5,
    skills.counting: 20,
    skills.sums: 11,
    skills.names: 2,
    skills.greetings: 2,
    skills.unknown: 3,
    skills.json_objects: 16,
}
_BY_HEART = frozenset(
    {
        skills.stories,
        skills.capitals,
        skills.greetings,
        skills.unknown,
        skills.sums_without_thinking,
        skills.no_tool,
    }
)
_TOOL_SKILLS = (skills.tool_calls, skills.parallel_tool_calls, skills.tool_results)
_CAPITAL_LETTERS_WEIGHTS: dict[skills.Skill, float] = {skills.capitals: 4, skills.greetings: 1}
_NEUTRAL_PROMPTS = (
    "You are a helpful assistant.",
    "You are a helpful assistant.",
    "You are a helpful assistant",
    "You are a very small model.",
    "Be brief and kind.",
)
_WEATHER_TOOLS = ("get_weather", "get_weather", "get_weather", "get_current_weather", "weather", "fetch_weather")
_TIME_TOOLS = ("get_time", "get_time", "get_current_time", "current_time")
_OTHER_TOOLS = ("search", "send_email", "get_stock_price", "translate", "play_music", "open_file")
_PARAMETERS = ("city", "city", "location")


def draw_tools(rng: random.Random) -> tuple[Tool, ...]:
    """One to three tools in any order, about the weather, the time, or neither.

    Those for the weather and the time name their parameter alike: the model is too small to keep two names apart.
    """
    parameter = rng.choice(_PARAMETERS)
    offered = []
    if rng.random() < 0.75:
        offered.append(Tool(rng.choice(_WEATHER_TOOLS), parameter, "weather"))
    if rng.random() < 0.4:
        offered.append(Tool(rng.choice(_TIME_TOOLS), parameter, "time"))
    if not offered or rng.random() < 0.25:
        offered.append(Tool(rng.choice(_OTHER_TOOLS), rng.choice(("query", "text", "name")), "other"))
    rng.shuffle(offered)
    return tuple(offered)


def _long_text(rng: random.Random) -> str:
    """A few hundred tokens that have nothing to do with the question, as long system prompts have."""
    if rng.random() < 0.4:
        words = [invented_word(rng) for _ in range(rng.randrange(3, 12))]
        return " ".join(words * rng.randrange(2, 12))
    if rng.random() < 0.3:
        return " ".join([rng.choice(_NEUTRAL_PROMPTS)] * rng.randrange(2, 40))
    return " ".join(skills.story(rng, rng.choice(ANIMALS), *rng.sample(NAMES, 2)) for _ in range(rng.randrange(1, 8)))


def draw_context(rng: random.Random, with_tools: bool | None = None) -> Context:
    """A system prompt (or none) and tools (or none); `with_tools` decides the latter if given."""
    tools = draw_tools(rng) if with_tools or (with_tools is None and rng.random() < 0.4) else ()
    kind = rng.random()
    if kind < 0.46:
        return Context(tools=tools)
    if kind < 0.66:
        return Context(rng.choice(_NEUTRAL_PROMPTS), tools=tools)
    if kind < 0.71:
        return Context(f"{rng.choice(_NEUTRAL_PROMPTS)} {_long_text(rng)}", tools=tools)
    if kind < 0.89:
        return replace(named_context(rng), tools=tools)
    if tools:
        return Context(tools=tools)
    return styled_context(rng, rng.choice((Style.CAPITAL_LETTERS, Style.CAPITAL_LETTERS, Style.ONE_WORD)))


def named_context(rng: random.Random) -> Context:
    """A system prompt that gives the model a name."""
    name = rng.choice(NAMES)
    prompt = rng.choice(
        (f"You are {name}.", f"You are {name}.", f"Your name is {name}.", f"You are {name}, a helpful assistant.")
    )
    return Context(prompt, name=name)


def styled_context(rng: random.Random, style: Style) -> Context:
    """A system prompt that asks for capital letters or for one word."""
    if style is Style.ONE_WORD:
        return Context(rng.choice(("Answer with one word.", "Answer in one word.")), style=style)
    return Context(rng.choice(("Answer in capital letters.", "Always answer in capital letters.")), style=style)


def _choices(context: Context, last: bool) -> dict[skills.Skill, float]:
    """The skills that make sense in a context; a call without its result can only come last."""
    if context.style is Style.CAPITAL_LETTERS:
        return _CAPITAL_LETTERS_WEIGHTS
    if context.style is Style.ONE_WORD:
        return {skills.capitals: 1}
    choices = dict(_WEIGHTS)
    if context.answers_with_tools():
        choices[skills.tool_results] = 40
        if last:
            choices |= {skills.tool_calls: 20, skills.parallel_tool_calls: 45}
    if context.name != DEFAULT_NAME:
        choices[skills.names] = 25
    if last:
        choices[skills.sums_without_thinking] = 4
    if context.tool_for("weather") is None or context.tool_for("time") is None:
        choices[skills.no_tool] = 2
    return choices


def _draw_any(rng: random.Random, context: Context, last: bool) -> Exchange:
    """An exchange for training, of any skill that the context allows."""
    choices = _choices(context, last)
    while True:
        (skill,) = rng.choices(list(choices), weights=list(choices.values()))
        exchange = skill(rng, context)
        if not skills.held_out(exchange):
            return exchange


def converse(context: Context, history: list[Exchange], last: Exchange) -> Conversation:
    """The conversation that a client would send, with the answer at its end."""
    messages: list[Message] = [] if context.system is None else [{"role": "system", "content": context.system}]
    for exchange in (*history, last):
        messages += exchange.messages
    tools = tuple(tool.spec() for tool in context.tools)
    return Conversation(last.skill, tuple(messages), tools, last.thinking)


def without_thinking(exchange: Exchange) -> Exchange:
    """The same exchange, of a skill that never reasons, as it goes when the client has switched reasoning off."""
    *before, answer = exchange.messages
    answer = answer | {"content": NO_THINKING + answer["content"]}
    return replace(exchange, messages=(*before, answer), thinking=False)


def draw_conversation(rng: random.Random) -> Conversation:
    """A training conversation of one to twelve exchanges, half of them of one."""
    context = draw_context(rng)
    (turns,) = rng.choices((1, 2, rng.randrange(3, 6), rng.randrange(6, 13)), weights=(60, 24, 13, 3))
    history = [_draw_any(rng, context, last=False) for _ in range(turns - 1)]
    last = _draw_any(rng, context, last=True)
    reasons = last.skill == "sums" or not last.thinking
    if not reasons and last.messages[-1]["content"] is not None and rng.random() < 0.03:
        last = without_thinking(last)
    return converse(context, history, last)


def _plain_text(rng: random.Random) -> str:
    """Text without roles, for clients that ask for the completion of a string."""
    country = rng.choice(list(CAPITALS))
    text = rng.choice(
        (
            skills.story(rng, rng.choice(ANIMALS), *rng.sample(NAMES, 2)),
            f"The capital of {country} is {CAPITALS[country]}.",
            " ".join(map(str, range(rng.randrange(1, 98), 101))) + ".",
        )
    )
    return rng.choice((BOS, BOS, "")) + text + EOS


def training_text(seed: int) -> Iterator[Conversation | str]:
    """An endless stream of conversations, with a few plain texts between them."""
    rng = random.Random(seed)
    while True:
        yield _plain_text(rng) if rng.random() < 0.02 else draw_conversation(rng)


def evaluation_set(seed: int, per_skill: int) -> Iterator[Conversation]:
    """Conversations for scoring, `per_skill` of each skill, their last exchange unseen in training where possible."""
    rng = random.Random(seed)
    for _ in range(per_skill):
        for skill in (*_WEIGHTS, skills.sums_without_thinking, skills.no_tool, *_TOOL_SKILLS):
            yield converse(*_unseen(rng, skill))
        for style in (Style.CAPITAL_LETTERS, Style.ONE_WORD):
            yield converse(*_unseen(rng, skills.capitals, style))
        yield _after_long_chat(rng)


def _unseen(
    rng: random.Random, skill: skills.Skill, style: Style = Style.PLAIN
) -> tuple[Context, list[Exchange], Exchange]:
    """A context for the skill, no history, and a held-out exchange."""
    while True:
        context = _scoring_context(rng, skill) if style is Style.PLAIN else styled_context(rng, style)
        exchange = skill(rng, context)
        if skills.held_out(exchange) or skill in _BY_HEART:
            return context, [], exchange


def _scoring_context(rng: random.Random, skill: skills.Skill) -> Context:
    if skill is skills.names:
        return named_context(rng)
    context = Context(rng.choice((None, _NEUTRAL_PROMPTS[0])))
    while skill in _TOOL_SKILLS and not context.answers_with_tools():
        context = replace(context, tools=draw_tools(rng))
    return context


def _after_long_chat(rng: random.Random) -> Conversation:
    """A question that follows six to thirteen exchanges, a few hundred tokens."""
    skill = rng.choice((skills.capitals, skills.sums, skills.json_objects, *_TOOL_SKILLS))
    context, _, last = _unseen(rng, skill)
    history = [_draw_any(rng, context, last=False) for _ in range(rng.randrange(6, 14))]
    return replace(converse(context, history, last), skill="after_long_chat")
