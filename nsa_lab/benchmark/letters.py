"""A multiple-choice answer as its letter alone."""

import ast
import re

from nsa_lab.evaluation.answers import letter, options

PRINTED = re.compile(r"^\s*(\{'A': .*\})\s*$", re.MULTILINE)
"""Options as Python prints a dict, which is how TOMATO's prompt has them."""


def bare_letter(question: str, answer: str) -> str:
    """The letter of the one option that `answer` names; `answer` as it is where it names none, or there are none."""
    choices = options(question) or _printed(question)
    return (choices and letter(answer, choices)) or answer


def _printed(question: str) -> dict[str, str]:
    found = PRINTED.search(question)
    try:
        return {str(name): str(option) for name, option in ast.literal_eval(found[1]).items()} if found else {}
    except (ValueError, SyntaxError):
        return {}
