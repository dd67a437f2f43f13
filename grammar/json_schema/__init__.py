"""JSON Schema as rules: what is enforced is enforced exactly, and everything else is refused by name.

Every text of the result is a document that the schema accepts, in one form: as ``json.dumps`` writes it
(``", "`` and ``": "``), declared properties in their order. Where a schema leaves more open than a model
needs, less is generated: objects that declare ``properties`` get no others unless ``additionalProperties``
says so, numbers have at most 15 digits, formats their common forms. Keywords that do not apply to a value's
type are without effect, as the standard has it; unknown ones are refused: a misspelt limit would be none.
What a value must meet at once is worked out by ``merge.py``.
"""

from .compile import compile_schema

__all__ = ["compile_schema"]
