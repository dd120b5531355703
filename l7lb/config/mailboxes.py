"""What the configuration says of mailboxes: how addresses become canonical, and which protocols are about them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from l7lb.config.addresses import parse_host
from l7lb.config.section import Reading, Section
from l7lb.config.settings import MoveHook
from l7lb.config.units import Duration
from l7lb.config.wording import listing, quoted, wrong
from l7lb.core import snapshot

LONGEST_ADDRESS = 320  # RFC 3696: 64 for the local part, 255 for the domain, and the @

LONGEST_HOOK = 60.0  # seconds
PLACEHOLDERS = ("{mailbox}", "{pool}", "{from}", "{to}")
_PLACEHOLDER = re.compile(r"\{[^{}]*\}")
_DELIMITER = re.compile(r"[!#$%&'*+./=?^_`{|}~-]{1,8}\Z")


def _delimiter(value: str) -> str:
    if not _DELIMITER.match(value):
        raise wrong(f"{quoted(value)} is not a delimiter: write one character such as +, or several such as +-")
    return value


def _domain(value: str) -> str:
    if value.startswith("@"):
        raise wrong(f"{quoted(value)} is not a domain: write it without @")
    try:
        return parse_host(value)
    except ValueError as error:
        raise wrong(str(error)) from None


def _address_glob(value: str) -> str:
    if "**" in value:
        raise wrong(f"{quoted(value)}: one * matches any run of characters; write it once")
    if not value or len(value) > LONGEST_ADDRESS:
        raise wrong(f"{quoted(value)} is not a glob of addresses, such as *@example.com")
    if not value.isprintable() or any(character in value for character in ' "<>'):
        raise wrong(f"{quoted(value)} has a character that an address does not have: write it bare, as *@example.com")
    return value


def _argument(value: str) -> str:
    if "\0" in value:
        raise wrong("has a null character, which no argument can hold")
    unknown = [name for name in _PLACEHOLDER.findall(value) if name not in PLACEHOLDERS]
    if unknown:
        raise wrong(f"{quoted(unknown[0])} is nothing that a move knows: {listing(PLACEHOLDERS)}")
    return value


def _hook_time(value: float) -> float:
    if value > LONGEST_HOOK:
        raise wrong(f"must be at most {LONGEST_HOOK:g}s: logins wait meanwhile")
    return value


AddressGlob = Annotated[str, AfterValidator(_address_glob)]
Argument = Annotated[str, AfterValidator(_argument)]
Delimiter = Annotated[str, AfterValidator(_delimiter)]
Domain = Annotated[str, AfterValidator(_domain)]


class AddressRules(Section):
    """How an address or login becomes canonical, so that a mailbox has one name in every protocol."""

    lower_case: bool = Field(
        default=True,
        description="Whether upper and lower case are one in the local part; in the domain they always are.",
    )
    recipient_delimiter: Delimiter | None = Field(
        default=None,
        description="What begins the detail in user+detail@example.com, which is left out; of several characters, such "
        'as "+-", each one does. Without it, nothing is left out.',
    )
    default_domain: Domain | None = Field(
        default=None, description="The domain of addresses and logins that have none; without it, they stay so."
    )

    def compiled(self) -> snapshot.Addresses:
        """The rules for the data path."""
        return snapshot.Addresses(self.lower_case, self.recipient_delimiter or "", self.default_domain or "")


def address_rules(reading: Reading) -> snapshot.Addresses:
    """The file's rules, or those of a file that gives none."""
    return next((rules.compiled() for rules in reading.each(AddressRules)), snapshot.Addresses())


class Mailboxes(Section):
    """How mailboxes change servers."""

    move_hook: Annotated[list[Argument], Field(min_length=1, max_length=100)] | None = Field(
        default=None,
        description="A command that runs when the sessions of a mailbox have ended and before it is on its new server: "
        "its program and arguments, in which {mailbox}, {pool}, {from} and {to} are filled in. Where it fails, the "
        "mailbox stays.",
    )
    move_hook_timeout: Annotated[Duration, AfterValidator(_hook_time)] = Field(
        default=30.0, description="How long the command may take; then it is killed, and the mailbox stays."
    )

    def compiled(self) -> MoveHook | None:
        """The hook, where there is one."""
        return MoveHook(tuple(self.move_hook), self.move_hook_timeout) if self.move_hook else None
