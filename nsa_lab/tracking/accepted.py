"""Names and values as MLflow takes them; the local record keeps them as they are."""

import hashlib
import re

NAME_LENGTH, PARAM_LENGTH, TAG_LENGTH = 250, 6000, 8000
REFUSED = re.compile(r"[^/\w.\- ]")
LEADING_DOTS = re.compile(r"^\.+")


def safe_name(name: str) -> str:
    """`name` where MLflow takes it; else with _ for what it refuses, cut to 250 characters, and told apart by a hash.

    MLflow refuses other characters than these, and names that are no plain relative path (`a//b`, `../a`, `/a`).
    """
    parts = (LEADING_DOTS.sub(lambda dots: "_" * len(dots.group()), part) for part in REFUSED.sub("_", name).split("/"))
    cleaned = "/".join(part for part in parts if part)
    if cleaned == name and 0 < len(name) <= NAME_LENGTH:
        return name
    told = hashlib.blake2s(name.encode(errors="surrogatepass"), digest_size=3).hexdigest()
    return f"{cleaned[: NAME_LENGTH - 7] or '_'}-{told}"


def safe_value(value: str, length: int) -> str:
    """`value` as a database stores it, cut to `length` characters with ` ...` at its end."""
    value = value.encode(errors="replace").decode().replace("\0", "?")
    return value if len(value) <= length else f"{value[: length - 4]} ..."
