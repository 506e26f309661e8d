"""Which written answers count as right."""

import pytest

from nsa_lab.evaluation.answers import letter, normalised, options, understood

QUESTION = "What is shown?\nA. A man cooks rice.\nB. Two dogs\nC) nothing\n(D) A\nAnswer with the letter."
CHOICES = {"A": "A man cooks rice.", "B": "Two dogs", "C": "nothing", "D": "A"}


def test_options_are_lettered_lines_from_a_on():
    assert options(QUESTION) == CHOICES
    assert options("What colour was the flash?") == {}
    assert options("Vitamin\nA. is one") == {}, "one is no choice"
    assert options("B. x\nC. y") == {}
    assert options("A. x\nC. y") == {}


@pytest.mark.parametrize(
    "text",
    [
        *("B", "b", "(B)", "B.", "B)", " B ", "**B**", "Answer: B", "answer: (B).", "The answer is B.", "Option B"),
        *("The correct option is (B).", "The best answer is: B", "B. Two dogs", "(B) Two dogs", "B: they are dogs"),
        *("Two dogs", "two dogs.", "They bark, so the answer is B.", "Dogs bark.\nAnswer: B", "Answer: B (two dogs)"),
    ],
)
def test_a_letter_is_found_in_its_usual_forms(text):
    assert letter(text, CHOICES) == "B"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "E",
        "(E)",
        "A man walks",
        "A dog or B dog",
        "I do not know",
        "answer is A man",
        "Is the answer B, or answer C?",
    ],
)
def test_no_letter_is_made_up(text):
    assert letter(text, CHOICES) is None


def test_the_text_of_an_option_that_begins_with_a_letter_is_that_option():
    assert letter("A man cooks rice", CHOICES) == "A"
    assert letter("Nothing.", CHOICES) == "C"
    assert letter("same", {"A": "same", "B": "Same."}) is None, "either"


def test_multiple_choice_is_judged_by_letter_whatever_form_the_reference_has():
    for expected in ("B", "B. Two dogs", "Two dogs"):
        assert understood(QUESTION, expected, "(B)") == ("B", True)
        assert understood(QUESTION, expected, "C") == ("C", False)
        assert understood(QUESTION, expected, "A man walks") == ("", False)


def test_free_answers_are_judged_word_for_word():
    assert understood("What?", "Top left", " top  LEFT.\n") == ("top left", True)
    assert understood("What?", "red", "red ball") == ("red ball", False)
    assert understood("What?", "-3", "3") == ("3", False)
    assert understood("Which?", "B", "The answer is B.") == ("the answer is b", False), "without options"
    assert understood(QUESTION, "a cook", "A cook!") == ("a cook", True), "a reference that is none of the options"
    assert normalised("“Ｒed”\u00a0 ball") == "“red” ball"
