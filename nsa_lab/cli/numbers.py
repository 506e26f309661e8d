"""Lists of numbers on the command line."""

from nsa_lab.errors import NsaLabError


def whole_numbers(text: str, option: str) -> list[int]:
    """The numbers of `512,2048`. Raises NsaLabError that names `option` where it is no such list."""
    try:
        return [int(part) for part in text.split(",")]
    except ValueError as error:
        raise NsaLabError(f"{option} {text!r} is not a list of whole numbers; write for example 512,2048") from error
