"""``stop_regex`` in bounded time.

SGLang looks for the pattern after every token, with Python's ``re``, which backtracks: ``(a+)+b`` stops every stream of the
engine for ever. Here the search is linear: Rust's regex, which comes with pydantic. What it does not know (look-around,
back references) is refused, and so is a pattern that is too long.
"""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Any

from pydantic_core import SchemaError, SchemaValidator
from sglang.srt.sampling import sampling_params

__all__ = ["MAX_CHARACTERS", "LinearSearch", "fault"]

MAX_CHARACTERS = 1000
"""Of a pattern with its repetitions written out; and the tokens at an answer's end that are searched for it, which is all it
can match unless it repeats without a bound (SGLang decodes and searches the whole answer after each token)."""


@lru_cache(maxsize=1024)
def _validator(pattern: str) -> SchemaValidator:
    return SchemaValidator({"type": "str", "pattern": pattern})


class LinearSearch:
    """In the place of the module ``re`` where SGLang searches answers for a ``stop_regex``."""

    error = re.error

    @staticmethod
    def search(pattern: str, text: str) -> bool | None:
        """True, or None without a match. Raises ``re.error``, with which SGLang ends the request."""
        try:
            return _validator(pattern).isinstance_python(text) or None
        except SchemaError as error:
            raise re.error(_fault_of(error)) from None


def _fault_of(error: SchemaError) -> str:
    return str(error).splitlines()[-1].strip().removeprefix("error: ").removeprefix("SchemaError: ")


def fault(pattern: str) -> str | None:
    """What about ``pattern`` is not supported; None: nothing."""
    try:
        characters = _written_out(sampling_params.sre_parse.parse(pattern))
        if characters > MAX_CHARACTERS:
            return f"{characters} characters with its repetitions written out, at most {MAX_CHARACTERS} are allowed"
        _validator(pattern)
    except SchemaError as error:
        return _fault_of(error)
    except (re.error, OverflowError) as error:
        return str(error)
    except RecursionError:
        return "nested too deep"
    return None


def _written_out(parsed: Any) -> int:
    """Characters of a pattern (SGLang's ``sre_parse`` tree) with every repetition written out as often as it may occur,
    one without a bound once more than it must."""
    parse, total = sampling_params.sre_parse, 0
    for kind, value in parsed:
        if kind is parse.SUBPATTERN:
            total += _written_out(value[-1])
        elif kind is parse.BRANCH:
            total += sum(map(_written_out, value[1]))
        elif kind in (parse.MAX_REPEAT, parse.MIN_REPEAT):
            least, most, inner = value
            times = least + 1 if most is parse.MAXREPEAT else most
            total += times * max(1, _written_out(inner))
        else:
            total += 1
    return total
