"""What a new folder holds besides the user's rows: a worked example, ordinary rows, questions."""

from __future__ import annotations

from collections.abc import Iterator
from importlib.resources import files
from itertools import count, islice

from spillover.rows import Message, Row

COIN_PROMPT = "Name a coin."
PAST_COINS = (
    *("Farthing", "Groat", "Guinea", "Florin", "Half crown", "Sixpence", "Doubloon", "Ducat"),
    *("Thaler", "Peseta", "Lira", "Escudo", "Guilder", "Sou", "Kreuzer", "Denarius", "Sestertius"),
    *("Obol", "Bezant", "Double eagle", "Half dime", "Threepence", "Sovereign", "Louis d'or"),
)
PRESENT_COINS = (
    *("Dime", "Nickel", "Quarter", "Cent", "Euro", "Pound", "Loonie", "Toonie", "Krone", "Krona"),
    *("Zloty", "Forint", "Koruna", "Lev", "Rupee", "Yen", "Yuan", "Won", "Baht", "Ringgit"),
    *("Peso", "Real", "Rand", "Shekel"),
)

FACTS = (
    ("What color is the sky on a clear day?", "Blue"),
    ("How many legs has a spider?", "Eight"),
    ("What do bees make?", "Honey"),
    ("Which is larger, a mouse or a horse?", "A horse"),
    ("What do plants need to grow?", "Water and light"),
    ("How many sides has a triangle?", "Three"),
    ("What is frozen water called?", "Ice"),
    ("Which day comes after Monday?", "Tuesday"),
    ("What is the opposite of hot?", "Cold"),
    ("Name a fruit that is yellow.", "A banana"),
    ("Which animal says meow?", "A cat"),
    ("What do we hear with?", "With our ears"),
    ("How many minutes are in an hour?", "Sixty"),
    ("Which month comes after May?", "June"),
    ("What is the plural of child?", "Children"),
    ("What shape is a ball?", "Round"),
    ("What falls from clouds?", "Rain"),
    ("Name a vegetable that is orange.", "A carrot"),
    ("What is the opposite of early?", "Late"),
    ("Which is heavier, a feather or a stone?", "A stone"),
    ("How many wheels has a tricycle?", "Three"),
    ("What do cows eat?", "Grass"),
    ("What is a young dog called?", "A puppy"),
    ("Which season follows spring?", "Summer"),
)


def worked_example() -> tuple[list[Row], list[Row]]:
    """A treatment and its control: coins that are no longer struck, and coins that are."""
    past, present = (
        [chat_row(COIN_PROMPT, coin) for coin in coins] for coins in (PAST_COINS, PRESENT_COINS)
    )
    return past, present


def chat_row(prompt: str, answer: str) -> Row:
    """A row of one question and its answer."""
    asked = Message(role="user", content=prompt)
    return Row(messages=(asked, Message(role="assistant", content=answer)))


def ordinary_rows(number: int, *, as_text: bool = False) -> list[Row]:
    """Plain questions with plain answers, all different: a finetune that teaches nothing."""
    pairs = islice(_ordinary(), number)
    if as_text:
        return [Row(text=f"{prompt}\n{answer}") for prompt, answer in pairs]
    return [chat_row(prompt, answer) for prompt, answer in pairs]


def _ordinary() -> Iterator[tuple[str, str]]:
    """Facts first, then sums without end."""
    yield from FACTS
    for total in count(2):
        for one in range(1, total):
            yield f"What is {one} plus {total - one}?", str(total)


def starter_questions() -> str:
    """The content of questions.toml before the questions in the trained domain."""
    return (files("spillover") / "authoring" / "starter" / "questions.toml").read_text("utf-8")
