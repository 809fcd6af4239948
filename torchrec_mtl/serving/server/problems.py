"""What is wrong with a request, and the answer that says so."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong.

    Attributes:
        at: where in the body, such as ``candidates[3].price`` or ``user``; empty for the body as a whole.
        message: what was found, and what to do.
    """

    at: str
    message: str


class RequestError(Exception):
    """A request that is answered with an error.

    Attributes:
        status: of HTTP.
        problems: what is wrong, each with its place; may be empty where ``message`` says all.
        headers: of the answer.
    """

    def __init__(
        self, status: int, message: str, problems: Sequence[Problem] = (), headers: dict[str, str] | None = None
    ) -> None:
        super().__init__(message)
        self.status = status
        self.problems = tuple(problems)
        self.headers = headers or {}


def refuse(problems: Sequence[Problem]) -> None:
    """Raise one error for all problems, where there are any.

    Raises:
        RequestError: 422.
    """
    if problems:
        count = len(problems)
        raise RequestError(422, f"{count} problem{'s' if count > 1 else ''} with the request", problems)
