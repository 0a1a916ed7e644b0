"""What texts in key files, worker registrations and request bodies must look like, and how to say so to people.

msgspec checks a text by a regex, and its error shows that regex; :func:`in_words` puts the rule there.
"""

from __future__ import annotations

from typing import Annotated, NamedTuple

import msgspec

__all__ = [
    "KEY_LIMIT_CHARACTERS",
    "ApiKeyText",
    "KeyName",
    "ReservationName",
    "Sha256Hex",
    "TcpEndpoint",
    "WorkerName",
    "in_words",
]

#: Longer credentials cannot be keys of ours; header bytes are bounded by the server anyway.
KEY_LIMIT_CHARACTERS = 512


class _Rule(NamedTuple):
    regex: str
    words: str


_API_KEY = _Rule(
    rf"^[!-~]{{8,{KEY_LIMIT_CHARACTERS}}}$", f"8 to {KEY_LIMIT_CHARACTERS} ASCII characters, none of them a space"
)
_KEY_NAME = _Rule(r"^[\w.@:-]{1,128}$", "1 to 128 letters, digits and any of _ . @ : -")
_SHA256 = _Rule(r"^[0-9a-fA-F]{64}$", "64 hexadecimal digits")
_RESERVATION = _Rule(r"^[\w.:-]{1,128}$", "1 to 128 letters, digits and any of _ . : -")
_WORKER = _Rule(r"^[\w.:@/-]{1,256}$", "1 to 256 letters, digits and any of _ . : @ / -")
_ENDPOINT = _Rule(r"^tcp://[^\s/]+:\d{1,5}$", "tcp://HOST:PORT")
_RULES = (_API_KEY, _KEY_NAME, _SHA256, _RESERVATION, _WORKER, _ENDPOINT)

ApiKeyText = Annotated[str, msgspec.Meta(pattern=_API_KEY.regex)]
KeyName = Annotated[str, msgspec.Meta(pattern=_KEY_NAME.regex)]
Sha256Hex = Annotated[str, msgspec.Meta(pattern=_SHA256.regex)]
ReservationName = Annotated[str, msgspec.Meta(pattern=_RESERVATION.regex)]
WorkerName = Annotated[str, msgspec.Meta(pattern=_WORKER.regex)]
TcpEndpoint = Annotated[str, msgspec.Meta(pattern=_ENDPOINT.regex)]


def in_words(error: msgspec.ValidationError) -> str:
    """The message of `error`; a text of the wrong form is told the rule, not the regex."""
    message = str(error)
    for rule in _RULES:
        message = message.replace(f"`str` matching regex {rule.regex!r}", rule.words)
    return message
