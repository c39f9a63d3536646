"""Put placeholders for what can identify or reach a person."""

from __future__ import annotations

import re
from typing import Self

from pydantic import model_validator

from lspm_ray.documents.rule import Drop, Rule

# All are linear in the length of the text: none starts in the middle of a run, and every repetition is bounded.
_EMAIL = re.compile(r"(?<![\w.%+-])[\w.%+-]{1,64}@(?:[\w-]{1,63}\.){1,8}[^\W\d_][\w-]{1,62}")
_OCTET = "(?:25[0-5]|2[0-4][0-9]|[01]?[0-9]?[0-9])"
_IP = re.compile(rf"(?<![\w.])(?:{_OCTET}\.){{3}}{_OCTET}(?!\w|\.\w)")
_PHONE = re.compile(
    r"(?<![\w.,:/+-])(?:"
    r"(?:\+|00)[1-9](?:[ .\-/()]{0,2}[0-9]){7,14}"  # with a country code
    r"|\(?0[1-9][0-9]{1,4}\)?(?:[ \-/]{0,2}[0-9]){5,9}"  # area code with the 0 that most countries dial before it
    r"|0[1-9](?:[ .\-][0-9]{2}){4}"  # in pairs, as in France
    r"|(?:1[ .\-])?(?:\([2-9][0-9]{2}\) ?|[2-9][0-9]{2}[ .\-])[2-9][0-9]{2}[ .\-][0-9]{4}"  # North America
    r")(?![\w:]|[.,/-][0-9])"
)


class MaskPrivate(Rule):
    """Replace e-mail addresses, IPv4 addresses and phone numbers by `<email>`, `<ip>` and `<phone>`.

    By their form alone: some numbers that look like one are masked too, and a phone number without a country code,
    an area code with its 0, or the grouping of North America is not.

    Attributes:
        emails: mask e-mail addresses.
        ips: mask IPv4 addresses; version numbers of four parts look the same.
        phones: mask phone numbers.
    """

    emails: bool = True
    ips: bool = True
    phones: bool = True

    @model_validator(mode="after")
    def _masks_something(self) -> Self:
        if not (self.emails or self.ips or self.phones):
            raise ValueError("nothing is to be masked: switch on emails, ips or phones, or leave the rule out")
        return self

    def apply(self, text: str) -> str | Drop:
        """The text with placeholders."""
        if self.emails and "@" in text:
            text = _EMAIL.sub("<email>", text)
        if self.ips:
            text = _IP.sub("<ip>", text)
        if self.phones:
            text = _PHONE.sub("<phone>", text)
        return text
