"""JSON against a schema, as much of the standard as ours use."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

REFERENCE = Path(__file__).parents[2] / "docs" / "reference"
TYPES: dict[str, type | tuple[type, ...]] = {
    "object": dict,
    "array": list,
    "string": str,
    "boolean": bool,
    "integer": int,
    "number": (int, float),
    "null": type(None),
}


def published(name: str) -> dict[str, Any]:
    """The schema in docs/reference/NAME.schema.json."""
    found: dict[str, Any] = json.loads((REFERENCE / f"{name}.schema.json").read_text())
    return found


def check(schema: dict[str, Any], value: Any, where: str = "$", *, exactly: bool = False) -> None:
    """Asserts that a value is as a schema says.

    Args:
        schema: of draft 2020-12.
        value: as `json.loads` gives it.
        where: for the message.
        exactly: nor has any member that the schema does not name.
    """
    if "const" in schema:
        assert value == schema["const"], where
    names = schema.get("type", [])
    names = [names] if isinstance(names, str) else names
    if names:
        real = [name for name in names if isinstance(value, TYPES[name])]
        assert real, (where, value, names)
        # Python's booleans are integers, JSON's are not.
        assert not isinstance(value, bool) or "boolean" in names, (where, value, names)
    if isinstance(value, dict):
        properties = schema.get("properties", {})
        assert set(schema.get("required", ())) <= set(value), where
        if exactly and properties:
            assert set(value) <= set(properties), where
        for name, member in value.items():
            inner = properties.get(name, schema.get("additionalProperties"))
            if inner is not None:
                check(inner, member, f"{where}.{name}", exactly=exactly)
    if isinstance(value, list) and "items" in schema:
        for member in value:
            check(schema["items"], member, f"{where}[]", exactly=exactly)


def check_printed(name: str, printed: str) -> Any:
    """Asserts that what a command printed is as its schema says, member by member; gives it."""
    value = json.loads(printed)
    check(published(name), value, exactly=True)
    return value
