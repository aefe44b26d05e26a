"""Reads the fields of a JSON body: each is checked and used, known to change nothing, or refused.

null is the same as absent, as in the servers whose routes these are.
"""

import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic_core import from_json

from lectern_common.errors import InvalidRequest
from lectern_common.words import inert_name
from teacher_server.engine.seam import ModelFacts
from teacher_server.rpc.limits import Limits

ONLY_SCORES = "this teacher only scores the tokens that it is given and never writes any"

_SHOWN_CHARACTERS = 60  # of a field's name


def body_fields(body: bytes) -> "Fields":
    """Returns the fields of a body.

    Raises:
        InvalidRequest: it is not one JSON object.
    """
    try:
        values = from_json(body, allow_inf_nan=False)
    except (ValueError, RecursionError) as error:
        raise InvalidRequest(f"the body is not JSON: {str(error)[:200]}") from None
    return Fields(values, "")


class Fields:
    """The fields of one JSON object; each may be taken once.

    Args:
        values: the object.
        path: its name in the body, "" for the body itself.

    Raises:
        InvalidRequest: it is no object.
    """

    def __init__(self, values: object, path: str) -> None:
        self._path = path
        if not isinstance(values, dict):
            raise InvalidRequest(f"{path or 'the body'} is not a JSON object", field=path or None)
        self._left = {name: value for name, value in values.items() if value is not None}

    def name(self, field: str) -> str:
        """Returns a field's dotted name."""
        return f"{self._path}.{field}" if self._path else field

    def refusal(self, field: str, why: str) -> InvalidRequest:
        """Returns the error for a field; `why` goes on after its name."""
        name = self.name(inert_name(field[:_SHOWN_CHARACTERS]))  # which a client may have made up
        return InvalidRequest(f"{name} {why}", field=name)

    def take(self, field: str) -> Any:
        """Returns a field's value, None if it is absent."""
        return self._left.pop(field, None)

    def within(self, field: str) -> "Fields":
        """Returns the fields of an object in a field; of an empty one if it is absent."""
        return Fields(self._left.pop(field, {}), self.name(field))

    def text(self, field: str) -> str:
        """Returns a short printable text, "" if it is absent."""
        value = self.take(field)
        if value is None:
            return ""
        if not isinstance(value, str) or len(value) > 64 or not (value + " ").isprintable():
            raise self.refusal(field, "must be a text of at most 64 printable characters")
        if not value.isascii():
            raise self.refusal(field, "must be ASCII")
        return value

    def whole(self, field: str, least: int, most: int, why: str = "") -> int | None:
        """Returns a whole number of a range, None if it is absent. `why` explains the range."""
        value = self.take(field)
        if value is None:
            return None
        if type(value) is not int or not least <= value <= most:
            raise self.refusal(
                field, f"is {_shown(value)}; it must be a whole number from {least} to {most}{why}"
            )
        return value

    def temperature(self) -> float:
        """Returns `temperature`, 1 if it is absent."""
        value = self.take("temperature")
        if value is None:
            return 1.0
        if type(value) not in (int, float) or not 0 < value < math.inf or value > 1e300:
            raise self.refusal(
                "temperature",
                f"is {_shown(value)}; log-probabilities are those of logits / temperature, so it "
                "must be a finite number above 0 (1: the model's own)",
            )
        return float(value)

    def writes_nothing(self, field: str, default: str) -> None:
        """Takes how many tokens are to be written, which must be 0 or 1; none ever is.

        1 is what servers need that cannot write none. `default` says what absent means there.
        """
        value = self.take(field)
        if value is None:
            raise self.refusal(field, f"is missing, which means {default}; {ONLY_SCORES}: set 0")
        if type(value) is not int or value not in (0, 1):
            raise self.refusal(
                field, f"is {_shown(value)}; {ONLY_SCORES}: set 0 (1 is taken for 0)"
            )

    def finish(self, neutral: Mapping[str, tuple[object, ...]], free: Collection[str]) -> None:
        """Raises InvalidRequest for a field that is left and would change what is asked.

        Args:
            neutral: field -> the values that change nothing; () means that there is none.
            free: fields of which no value does.
        """
        for field, value in self._left.items():
            if field in free:
                continue
            allowed = neutral.get(field)
            if allowed is None:
                raise self.refusal(field, f"is not known here; leave it out ({ONLY_SCORES})")
            if value not in allowed:
                hint = f", or set {_shown(allowed[0])}" if allowed else ""
                raise self.refusal(field, f"is {_shown(value)}; {ONLY_SCORES}: leave it out{hint}")


def sequences_of(
    fields: Fields, field: str, facts: ModelFacts, limits: Limits
) -> tuple[list[npt.NDArray[np.uint32]], bool]:
    """Returns the token ids of one list of ids, or of a list of such lists; True for the latter.

    Raises:
        InvalidRequest: they are missing, not ids of the model, or beyond a limit.
    """
    value = fields.take(field)
    if not isinstance(value, list) or not value:
        what = "is missing" if value is None else f"is {_shown(value)}"
        raise fields.refusal(
            field, f"{what}; it must be a list of token ids, or of such lists (text is not taken)"
        )
    is_list = isinstance(value[0], list)
    lists = value if is_list else [value]
    if len(lists) > limits.max_sequences:
        raise fields.refusal(
            field, f"has {len(lists)} sequences; it must have at most {limits.max_sequences}"
        )
    total = 0
    for index, ids in enumerate(lists):
        name = f"{field}[{index}]" if is_list else field
        if not isinstance(ids, list) or not 1 <= len(ids) <= limits.max_sequence_tokens:
            what = f"has {len(ids)} tokens" if isinstance(ids, list) else f"is {_shown(ids)}"
            raise fields.refusal(
                name, f"{what}; it must be a list of 1 to {limits.max_sequence_tokens} token ids"
            )
        total += len(ids)
    if total > limits.max_tokens:
        raise fields.refusal(
            field, f"has {total} tokens; a request holds at most {limits.max_tokens}"
        )
    return [
        token_ids(fields, f"{field}[{index}]" if is_list else field, ids, 0, facts).astype(
            np.uint32
        )
        for index, ids in enumerate(lists)
    ], is_list


def token_ids(
    fields: Fields, field: str, ids: list[Any], least: int, facts: ModelFacts
) -> npt.NDArray[np.int64]:
    """Returns a list of ids as an array; each from `least` to the model's largest.

    Raises:
        InvalidRequest: names the first that is not.
    """
    for index, value in enumerate(ids):
        if type(value) is not int or not least <= value < facts.logit_width:
            raise fields.refusal(
                f"{field}[{index}]",
                f"is {_shown(value)}; it must be a token id from {least} to "
                f"{facts.logit_width - 1}",
            )
    return np.array(ids, np.int64)


def _shown(value: object) -> str:
    """Returns a value as JSON would have it, shortened."""
    if isinstance(value, list | dict):
        return "a list" if isinstance(value, list) else "an object"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int) and abs(value) >= 1 << 128:  # str() refuses thousands of digits
        return "a number of more than 38 digits"
    text = ascii(value)
    return text if len(text) <= 40 else f"{text[:40]}..."
