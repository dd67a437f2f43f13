"""The formats of strings: for each a form that is certainly right, and one that holds all that may be right.

Texts are made in the first. The second is for telling apart what may not be of a format. A name that is not
here says nothing about values, as the standard has it.
"""

from __future__ import annotations

_YEAR = r"[1-9]\d{3}"
_MONTH_DAY = (
    r"(?:(?:0[13578]|1[02])-(?:0[1-9]|[12]\d|3[01])|(?:0[469]|11)-(?:0[1-9]|[12]\d|30)"
    r"|02-(?:0[1-9]|1\d|2[0-8]))"
)
_TIME = r"(?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?(?:Z|[+-](?:[01]\d|2[0-3]):[0-5]\d)"
_BYTE = r"(?:25[0-5]|2[0-4]\d|1\d\d|[1-9]?\d)"


def _label(most: int) -> str:
    """A part of a host's name, with no hyphens in places 3 and 4 at once: those mark encoded names."""
    if most < 6:
        most = min(most, 4)
        return f"[a-z0-9](?:[a-z0-9-]{{0,{most - 2}}}[a-z0-9])?" if most > 1 else "[a-z0-9]"
    inner = f"(?:[a-z0-9][a-z0-9-]{{0,{most - 4}}}|-[a-z0-9]?|-[a-z0-9][a-z0-9-]{{1,{most - 5}}})"
    return f"[a-z0-9](?:[a-z0-9]|[a-z0-9-]{inner}?[a-z0-9])?"


_LABEL = _label(32)
_HOST = rf"{_LABEL}(?:\.{_LABEL}){{0,3}}"
_EMAIL = rf"[a-z0-9]+(?:[._+-][a-z0-9]+){{0,3}}@{_LABEL}(?:\.{_LABEL}){{1,3}}"
_SEGMENTS = r"(?:/[A-Za-z0-9._~-]*){0,10}"
_URI = rf"https?://{_HOST}(?::[1-9]\d{{0,3}})?{_SEGMENTS}"
_POINTER = r"(?:/(?:[A-Za-z0-9_.-]|~[01])*)*"

FORMATS = {
    "date": f"{_YEAR}-{_MONTH_DAY}",
    "time": _TIME,
    "date-time": f"{_YEAR}-{_MONTH_DAY}T{_TIME}",
    "duration": r"P(?:\d{1,4}[WD]|T(?:\d{1,4}H(?:\d{1,4}M(?:\d{1,4}S)?)?|\d{1,4}M|\d{1,4}S))",
    "email": _EMAIL,
    "idn-email": _EMAIL,
    "hostname": _HOST,
    "idn-hostname": _HOST,
    "ipv4": rf"{_BYTE}(?:\.{_BYTE}){{3}}",
    "ipv6": r"[0-9a-f]{1,4}(?::[0-9a-f]{1,4}){7}",
    "uri": _URI,
    "iri": _URI,
    "uri-reference": rf"(?:https?://{_HOST}(?::[1-9]\d{{0,3}})?)?(?:/[A-Za-z0-9._~-]+){{0,10}}/?",
    "iri-reference": rf"(?:https?://{_HOST}(?::[1-9]\d{{0,3}})?)?(?:/[A-Za-z0-9._~-]+){{0,10}}/?",
    "uri-template": rf"(?:https?://{_HOST})?(?:/(?:[A-Za-z0-9._~-]+|\{{[a-z][a-z0-9_]*\}}))*",
    "base64": r"(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/]{2}==|[A-Za-z0-9+/]{3}=)?",
    "uuid": r"[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}",
    "json-pointer": _POINTER,
    "relative-json-pointer": rf"(?:0|[1-9]\d{{0,3}})(?:#|{_POINTER})",
    "regex": r"\^?(?:(?:[A-Za-z0-9 _/:@-]|\\[dws.]|\[(?:[a-z0-9_]|a-z|A-Z|0-9)+\])(?:[*+?])?)*\$?",
}
"""The formats that are enforced: common forms of each, not every one that its standard allows."""

WIDEST = {
    "date": r"\d[\s\S]*-[\s\S]*",
    "time": r"\d[\s\S]*:[\s\S]*",
    "date-time": r"\d[\s\S]*:[\s\S]*",
    "duration": r"P[\s\S]*",
    "email": r"[\s\S]*@[\s\S]*",
    "idn-email": r"[\s\S]*@[\s\S]*",
    "hostname": r"[^ /:@_]*",
    "ipv4": r"[\d.]*",
    "ipv6": r"[\s\S]*:[\s\S]*",
    "uri": r"[\s\S]*:[\s\S]*",
    "iri": r"[\s\S]*:[\s\S]*",
    "uuid": r"[0-9a-fA-F{}:urnid-]*",
    "json-pointer": r"(?:/[\s\S]*)?",
    "relative-json-pointer": r"\d[\s\S]*",
}
"""Whole texts; one that is not in here is not of the format, whoever judges. Others may be any text."""


def within(form: str, most: int) -> str:
    """A format, its texts about so long at most: the product with a length may have too many states."""
    if form in ("hostname", "idn-hostname"):
        label = _label(min(32, max(1, (most - 2) // 3)))
        return rf"{label}(?:\.{label}){{0,2}}"
    if form in ("email", "idn-email"):
        size = min(32, max(1, (most - 4) // 5))
        name, label = f"[a-z0-9]{{1,{size}}}", _label(size)
        return rf"{name}(?:[._+-]{name})?@{label}(?:\.{label}){{1,2}}"
    if form in ("uri", "iri", "uri-reference", "iri-reference"):
        size = min(32, max(1, (most - 10) // 6))
        label, rest = _label(size), most - len("https://") - 3 * size - 2
        path = f"(?:/[A-Za-z0-9._~-]{{0,{min(64, rest // 4 - 1)}}}){{0,4}}" if rest >= 4 else ""
        return rf"https?://{label}(?:\.{label}){{1,2}}{path}"
    return FORMATS[form]
