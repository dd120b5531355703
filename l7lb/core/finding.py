"""What a health check found, beside the words that an operator reads."""

from __future__ import annotations

from typing import Self


class Finding(str):
    """The words, with what the server ``offers``: its protocol's extensions, as it names them."""

    offers: tuple[str, ...]

    def __new__(cls, words: str, offers: tuple[str, ...]) -> Self:
        made = super().__new__(cls, words)
        made.offers = offers
        return made
