"""JSON Schema as rules: what is enforced is enforced exactly, and everything else is refused by name.

Every text of the result is a document that the schema accepts, in one form: as ``json.dumps`` writes it
(``", "`` and ``": "``), declared properties in their order. Where a schema leaves more open than a model
needs, less is generated:

- objects that declare ``properties`` or ``patternProperties`` get no others, lists no items behind
  ``prefixItems``, and values without a ``type`` are of the types that the keywords speak of, unless the
  schema says otherwise. ``"x-open": true`` in the outermost schema gives all of these the meaning of the
  standard: whatever is not forbidden may be there;
- numbers have at most 15 digits (integers more, where bounds ask for such), formats their common forms,
  strings and lists at most 10,000 characters or items.

``uniqueItems`` is kept beside the grammar (``distinct_items.py``) where the items are more than a few values.
A list that must have more items than there are ends its request when they have run out, unless they can be
counted.

Drafts 3 to 2020-12 are read, each as ``$schema`` says: siblings of ``$ref`` are void up to draft 7, bounds
are exclusive by a boolean in draft 4, ``items`` may be a list up to 2019-09. A schema that names no draft, or
one by an address that is not its own, is read as 2020-12, and what only older drafts have as they had it.
References lead to JSON pointers, ``$id`` and ``$anchor`` of the same document, and to the schemas of JSON
Schema itself.

A pattern is searched for in a text, as ECMA-262 reads it (``patterns.py``); where its product with a length
would be too large, nothing in it is repeated more often than surely fits. Formats are enforced where we
know them (``formats.py``), and ``contentEncoding`` ``base64``; other formats are annotations.

Keywords that do not apply to a value's type are without effect, as the standard has it, and unknown ones are
annotations. But what looks like a misspelt keyword is refused, as a misspelt limit would be none, and so is
``nullable: true``, which is no keyword of JSON Schema. ``not``, ``if``, ``oneOf`` and ``dependentSchemas``
are worked out (``merge.py``, ``negation.py``) where that can be decided, and ``unevaluatedProperties`` where
nothing is chosen beside it.
"""

from .compile import compile_schema

__all__ = ["compile_schema"]
