"""The notebooks run from top to bottom on the real small model, and are committed without outputs."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

import rootlet

FOLDER = Path(rootlet.__file__).parent / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
PATH_IN_PROSE = re.compile(r"(?<![\w:/.])(~|\.{0,2})/\w|\b[A-Z]:\\")
HOMES = ("JUPYTER_CONFIG_DIR", "JUPYTER_DATA_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR", "MPLCONFIGDIR")
INLINE = "module://matplotlib_inline.backend_inline"

# what a notebook cannot say unless the feature it shows worked
SAID = {
    "01": ["Italy    Rome", "UnknownOptionError"],
    "02": ["stopped with", "records from the first run", "0 records to do", "'role': 'assistant'"],
    "03": ["time is up", "cancelled: True - requests still running: 0", "'type': 'abort'", "dropped: 2"],
    "04": ["' honey'", "4 of 6 right"],
    "05": [
        'bound: {"name": "Anna"',
        "Person(name='Anna', age=",
        "the same alone: True",
        "the same when bound: True",
        "the same tokens: True",
        "opposite of uniqueItems",
    ],
    "06": [
        "name='add', arguments='{\"a\": 17, \"b\": 25}') tool_calls",
        "42 -> 17 + 25 = 42",
        "36 of 36 replies",
        "put together: True",
        "tool_choice names 'get_tme'",
    ],
    "07": ["agree to 1e-4: True", "weights of version 4 after 3 steps"],
}
# what a notebook needs that the oldest releases are too old for
NEEDS = {"07": "trl"}

by_name = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def execute(path, folder):
    """Run a notebook in the empty ``folder``/work; return it with its outputs, and what it left in there."""
    # Jupyter and matplotlib keep their files here, not at home; plots are shown inline, as in a browser
    private = {name: folder / name.lower() for name in HOMES}
    for home in private.values():
        home.mkdir(mode=0o700)
    (folder / "work").mkdir()
    environment = os.environ | {name: str(home) for name, home in private.items()} | {"MPLBACKEND": INLINE}
    done = subprocess.run(
        [sys.executable, Path(__file__).with_name("execute.py"), path, folder / "result.ipynb"],
        cwd=folder / "work",
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return nbformat.read(folder / "result.ipynb", as_version=4), list((folder / "work").iterdir())


def outputs(notebook, kind):
    """All outputs of a kind: ``image/png``, or ``stdout`` and ``stderr`` for streams."""
    every = [output for cell in notebook.cells for output in cell.get("outputs", ())]
    return [o for o in every if kind in o.get("data", ()) or o.get("name") == kind]


def test_all_seven_are_here():
    assert [path.stem[:2] for path in NOTEBOOKS] == ["01", "02", "03", "04", "05", "06", "07"]


@by_name
def test_runs_from_top_to_bottom(path, tmp_path):
    if (needed := NEEDS.get(path.stem[:2])) is not None:
        pytest.importorskip(needed)
    notebook, left_behind = execute(path, tmp_path)
    plots = sum("plt.subplots" in cell.source for cell in notebook.cells)
    assert len(outputs(notebook, "image/png")) == plots > 0
    assert not left_behind  # what a notebook writes goes to temporary folders
    complaints = "".join(output.text for output in outputs(notebook, "stderr"))
    assert "Warning" not in complaints.replace("TqdmWarning: IProgress not found", "")  # no ipywidgets: fine
    said = "".join(output.text for output in outputs(notebook, "stdout"))
    for sentence in SAID[path.stem[:2]]:
        assert sentence in said


@by_name
def test_committed_clean(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            assert not cell.outputs
            assert cell.execution_count is None
        else:
            assert not PATH_IN_PROSE.search(cell.source)
        assert not set(cell.metadata) - {"tags"}


@pytest.mark.parametrize("prose", ["see /work/x", "in ~/models", "(./here)", r"C:\models"])
def test_paths_in_prose_are_recognised(prose):
    assert PATH_IN_PROSE.search(prose)
    assert not PATH_IN_PROSE.search("tokens/s, and/or, https://example.org/x, 3 / 4")
