"""Which plug-ins there are: read off the literal dict that lists them, without importing what it lists."""

import ast
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[1]


def plugin_names(folder: str, registry: str) -> tuple[str, ...]:
    """The keys of the literal dict `registry` in nsa_lab/`folder`/__init__.py, in its order."""
    tree = ast.parse((PACKAGE / folder / "__init__.py").read_text())
    (names,) = [
        [ast.literal_eval(key) for key in node.value.keys if key is not None]
        for node in tree.body
        if isinstance(node, ast.AnnAssign) and isinstance(node.value, ast.Dict)
        if isinstance(node.target, ast.Name) and node.target.id == registry
    ]
    return tuple(names)
