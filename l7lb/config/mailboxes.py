"""What the configuration says of mailboxes: how addresses become canonical, and which protocols are about them."""

from __future__ import annotations

import re
from typing import Annotated

from pydantic import AfterValidator, Field

from l7lb.config.addresses import parse_host
from l7lb.config.section import Reading, Section
from l7lb.config.wording import quoted, wrong
from l7lb.core import snapshot

LONGEST_ADDRESS = 320  # RFC 3696: 64 for the local part, 255 for the domain, and the @

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


AddressGlob = Annotated[str, AfterValidator(_address_glob)]
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
