"""Is an answer right? Free answers word for word, multiple choice by the letter, however it is written."""

import re
import unicodedata

OPTION = re.compile(r"^\s*\(?([A-Z])[.):]\s*(\S.*)$", re.MULTILINE)
ALONE = re.compile(r"\W*(?:(?:the )?(?:correct |best )?(?:answer|option|choice)(?: is)?\W*)?([a-z])\W*", re.IGNORECASE)
"""All of an answer: `B`, `(B)`, `B.`, `Answer: B`, `The correct option is (B).`"""
LED = re.compile(r"\W*(?:\(([A-Z])\)|([A-Z])[.):])\s*\S.*", re.DOTALL)
"""A letter and what follows it: `B. A red ball`."""
SAID = re.compile(r"\b(?i:answer|option|choice)(?i: is)?[\s:*(]*\b([A-Z])(?=\W*(?:[.,;:()\n]|$))")
"""A letter inside a sentence: `..., so the answer is B.`"""
EDGES = " \t\n.,;:!?\"'`*()[]"


def normalised(text: str) -> str:
    """`text` in lower case, white space as single spaces, without punctuation at its ends."""
    return " ".join(unicodedata.normalize("NFKC", text).casefold().split()).strip(EDGES)


def options(question: str) -> dict[str, str]:
    """The texts of a multiple-choice question's options by letter: lines `A. ...`, `(A) ...`; empty where none are."""
    found = OPTION.findall(question)
    letters = [letter for letter, _ in found]
    consecutive = letters == [chr(ord("A") + place) for place in range(len(letters))]
    return dict(found) if consecutive and len(found) > 1 else {}


def letter(text: str, choices: dict[str, str]) -> str | None:
    """Which of `choices` an answer names, by letter or by the option's text; None where it names none, or several."""
    if alone := ALONE.fullmatch(text):
        return alone[1].upper() if alone[1].upper() in choices else None
    if led := LED.fullmatch(text):
        return (led[1] or led[2]) if (led[1] or led[2]) in choices else None
    same = [name for name, option in choices.items() if normalised(option) == normalised(text)]
    said = same or [name for name in dict.fromkeys(SAID.findall(text)) if name in choices]
    return said[0] if len(said) == 1 else None


def understood(question: str, expected: str, text: str) -> tuple[str, bool]:
    """What `text` says, and whether that is right.

    Where the question has options and `expected` is one of them that is a letter, empty where none can be told; else
    the answer, normalised.
    """
    choices = options(question)
    if right := letter(expected, choices):
        named = letter(text, choices)
        return named or "", named == right
    return normalised(text), normalised(text) == normalised(expected)
