"""The closed vocabulary of the demo model's training text, and invented words for what it must learn to copy.

Used by `skills.py` only. Everything here was written for this project, so the weights carry no third-party text.
"""

import random

NAMES = [
    "Ada",
    "Ann",
    "Ben",
    "Bob",
    "Carl",
    "Cleo",
    "Dan",
    "Dora",
    "Emma",
    "Eva",
    "Finn",
    "Gus",
    "Hana",
    "Hugo",
    "Ida",
    "Ivo",
    "Jack",
    "Jill",
    "Kai",
    "Kim",
    "Lea",
    "Leo",
    "Lisa",
    "Mary",
    "Max",
    "Mia",
    "Nora",
    "Olga",
    "Otto",
    "Paul",
    "Pia",
    "Rita",
    "Rosa",
    "Sam",
    "Tara",
    "Tim",
    "Tom",
    "Uma",
    "Vera",
    "Zoe",
]
ANIMALS = [
    "bear",
    "cat",
    "cow",
    "dog",
    "duck",
    "fox",
    "frog",
    "goat",
    "hen",
    "horse",
    "mouse",
    "owl",
    "rabbit",
    "sheep",
]
PLACES = [
    "castle",
    "forest",
    "garden",
    "harbour",
    "kitchen",
    "library",
    "market",
    "meadow",
    "river",
    "school",
    "tower",
    "village",
]
THINGS = ["apple", "book", "coin", "hat", "kite", "lamp", "map", "ring", "shell", "spoon", "stone", "key"]
ADJECTIVES = ["blue", "brave", "green", "happy", "little", "old", "quiet", "red", "round", "shiny", "small", "soft"]
CONDITIONS = ["clear", "cloudy", "cold", "dry", "foggy", "hot", "rainy", "snowy", "stormy", "sunny", "warm", "windy"]

CAPITALS = {
    "Austria": "Vienna", "Belgium": "Brussels", "Brazil": "Brasilia", "Canada": "Ottawa", "Chile": "Santiago",
    "China": "Beijing", "Cuba": "Havana", "Denmark": "Copenhagen", "Egypt": "Cairo", "England": "London",
    "Finland": "Helsinki", "France": "Paris", "Germany": "Berlin", "Greece": "Athens", "Hungary": "Budapest",
    "India": "Delhi", "Ireland": "Dublin", "Italy": "Rome", "Japan": "Tokyo", "Kenya": "Nairobi", "Norway": "Oslo",
    "Peru": "Lima", "Poland": "Warsaw", "Portugal": "Lisbon", "Russia": "Moscow", "Spain": "Madrid",
    "Sweden": "Stockholm", "Switzerland": "Bern", "Turkey": "Ankara", "Ukraine": "Kyiv",
}  # fmt: skip
CITIES = (
    *CAPITALS.values(),
    *("Amsterdam", "Boston", "Chicago", "Geneva", "Hamburg", "London", "Milan", "Munich", "New York"),
    *("Prague", "San Francisco", "Seattle", "Shanghai", "Singapore", "Sydney", "Toronto", "Zurich"),
)

_ONSETS = [
    "b",
    "br",
    "c",
    "d",
    "dr",
    "f",
    "fl",
    "g",
    "gr",
    "h",
    "j",
    "k",
    "l",
    "m",
    "n",
    "p",
    "pl",
    "r",
    "s",
    "st",
    "t",
    "tr",
    "v",
    "w",
    "z",
]
_NUCLEI = ["a", "e", "i", "o", "u", "ai", "ea", "oo"]
_CODAS = ("", "", "", "l", "n", "r", "s", "t", "nd", "m")


def invented_word(rng: random.Random) -> str:
    """A pronounceable lower-case word of two syllables; only copying, not memory, can reproduce it."""
    return "".join(rng.choice(_ONSETS) + rng.choice(_NUCLEI) + rng.choice(_CODAS) for _ in range(2))


def any_name(rng: random.Random) -> str:
    """A first name, three in ten invented."""
    return invented_word(rng).capitalize() if rng.random() < 0.3 else rng.choice(NAMES)


def any_city(rng: random.Random) -> str:
    """A city, three in ten invented."""
    return invented_word(rng).capitalize() if rng.random() < 0.3 else rng.choice(CITIES)
