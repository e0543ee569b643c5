"""Codes of languages, as models and data sets write them, to the identifier's own.

Models write ISO 639-1 (M2M-100: ``zh``), that with a country (mBART: ``zh_CN``), or ISO 639-3 with
a script (NLLB: ``zho_Hans``). The identifier has a name of its own for each language that it knows,
mostly ISO 639-1. It does not tell scripts or countries apart: Simplified and Traditional Chinese
are one. Languages so near to each other that sentences are often mistaken count as one too.

Not here: whose language a text is (``off_target``).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from difflib import get_close_matches
from types import MappingProxyType

_LONG = """
afr af, amh am, arb ar, ara ar, acm ar, acq ar, aeb ar, ajp ar, apc ar, ars ar, asm as, aze az,
azj az, bak ba, bel be, bul bg, ben bn, bre br, bos bs, cat ca, ces cs, cym cy, dan da, deu de,
dzo dz, ell el, eng en, epo eo, spa es, est et, eus eu, fas fa, pes fa, prs fa, fin fi, fao fo,
fra fr, fry fy, gle ga, gla gd, glg gl, grn gug, gn gug, guj gu, hau ha, heb he, iw he, hin hi,
hrv hr, hat ht, hun hu, hye hy, ind id, ibo ig, isl is, ita it, jpn ja, jav jv, jw jv, kat ka,
kaz kk, khm km, kan kn, kor ko, kmr ku, kir ky, lat la, ltz lb, lug lg, lin ln, lao lo, lit lt,
lav lv, lvs lv, mlg mg, plt mg, mkd mk, mal ml, mon mn, khk mn, mar mr, msa ms, zsm ms, mlt mt,
mya my, nep ne, npi ne, nld nl, nno nn, nob no, nor no, nb no, oci oc, orm om, gaz om, ori or,
ory or, pan pa, pol pl, pus ps, pbt ps, por pt, que qu, quy qu, ron ro, rus ru, kin rw, san sa,
sme se, sin si, slk sk, slv sl, sna sn, som so, sqi sq, als sq, srp sr, sot st, swe sv, swa sw,
swh sw, tam ta, tel te, tgk tg, tha th, tuk tk, tgl tl, fil tl, tur tr, tat tt, uig ug, ukr uk,
urd ur, uzb uz, uzn uz, vie vi, vol vo, wln wa, xho xh, yor yo, zho zh, cmn zh, zul zu, ns nso
"""
"""Codes that the identifier writes otherwise, each with its own."""

SHORT: Mapping[str, str] = MappingProxyType(dict([entry.split() for entry in _LONG.split(",")]))
"""A code of ISO 639-3, or an old one -> the identifier's."""

NEAR = (
    ("zh", "yue", "wuu"),
    ("hr", "sr", "bs"),
    ("id", "ms"),
    ("no", "nn", "da"),
    ("ar", "arz", "ary"),
    ("he", "hbo"),
    ("es", "an", "ext"),
    ("it", "vec", "lij"),
    ("lv", "ltg"),
    ("uz", "uzs"),
    ("ku", "sdh"),
    ("el", "grc"),
    ("en", "pcm"),
    ("ht", "gcf", "gcr"),
    ("nso", "st"),
    ("xh", "zu"),
    ("mr", "gom"),
)
"""Languages that count as one, by the first of them."""

_FIRST = {one: near[0] for near in NEAR for one in near}


def counted_as(own: str) -> str:
    """The language that stands for one of the identifier's and for all that are near to it.

    Args:
        own: the identifier's code.
    """
    return _FIRST.get(own, own)


def language_of(code: str, known: Iterable[str]) -> str | None:
    """What a language counts as by the identifier; None for one that it does not know.

    Args:
        code: as a model or a data set writes it: ``zho_Hans``, ``zh_CN``, ``zh-Hant``, ``zh``.
        known: all of the identifier's codes.
    """
    own = _short(code)
    return counted_as(own) if own in known else None


def nearest_codes(code: str, among: Iterable[str], *, most: int = 3) -> list[str]:
    """Codes that somebody may have meant by one: first of the same language, then alike in letters.

    Args:
        code: as it was written.
        among: codes that there are.
        most: how many are named at most.
    """
    listed = list(among)
    same = [one for one in listed if _short(one) == _short(code)]
    alike = get_close_matches(code, listed, n=most, cutoff=0.4)
    return list(dict.fromkeys([*same, *alike]))[:most]


def _short(code: str) -> str:
    """A code's language without script and country, by its short code where it has one."""
    language = re.split(r"[-_]", code.strip(), maxsplit=1)[0].lower()
    return SHORT.get(language, language)
