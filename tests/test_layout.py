"""The shape of the house: floors, light imports, the packages list, sizes of files."""

from __future__ import annotations

import ast
import itertools
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import rootlet

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(rootlet.__file__).parent
FLOORS = {
    "errors": 0,
    "signatures": 1,
    "version": 0,
    "cache": 1,
    "kernels": 1,
    "transfer": 1,
    "sampling": 2,
    "models": 2,
    "grammar": 2,
    "alignment": 3,
    "engine": 3,
    "cli": 4,
    "integrations": 4,
    "lang": 4,
    "server": 4,
    "__main__": 5,
    "__init__": 6,
}
# the same inside engine/
ENGINE_FLOORS = {
    "host": 0,
    "options": 0,
    "output_kind": 0,
    "profiling": 0,
    "schedule": 1,
    "config": 2,
    "steps": 2,
    "replies": 3,
    "requests": 4,
    "chat": 5,
    "core": 5,
    "loop": 6,
    "memory": 6,
    "stats": 6,
    "build": 7,
    "calls": 7,
    "weights": 7,
    "base": 8,
    "updatable": 9,
    "engine": 10,
    "documented": 11,
    "jobs": 11,
    "__init__": 12,
}
NOT_THE_PACKAGE = {"tests", "benchmarks", "notebooks", "docs", "examples", "build", "dist", "out"}
WITHOUT_TORCH = (
    "cache/page_pool.py",
    "cache/radix_cache.py",
    "engine/schedule/*.py",
    "engine/schedule/drafts/*.py",
)
MAX_LINES = 500
PIP_INSTALL = re.compile(r"pip install (?:--\S+ )*['\"]?([^\s'\"`]+)")
CREATE = {
    "arange", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "ones", "rand", "randint",
    "randn", "randperm", "scalar_tensor", "tensor", "zeros",
}  # fmt: skip
AMBIENT = {
    "set_default_dtype",
    "set_default_device",
    "set_default_tensor_type",
    "get_default_dtype",
    "Tensor",
}
TYPED = {
    "FloatTensor",
    "DoubleTensor",
    "HalfTensor",
    "BFloat16Tensor",
    "LongTensor",
    "IntTensor",
    "BoolTensor",
}
UNWANTED = ("raise NotImplementedError", "TODO", "FIXME", "os.environ", "getenv")


def package_files() -> list[Path]:
    """Every Python file that is installed."""
    folders = [
        p for p in ROOT.iterdir() if p.is_dir() and p.name[0] not in "._" and p.name not in NOT_THE_PACKAGE
    ]
    files = [*ROOT.glob("*.py"), *(file for folder in folders for file in folder.rglob("*.py"))]
    return sorted(file for file in files if file.name != "setup.py")


def where(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def module_name(path: Path) -> str:
    name = ".".join(("rootlet", *path.relative_to(ROOT).with_suffix("").parts))
    return name.removesuffix(".__init__")


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Every import of a file, wherever it stands: (line, absolute module)."""
    package = ("rootlet", *path.relative_to(ROOT).parent.parts)
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, node.module] if node.module else base)
            # `from . import errors` names a module, `from .errors import RootletError` something inside one
            for alias in node.names:
                inside = Path(*module.split(".")[1:], f"{alias.name}.py")
                is_module = module.startswith("rootlet") and (ROOT / inside).exists()
                yield node.lineno, f"{module}.{alias.name}" if is_module or node.module is None else module


def loaded_by(statement: str) -> set[str]:
    """Top-level modules that a fresh interpreter has loaded after ``statement``."""
    code = f"import sys; {statement}; print(*{{name.partition('.')[0] for name in sys.modules}})"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(result.stdout.split())


def test_imports_point_down():
    """A file imports from lower floors and from its own folder, also where only type checkers look."""
    upward = []
    for path in package_files():
        mine = where(path).partition("/")[0].removesuffix(".py")
        for line, module in imports(path):
            theirs = module.split(".")[1] if module.startswith("rootlet.") else mine
            if theirs != mine and FLOORS[theirs] >= FLOORS[mine]:
                upward.append(f"{where(path)}:{line} imports {module}")
    assert upward == []


def test_imports_inside_the_engine_point_down():
    upward = []
    for path in (ROOT / "engine").rglob("*.py"):
        mine = where(path).split("/")[1].removesuffix(".py")
        for line, module in imports(path):
            parts = module.split(".")
            theirs = parts[2] if parts[:2] == ["rootlet", "engine"] and len(parts) > 2 else mine
            if theirs != mine and ENGINE_FLOORS[theirs] >= ENGINE_FLOORS[mine]:
                upward.append(f"{where(path)}:{line} imports {module}")
    assert upward == []


def test_no_imports_go_in_circles():
    """Not even those that only type checkers read, nor those inside functions."""
    files = {".".join(("rootlet", *p.relative_to(ROOT).with_suffix("").parts)): p for p in package_files()}
    names = {name.removesuffix(".__init__"): path for name, path in files.items()}
    waiting = {
        name: {m for _, m in imports(path) if m in names and m != name} for name, path in names.items()
    }
    while ready := {name for name, needs in waiting.items() if not needs}:
        waiting = {name: needs - ready for name, needs in waiting.items() if name not in ready}
    assert waiting == {}


def test_below_a_layout_nobody_sees_a_request():
    """In engine/steps/ two files turn requests into plain data; what follows knows rows and drawn tokens."""
    words = {"request", "requests", "sampling_requests"}
    readers = {
        path.name
        for path in (ROOT / "engine" / "steps").glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Attribute) and node.attr in words
    }
    assert readers == {"batch_layout.py", "columns.py"}


def test_imports_inside_the_package_are_relative():
    """They resolve by path, whatever the checkout is called."""
    absolute = []
    for path in package_files():
        for node in ast.walk(ast.parse(path.read_text())):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module]
            absolute += [f"{where(path)}:{node.lineno}" for n in names if n.partition(".")[0] == "rootlet"]
    assert absolute == []


def test_files_are_short_and_finished():
    flaws = []
    for path in package_files():
        text = path.read_text()
        flaws += [f"{where(path)} has {word}" for word in UNWANTED if word in text]
        if len(text.splitlines()) > MAX_LINES:
            flaws.append(f"{where(path)} has more than {MAX_LINES} lines")
        if any(isinstance(node, ast.Global) for node in ast.walk(ast.parse(text))):
            flaws.append(f"{where(path)} has a global statement")
    assert flaws == []


def test_the_packages_list_is_complete():
    """pyproject.toml lists exactly the folders that hold files of the package."""
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"]
    folders = {Path(where(path)).parent.parts for path in package_files()}
    assert sorted(packages) == sorted(".".join(["rootlet", *parts]) for parts in folders)


@pytest.mark.parametrize("pattern", WITHOUT_TORCH)
def test_bookkeeping_runs_without_torch(pattern):
    modules = list(map(module_name, ROOT.glob(pattern)))
    assert modules
    assert "torch" not in loaded_by(f"import {', '.join(modules)}")


def test_importing_rootlet_is_light():
    heavy = {"torch", "transformers", "tokenizers", "numpy", "xgrammar", "triton", "asyncio"}
    assert not heavy & loaded_by("import rootlet")


def test_public_names():
    assert rootlet.__all__ == [
        "Alignment",
        "ChatOutput",
        "CustomLogitProcessor",
        "EmbeddingOutput",
        "Engine",
        "Function",
        "FunctionCallParser",
        "RequestOutput",
        "RootletError",
        "SamplingParams",
        "Tool",
        "ToolCallItem",
        "WeightUpdate",
        "WeightsGroup",
        "__version__",
        "align",
        "async_stream_and_merge",
        "errors",
        "ipc_handle",
        "register_model",
        "run_jobs",
        "stream_and_merge",
        "token_logprobs",
        "weights_buckets",
    ]
    assert dir(rootlet) == rootlet.__all__
    for name in rootlet.__all__:
        assert getattr(rootlet, name) is not None
    with pytest.raises(AttributeError, match="no attribute 'Enigne'"):
        rootlet.Enigne  # noqa: B018


def test_what_errors_ask_to_install_is_what_we_declare():
    """A command has a requirement as pyproject.toml has it; Rootlet, on no index, is its folder."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    extras = itertools.chain(*project["optional-dependencies"].values())
    declared = {".", *(line.partition(";")[0] for line in (*project["dependencies"], *extras))}
    named = [(where(p), name) for p in package_files() for name in PIP_INSTALL.findall(p.read_text())]
    assert {name for _, name in named} >= {"gguf>=0.17.1", "llguidance>=1.7", "trl>=1.16,<2"}
    assert [place for place in named if place[1] not in declared] == []


def test_the_version_is_written_once():
    """Metadata reads the module; beside the module only the changelog and README say it."""
    pyproject = tomllib.loads((ROOT / "pyproject.toml").read_text())
    assert "version" not in pyproject["project"]
    assert pyproject["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "rootlet.version.__version__"}
    assert [where(p) for p in package_files() if f'"{rootlet.__version__}"' in p.read_text()] == [
        "version.py"
    ]
    assert (ROOT / "CHANGELOG.md").read_text().startswith(f"# Changelog\n\n## {rootlet.__version__}")
    assert f"Version {rootlet.__version__}" in (ROOT / "README.md").read_text()
    assert pyproject["project"]["scripts"] == {"rootlet": "rootlet.__main__:main"}


def torch_calls(tree):
    """Calls of ``torch.NAME(...)``: (line, name, names of keywords)."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            owner = node.func.value
            if isinstance(owner, ast.Name) and owner.id == "torch":
                yield node.lineno, node.func.attr, {keyword.arg for keyword in node.keywords}


def test_every_tensor_is_made_with_a_dtype_and_a_device():
    """So no default of the host's torch reaches it."""
    flaws = []
    for path in package_files():
        for line, name, given in torch_calls(ast.parse(path.read_text())):
            if name in AMBIENT | TYPED:
                flaws.append(f"{where(path)}:{line} torch.{name}")
            elif name in CREATE:
                flaws += [
                    f"{where(path)}:{line} torch.{name} without {k}"
                    for k in ("dtype", "device")
                    if k not in given
                ]
    assert flaws == []
