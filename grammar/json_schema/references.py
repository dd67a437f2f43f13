"""A schema's document: where references lead, by address, anchor or JSON pointer."""

from __future__ import annotations

from typing import Any, NamedTuple
from urllib.parse import unquote, urldefrag

from ...errors import GrammarError
from .drafts import OPEN, Modern, below, draft_of, id_of, joined_address

_DYNAMIC = "dynamic:"
_SPECIFICATIONS = "json-schema.org/"


class _Place(NamedTuple):
    """A schema as it was given, with what is true where it stands."""

    schema: Any
    base: str
    draft: int | None


class Document:
    """The schemas of a document in modern terms; each ``$ref`` in them is what ``resolve`` takes."""

    def __init__(self, given: Any) -> None:
        draft = draft_of(given)
        self._base = joined_address("", id_of(given, draft) or "")[0] if isinstance(given, dict) else ""
        self._resources: dict[str, _Place] = {}
        self._anchors: dict[tuple[str, str], _Place] = {}
        self._dynamic: dict[str, int] = {}  # how many schemas have a dynamic anchor of the name
        self._known: dict[str, Any] = {}
        self._modern = Modern(self._address, is_open=isinstance(given, dict) and given.get(OPEN) is True)
        root = _Place(given, self._base, draft)
        self._resources[self._base] = self._resources[""] = root
        self._collect(root)
        self.schema = self._modern.schema(given, self._base, draft)

    def resolve(self, reference: str) -> Any:
        """The schema that it leads to. Raises GrammarError if there is none."""
        if reference not in self._known:
            place = self._place(reference)
            self._known[reference] = self._modern.schema(*place)
        return self._known[reference]

    def _address(self, reference: str, base: str) -> str:
        target, fragment = joined_address(base, reference)
        return f"{'' if target == self._base else target}#{fragment}"

    def _collect(self, place: _Place) -> None:
        """Note the addresses and anchors of all schemas."""
        todo = [place]
        while todo:
            given, base, draft = todo.pop()
            if not isinstance(given, dict):
                continue
            draft = draft_of(given, draft)
            names = [id_of(given, draft)]
            if draft is None and isinstance(given.get("id"), str) and given["id"].startswith("#"):
                names.append(given["id"])
            for name in filter(None, names):
                uri, fragment = joined_address(base, name)
                if uri != base and not name.startswith("#"):
                    base = uri
                    self._resources.setdefault(uri, _Place(given, base, draft))
                if fragment:
                    self._anchors.setdefault((base, fragment), _Place(given, base, draft))
            for name in ("$anchor", "$dynamicAnchor"):
                if isinstance(given.get(name), str):
                    self._anchors.setdefault((base, given[name]), _Place(given, base, draft))
            marks = [given.get("$dynamicAnchor"), "" if given.get("$recursiveAnchor") is True else None]
            for mark in marks:
                if isinstance(mark, str):
                    self._dynamic[mark] = self._dynamic.get(mark, 0) + 1
            todo += [_Place(one, base, draft) for one in below(given)]

    def _place(self, reference: str) -> _Place:
        is_dynamic = reference.startswith(_DYNAMIC)
        uri, fragment = urldefrag(reference.removeprefix(_DYNAMIC))
        if is_dynamic and self._dynamic.get(fragment, 0) > 1:
            raise GrammarError(
                f"a dynamic reference {'#' + fragment!r} that several schemas answer to is not supported"
            )
        place = self._resources.get(uri) or self._specification(uri)
        if place is None:
            raise GrammarError(f"$ref {reference!r} leads out of the schema: put what it means into $defs")
        if not fragment:
            return place
        if fragment.startswith("/"):
            return self._at(place, fragment, reference)
        anchor = self._anchors.get((place.base, fragment))
        if anchor is None:
            raise GrammarError(f"$ref {reference!r} leads nowhere")
        return anchor

    def _at(self, place: _Place, pointer: str, reference: str) -> _Place:
        target, base, draft = place
        for i, part in enumerate(pointer.split("/")[1:]):
            if i and isinstance(target, dict):
                draft = draft_of(target, draft)
                base = joined_address(base, id_of(target, draft) or "")[0]
            name = unquote(part).replace("~1", "/").replace("~0", "~")
            if isinstance(target, list) and name.isdecimal() and int(name) < len(target):
                target = target[int(name)]
            elif isinstance(target, dict) and name in target:
                target = target[name]
            else:
                raise GrammarError(f"$ref {reference!r} leads nowhere")
        return _Place(target, base, draft)

    def _specification(self, uri: str) -> _Place | None:
        """A schema of schemas, which need not be in the document."""
        if _SPECIFICATIONS not in uri:
            return None
        from jsonschema_specifications import REGISTRY

        for address in (uri, f"{uri}#"):
            if address in REGISTRY:
                given = REGISTRY.contents(address)
                place = _Place(given, uri, draft_of(given))
                self._resources[uri] = place
                self._collect(place)
                return place
        return None
