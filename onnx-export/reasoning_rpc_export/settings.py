"""Typed reading of what a checkpoint says about itself; every error names the file and the setting."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

from .errors import ExportError

# Larger dimensions than this are a damaged file, not a model.
MAX_DIMENSION = 1 << 24


class Settings:
    """A table of settings (config.json, GGUF metadata) that came from the file `origin`. None counts as absent."""

    def __init__(self, origin: str, values: dict[str, Any]):
        self.origin = origin
        self.values = values

    def get(self, key: str) -> Any:
        return self.values.get(key)

    def error(self, key: str, expected: str, found: Any) -> ExportError:
        shown = repr(found) if len(repr(found)) <= 60 else type(found).__name__
        return ExportError(f"{self.origin}: {key} must be {expected}, found {shown}")

    def integer(self, key: str, default: int | None = None, minimum: int = 1, maximum: int = MAX_DIMENSION) -> int:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not minimum <= value <= maximum:
            raise self.error(key, f"an integer from {minimum} to {maximum}", value)
        return value

    def number(self, key: str, default: float | None = None) -> float:
        value = self.get(key)
        if value is None and default is not None:
            return default
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < math.inf:
            raise self.error(key, "a positive number", value)
        return float(value)

    def boolean(self, key: str, default: bool) -> bool:
        value = self.get(key)
        if value is None:
            return default
        if not isinstance(value, bool):
            raise self.error(key, "true or false", value)
        return value

    def text(self, key: str) -> str | None:
        value = self.get(key)
        if value is not None and not isinstance(value, str):
            raise self.error(key, "a string", value)
        return value

    def table(self, key: str) -> dict[str, Any]:
        value = self.get(key)
        if value is not None and not isinstance(value, dict):
            raise self.error(key, "an object", value)
        return value or {}

    def token(self, key: str) -> int | None:
        """A token id, or None where there is none."""
        return None if self.get(key) is None else self.integer(key, minimum=0)

    def tokens(self, key: str) -> tuple[int, ...]:
        """One token id or a list of them."""
        value = self.get(key)
        values = value if isinstance(value, list) else [] if value is None else [value]
        if not all(isinstance(token, int) and not isinstance(token, bool) for token in values):
            raise self.error(key, "a token id or a list of them", value)
        return tuple(values)


def printable_name(path: Path) -> str:
    """The last part of a path as text, even where the file system's bytes are none."""
    return path.name.encode("utf-8", "replace").decode("utf-8")


def read_json(path: Path) -> Settings:
    """A JSON file whose top level is an object."""
    try:
        values = json.loads(path.read_bytes().decode("utf-8"))
    except OSError as error:
        raise ExportError(f"{path}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise ExportError(f"{path}: not valid JSON: {error}") from None
    if not isinstance(values, dict):
        raise ExportError(f"{path}: expected a JSON object, found {type(values).__name__}")
    return Settings(str(path), values)
