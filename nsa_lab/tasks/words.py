"""The words that tasks ask and answer with; each is one token of the offline tokenizer, alone or after a space."""

CHAT = "system user assistant You are a helpful assistant ."
QUESTIONS = "What colour was the flash ? Where was it ? Which came first , or ?"
COLOURS = ("red", "orange", "yellow", "green", "cyan", "blue", "purple", "pink")
PLACES = ("northwest", "northeast", "southwest", "southeast")
NUMBERS = ("one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")
COMMON = f"yes no left right up down zero {' '.join(NUMBERS)} before after last when longest"

WORDS = tuple(dict.fromkeys([*CHAT.split(), *QUESTIONS.split(), *COLOURS, *PLACES, *COMMON.split()]))
