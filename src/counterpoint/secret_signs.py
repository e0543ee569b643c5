"""What is called a secret, and what looks like one: functions of a name or a text alone.

A name is read word by word (``authToken``, ``DB_PASS``, ``api-key``), so that an author is no
``auth`` and a keyboard no ``key``. An address is read as those read it who get it wrong: its
password may hold ``@`` and ``/``, and all of it may be percent-encoded. Where that leaves two
readings, the one that hides more is taken.

Not here: which values are secrets at this moment, and where they are masked (``masking``).
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Any
from urllib.parse import unquote

MASK = "***"

SHORTEST = 8
"""Characters from which a value that is called a secret is one wherever it turns up."""

SHORTEST_PASSWORD = 6
"""The same for what is called a password and is no plain word or number."""

_WORDS = frozenset(
    (
        *("token", "key", "secret", "secrets", "auth", "oauth", "authorization", "bearer", "jwt"),
        *("credential", "credentials", "creds", "cookie", "cookies", "webhook", "webhooks"),
        *("apikey", "apikeys", "password", "passwords", "passwd", "passphrase", "passcode"),
        "mnemonic",
    )
)
"""Anywhere in a name."""

_LAST = frozenset(("pass", "pat", "pats", "pw", "pwd"))
"""At the end of a name: a pass over the data, and a pass rate, are no passwords."""

_PLURAL = frozenset(("tokens", "keys"))
"""At the end of a variable's name; in lower case these are counts and columns."""

_GLUED = re.compile(
    r".+(?:password|passwd|passphrase|secrets?|token|credentials?|webhook)|"
    r"(?:api|access|account|auth|client|deploy|encryption|license|master|private|secret|service|"
    r"shared|signing|ssh|storage|subscription)keys?|"
    r"(?:admin|db|database|ftp|imap|ldap|mail|mongo|my|mysql|pg|postgres|proxy|redis|root|smtp|ssh|"
    r"sudo|user|vpn)(?:pass|pwd|pw)"
)
"""Words that were written together."""

_DESCRIBING = frozenset(
    (
        *("type", "method", "mode", "kind", "algorithm", "alg", "provider", "backend", "format"),
        *("size", "length", "bits", "count", "limit", "timeout", "ttl", "enabled", "required"),
    )
)
"""At the end of a name: it says something of a secret, and is none."""

_COMMON = frozenset(
    (
        *("password", "changeme", "postgres", "disabled", "required", "optional", "username"),
        *("anonymous", "kerberos", "localhost", "undefined", "redacted", "negotiate"),
        *("development", "production", "interactive"),
    )
)
"""Values that would hide ordinary words, and nothing that is worth it."""

_PARTS = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_]+")

_PEM = (
    r"-----BEGIN [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----"
    r"(?:(?:[\w\s+/=:,.\\-](?!-----BEGIN))*?-----END [A-Z0-9 ]*PRIVATE KEY(?: BLOCK)?-----|"
    r"(?:[\s\\nr]*[A-Za-z0-9+/=]{16,})*)"
)
"""Whole, or cut off somewhere: then as much as looks like base64."""

_KEYS = re.compile(
    "|".join(
        (
            r"\bhf_[A-Za-z0-9]{20,}|\bapi_org_[A-Za-z0-9]{20,}",  # Hugging Face
            r"(?<![\w-])sk-(?=[\w-]{0,60}\d)[\w-]{20,}",  # OpenAI, Anthropic and their like
            r"\b[srp]k_(?:live|test)_\w{16,}|\bwhsec_[\w+/=-]{16,}",  # Stripe
            r"\bgh[pousr]_[A-Za-z0-9]{30,}|\bgithub_pat_\w{30,}",
            r"\bgl(?:pat|dt|rt|ptt|cbt|ft|soat|agent)-[\w.-]{16,}",  # GitLab
            r"\b(?:AKIA|ASIA)[0-9A-Z]{16}\b",  # AWS
            r"\bAIza[\w-]{30,}|\bya29\.[\w.-]{20,}|\bGOCSPX-[\w-]{20,}",  # Google
            r"\bxox[abeoprs]-[\w.-]{10,}|\bxapp-\d-[\w-]{20,}",  # Slack
            r"\bnpm_[A-Za-z0-9]{30,}|\bpypi-[\w-]{30,}|\bdckr_[op]at_[\w-]{20,}",
            r"\b(?:gsk|r8|xai|tgp_v1|wandb_v1|fw|pplx|nvapi|dop_v1|hvs|lin_api)[_.-](?=[\w-]{0,60}\d)"
            r"[\w-]{24,}",  # of those who rent machines and models
            r"\bSG\.[\w-]{16,}\.[\w-]{16,}|(?<!\d)\d{8,10}:AA[\w-]{30,}",  # SendGrid, Telegram
            r"\beyJ[\w-]{8,}\.[\w-]{4,}\.[\w-]*",  # JSON web tokens: {" in base64
            r"(?:\bhttps?:/{1,2})?\bhooks\.slack(?:-gov)?\.com/[\w/-]{8,}",
            r"(?:\bhttps?:/{1,2})?\b(?:\w{1,20}\.)?discord(?:app)?\.com/api/(?:v\d+/)?webhooks/[\w/-]+",
            r"(?:\bhttps?:/{1,2})?\b[\w-]{1,60}\.webhook\.office\.com/[\w/@-]+",
            _PEM,
        )
    )
)
"""Forms that give a key away."""

_COLON, _SLASH = r"(?::|%(?:25)*3A)", r"(?:/|%(?:25)*2F)"
_MARK = rf"(?:\b[a-z][a-z0-9+.-]{{1,20}}{_COLON}{_SLASH}{{1,2}}|(?<![\w:/%]){_SLASH}{{2}})"
_ADDRESS = re.compile(rf"({_MARK})((?:(?!{_MARK})[^\s\"<>])+)", re.IGNORECASE)
"""How an address begins, and all of it that could be its user, host and path.

Quotes of messages end it later on; an apostrophe may be part of a password.
"""

_AT, _ENCODED_AT = re.compile("@"), re.compile("@|%(?:25)*40", re.IGNORECASE)
_QUERY = re.compile(r"[?&;#][\w.~%\[\]-]*=|%(?:25)*3F[\w.~-]*%(?:25)*3D", re.IGNORECASE)
_PORT = re.compile(r"(?:[\w-]*\.[\w.-]*|localhost|\[[0-9a-f:.]+\]):\d{1,5}", re.IGNORECASE)
_ENDS_HOST = re.compile(rf"{_SLASH}|[?#]", re.IGNORECASE)

_PARAMETER = re.compile(
    r"(?:[?&;#]|%(?:25)*(?:3F|26|3B|23))([A-Za-z][\w.~\[\]-]{0,60})(=|%(?:25)*3D)", re.IGNORECASE
)
_GIVEN = re.compile(r"(?:[^&\s\"'<>#]|'(?=[\w%]))+")
_ENCODED_END = re.compile(r"%(?:25)*(?:26|23)", re.IGNORECASE)
_PARAMETERS = frozenset(
    (
        *("code", "sig", "signature", "pass", "pw", "pwd", "pat", "otp", "jwt", "sid", "sessionid"),
        *("session", "assertion", "hmac", "tokens", "keys"),
    )
)
"""Words of a parameter's name that say more in an address than elsewhere."""

_HEADER = re.compile(
    r"(\b(?:proxy-)?authorization[\"']?\s*[:=]\s*[\"']?(?:(?:basic|bearer|token|digest)\s+)?|"
    r"\bbearer\s+|\bx-[\w-]*(?:key|token)[\"']?\s*[:=]\s*[\"']?)(?!\*\*\*)[^\s\"',]{8,}",
    re.IGNORECASE,
)
_SETTING = re.compile(r"(?:^|[;&?\s,])\s*([A-Za-z][\w .-]{0,40}?)\s*=\s*([^;&\s\"']+)")
"""A part of a connection string: ``AccountKey=...;``, ``password=...``."""


def is_secret(name: str) -> bool:
    """Whether the value of an option or variable of this name is nobody's business."""
    words = _words(name)
    if not words or words[-1] in _DESCRIBING:
        return False
    if words == ["pwd"]:  # the working folder
        return False
    if words[-1] in _LAST or (words[-1] in _PLURAL and name.isupper()):
        return True
    return any(word in _WORDS or _GLUED.fullmatch(word) for word in words)


def is_worth_hiding(name: str, value: str) -> bool:
    """Whether a value that is called a secret can be told from ordinary text.

    Args:
        name: which ``is_secret``.
        value: "1", "main" and "password" cannot; what is called a password may be shorter than
            other secrets, if it is no plain word or number.
    """
    if value.strip().casefold() in _COMMON:
        return False
    words = _words(name)
    if words[-1] in _PLURAL and value.strip().isdigit():
        return False
    if len(value) >= SHORTEST:
        return True
    called = any(word in ("pwd", "pw") or "pass" in word for word in words)
    return called and len(value) >= SHORTEST_PASSWORD and not value.isalpha() | value.isdigit()


def hidden_in(value: str, *, named_one: bool = False) -> Iterator[str]:
    """The secrets that a text holds, each as it would turn up alone.

    Args:
        value: of a variable or an option.
        named_one: it is called a secret, so that each long part with letters and digits is one.
    """
    if named_one:
        yield from (part for part in re.split(r"[,;:\s]+", value) if _is_mixed(part))
    for one in (*_of_addresses(value), *_of_settings(value), *_of_json(value)):
        for form in {one, unquote(one)}:
            if is_worth_hiding("password", form):
                yield form


def addresses_masked(text: str) -> str:
    """A text without keys that are known by their form, and without the secrets of addresses."""
    # log lines repeat the names of their metrics and tensors
    return _known(text) if len(text) <= _SHORT else _masked(text)


_SHORT = 100


def _masked(text: str) -> str:
    text = _KEYS.sub(MASK, text)
    text = _ADDRESS.sub(lambda found: found[1] + _without_user(found[1], found[2]), text)
    return _HEADER.sub(rf"\1{MASK}", _without_credentials(text))


_known = lru_cache(maxsize=4096)(_masked)


def _words(name: str) -> list[str]:
    return [word.lower() for word in _PARTS.findall(name)]


def _user_ends(mark: str, rest: str) -> int:
    """Where in an address, without its mark, the ``@`` after user and password is; -1 for none."""
    at = _ENCODED_AT if "%" in mark else _AT
    host = _ENDS_HOST.split(rest, maxsplit=1)[0]
    if at.search(host) is None and (":" not in unquote(unquote(host)) or _PORT.fullmatch(host)):
        return -1
    query = _QUERY.search(rest)
    before = rest[: query.start()] if query and at.search(rest[: query.start()]) else rest
    return max((found.start() for found in at.finditer(before)), default=-1)


def _without_user(mark: str, rest: str) -> str:
    end = _user_ends(mark, rest)
    return rest if end < 0 else MASK + rest[end:]


def _credentials(text: str) -> Iterator[tuple[int, int]]:
    """Where the values of an address's parameters that are credentials begin and end."""
    last = 0
    for found in _PARAMETER.finditer(text):
        if found.start() < last or not _is_credential(found[1]):
            continue
        given = _GIVEN.match(text, found.end())
        if given is None:
            continue
        last = given.end()
        if "%" in found[2]:  # of an address inside another: its own end may come first
            end = _ENCODED_END.search(text, found.end(), last)
            last = end.start() if end else last
        yield found.end(), last


def _without_credentials(text: str) -> str:
    kept, last = [], 0
    for begin, end in _credentials(text):
        kept += [text[last:begin], MASK]
        last = end
    return "".join([*kept, text[last:]])


def _is_credential(name: str) -> bool:
    words = _words(name)
    return is_secret(name) or any(word in _PARAMETERS for word in words)


def _of_addresses(value: str) -> Iterator[str]:
    for mark, rest in _ADDRESS.findall(value):
        end = _user_ends(mark, rest)
        if end > 0:
            yield re.split(":|%3A", rest[:end], maxsplit=1, flags=re.IGNORECASE)[-1]
    for begin, end in _credentials(value):
        yield value[begin:end]


def _of_settings(value: str) -> Iterator[str]:
    for name, given in _SETTING.findall(value):
        if is_secret(name) or name == "pwd":
            yield given.rstrip(",")


def _of_json(value: str) -> Iterator[str]:
    if not value.lstrip().startswith(("{", "[")):
        return
    try:
        yield from _texts(json.loads(value))
    except (ValueError, RecursionError):
        return


def _texts(value: Any, name: str = "") -> Iterator[str]:
    if isinstance(value, dict):
        for key, part in value.items():
            yield from _texts(part, key)
    elif isinstance(value, list):
        for part in value:
            yield from _texts(part, name)
    elif isinstance(value, str) and is_secret(name) and is_worth_hiding(name, value):
        yield value


def _is_mixed(part: str) -> bool:
    digits = any(sign.isdigit() for sign in part)
    return len(part) >= SHORTEST and digits and any(sign.isalpha() for sign in part)
