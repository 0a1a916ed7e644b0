"""The vocabulary of the demo model's training text, and invented words for questions that it cannot answer.

Used by `skills.py` and `mixture.py`. All of it was written for this project: the weights carry no third-party text.
"""

import random

# fmt: off
NAMES = (
    "Ada", "Alan", "Alice", "Ann", "Anna", "Ben", "Bob", "Carl", "Cleo", "Dan", "Dora", "Ella", "Emma", "Eva",
    "Finn", "Frank", "Grace", "Gus", "Hana", "Harry", "Hugo", "Ida", "Iris", "Ivo", "Jack", "James", "Jane",
    "Jill", "John", "Kai", "Kim", "Laura", "Lea", "Leo", "Lisa", "Lucy", "Maria", "Mary", "Max", "Mia", "Nina",
    "Nora", "Olga", "Otto", "Paul", "Peter", "Pia", "Rita", "Rosa", "Ruby", "Ruth", "Sam", "Sara", "Tara", "Tim",
    "Tom", "Uma", "Vera", "Zelda", "Zoe",
)
ANIMALS = (
    "bear", "cat", "cow", "dog", "duck", "fox", "frog", "goat", "hen", "horse", "mouse", "owl", "rabbit", "sheep",
)
PLACES = (
    "castle", "forest", "garden", "harbour", "kitchen", "library", "market", "meadow", "river", "school", "tower",
    "village",
)
THINGS = (
    "apple", "book", "coin", "hat", "kite", "lamp", "map", "ring", "shell", "spoon", "stone", "key",
)
ADJECTIVES = (
    "blue", "brave", "green", "happy", "little", "old", "quiet", "red", "round", "shiny", "small", "soft",
)
COLOURS = (
    "black", "blue", "green", "red", "white", "yellow",
)
CONDITIONS = (
    "clear", "cloudy", "dry", "foggy", "rainy", "snowy", "stormy", "sunny", "windy",
)
CAPITALS = {
    "Austria": "Vienna", "Belgium": "Brussels", "Brazil": "Brasilia", "Canada": "Ottawa", "Chile": "Santiago",
    "China": "Beijing", "Cuba": "Havana", "Denmark": "Copenhagen", "Egypt": "Cairo", "England": "London",
    "Finland": "Helsinki", "France": "Paris", "Germany": "Berlin", "Greece": "Athens", "Hungary": "Budapest",
    "India": "Delhi", "Ireland": "Dublin", "Italy": "Rome", "Japan": "Tokyo", "Kenya": "Nairobi", "Norway": "Oslo",
    "Peru": "Lima", "Poland": "Warsaw", "Portugal": "Lisbon", "Russia": "Moscow", "Spain": "Madrid",
    "Sweden": "Stockholm", "Switzerland": "Bern", "Turkey": "Ankara", "Ukraine": "Kyiv",
}
CITIES = (
    *CAPITALS.values(),
    "Amsterdam", "Atlanta", "Austin", "Bangkok", "Barcelona", "Basel", "Bogota", "Boston", "Bristol", "Chicago",
    "Cologne", "Dallas", "Denver", "Dubai", "Edinburgh", "Florence", "Frankfurt", "Geneva", "Glasgow", "Hamburg",
    "Hong Kong", "Istanbul", "Jakarta", "Karachi", "Kyoto", "Lagos", "Las Vegas", "Liverpool", "Los Angeles",
    "Lyon", "Manila", "Melbourne", "Mexico City", "Miami", "Milan", "Montreal", "Mumbai", "Munich", "Naples",
    "New York", "Osaka", "Phoenix", "Porto", "Prague", "Reykjavik", "Riga", "San Francisco", "Seattle", "Seoul",
    "Seville", "Shanghai", "Singapore", "Sydney", "Toronto", "Turin", "Vancouver", "Venice", "Washington",
    "Zurich",
)
_ONSETS = (
    "b", "br", "c", "d", "dr", "f", "fl", "g", "gr", "h", "j", "k", "l", "m", "n", "p", "pl", "r", "s", "st", "t",
    "tr", "v", "w", "z",
)
_NUCLEI = (
    "a", "e", "i", "o", "u", "ai", "ea", "oo",
)
_CODAS = ("", "", "", "l", "n", "r", "s", "t", "nd", "m")
# fmt: on


def invented_word(rng: random.Random) -> str:
    """A pronounceable lower-case word of two syllables; it stands for what the model has never heard of."""
    return "".join(rng.choice(_ONSETS) + rng.choice(_NUCLEI) + rng.choice(_CODAS) for _ in range(2))
