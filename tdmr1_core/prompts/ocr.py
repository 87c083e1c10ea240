"""Prompts that ask for a text in the image, quoted as the OCR reward expects.

Texts and scenes of the held-out set occur in no training prompt. A text has one to five words; some contain a number.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product

from tdmr1_core.prompts.prompt import Prompt
from tdmr1_core.prompts.seeded_choice import choose

TRAINING_COUNT = 4096
HELD_OUT_COUNT = 512

SCENES = (
    'A wooden shop sign above a door that says "{}"',
    'A neon sign in a rainy street at night, reading "{}"',
    'A chalkboard in front of a café with "{}" written on it',
    'A birthday cake with "{}" in icing on top',
    'A close-up of a T-shirt with the print "{}"',
    'A road sign by an empty desert highway that says "{}"',
    'The cover of an old book titled "{}"',
    'A white coffee mug with the words "{}", on a kitchen table',
    'A movie poster with the title "{}" in large letters',
    'Graffiti on a brick wall that spells "{}"',
    'A newspaper on a bench with the headline "{}"',
    'A smartphone screen that shows the message "{}"',
    'A hand-painted banner across a village street, reading "{}"',
    'A storefront window in winter with "{}" in gold letters',
    'A spaceship control panel whose display shows "{}"',
    'A handwritten note on a fridge door that says "{}"',
    'A cereal box on a supermarket shelf with the name "{}"',
    'A stone plaque on an old bridge engraved with "{}"',
    'A street musician\'s guitar case with a card that says "{}"',
    'A departure board in a railway station that shows "{}"',
    'A vintage travel poster of a mountain lake with the words "{}"',
    'A cardboard box in an attic labelled "{}"',
    'A billboard above a city square at dusk with "{}" on it',
    'A robot that holds up a sign with the text "{}"',
)
HELD_OUT_SCENES = (
    'A hot-air balloon over fields with "{}" on its side',
    'A tombstone in fog with the inscription "{}"',
    'A fishing boat in a harbour with "{}" painted on the bow',
    'A museum ticket that says "{}"',
    'A ceramic plate with "{}" around its rim',
    'A baseball cap with "{}" stitched on the front',
    'A warning label on a laboratory bottle that reads "{}"',
    'A theatre marquee at night announcing "{}"',
)

FIRST_WORDS = (
    *(
        "Fresh",
        "Golden",
        "Silent",
        "Midnight",
        "Lucky",
        "Open",
        "Little",
        "Grand",
        "Hidden",
        "Brave",
        "Lost",
        "Electric",
    ),
    *(
        "Royal",
        "Wild",
        "Crystal",
        "Happy",
        "Summer",
        "Northern",
        "Secret",
        "Iron",
        "Velvet",
        "Rapid",
        "Broken",
        "Sunny",
    ),
)
NOUNS = (
    *("Bakery", "Harbor", "Forest", "Market", "Engine", "Garden", "Planet", "Coffee", "Library", "Tiger", "Bridge"),
    *(
        "Museum",
        "Rocket",
        "Kitchen",
        "Island",
        "Theater",
        "Castle",
        "Journey",
        "Window",
        "Station",
        "Galaxy",
        "Lantern",
    ),
    *("Pirate", "Orchard", "Puzzle", "Bicycle", "Thunder", "Wizard", "Compass", "Violin"),
)
PHRASES = (
    *("Keep Off the Grass", "Back in Ten Minutes", "No Dogs Allowed", "Please Ring Twice", "Mind the Gap"),
    *("All You Need Is Tea", "Do Not Feed the Ducks", "Sale Ends Today", "Watch Your Step", "Free Hugs Here"),
    *("Never Stop Exploring", "Made with Love", "Happy Birthday Anna", "Beware of the Dragon", "Welcome Home"),
    *("Rooms to Rent", "Slow Down Ahead", "One Way Only", "Push to Start", "See You Tomorrow"),
)
NUMBERED = ("Room", "Gate", "Platform", "Flight", "Level", "Chapter", "Route", "Exit")
NUMBERS = (2, 7, 9, 14, 23, 42, 58, 101, 305, 747, 1984, 2049)

HELD_OUT_FIRST_WORDS = ("Ancient", "Scarlet", "Frozen", "Clever", "Distant", "Purple", "Gentle", "Mighty")
HELD_OUT_NOUNS = ("Anchor", "Meadow", "Falcon", "Workshop", "Volcano", "Mirror", "Harvest", "Sailor", "Temple", "Drum")
HELD_OUT_PHRASES = (
    *("Handle with Care", "Lost and Found", "Doors Close at Nine", "Take the Stairs", "Ask Me Anything"),
    *("Wet Paint", "Quiet Please", "Last Train Tonight", "Out of Order", "Thank You for Waiting"),
)
HELD_OUT_NUMBERED = ("Track", "Floor", "Sector", "Episode")
HELD_OUT_NUMBERS = (3, 8, 16, 27, 64, 99, 212, 360, 1066, 3000)


def ocr_prompts(held_out: bool) -> list[Prompt]:
    """The training prompts or the held-out prompts. Their metadata contain the requested `text`."""
    if held_out:
        texts = _texts(HELD_OUT_FIRST_WORDS, HELD_OUT_NOUNS, HELD_OUT_PHRASES, HELD_OUT_NUMBERED, HELD_OUT_NUMBERS)
        return _prompts(HELD_OUT_SCENES, texts, HELD_OUT_COUNT, "ocr-held-out")
    return _prompts(SCENES, _texts(FIRST_WORDS, NOUNS, PHRASES, NUMBERED, NUMBERS), TRAINING_COUNT, "ocr")


def _texts(
    first_words: Sequence[str],
    nouns: Sequence[str],
    phrases: Sequence[str],
    numbered: Sequence[str],
    numbers: Sequence[int],
) -> list[str]:
    """Single words, pairs of words, words with a number, and phrases."""
    pairs = [f"{first} {noun}" for first, noun in product(first_words, nouns)]
    with_number = [f"{word} {number}" for word, number in product(numbered, numbers)]
    return [*first_words, *nouns, *pairs, *with_number, *phrases]


def _prompts(scenes: Sequence[str], texts: Sequence[str], count: int, seed: str) -> list[Prompt]:
    """A seeded choice of `count` combinations of a scene and a text."""
    chosen = choose([(scene, text) for scene, text in product(scenes, texts)], count, seed)
    return [Prompt(scene.format(text), {"tag": "ocr", "text": text}) for scene, text in chosen]
