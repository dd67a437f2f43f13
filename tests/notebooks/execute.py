"""``python execute.py NOTEBOOK RESULT``: run a notebook in this folder, in a kernel of this interpreter.

A program of its own, because Jupyter's client leaves an event loop and open sockets behind in its process.
Whatever kernels the machine has installed are not looked at. Ends with the cell's traceback if one fails.
"""

from __future__ import annotations

import sys

import nbformat
from jupyter_client.kernelspec import KernelSpecManager
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

SECONDS_PER_CELL = 300  # a busy machine takes ten times what an idle one does


def main(source: str, result: str) -> None:
    notebook = nbformat.read(source, as_version=4)
    kernel = AsyncKernelManager(kernel_spec_manager=KernelSpecManager(kernel_dirs=[]))
    NotebookClient(notebook, km=kernel, timeout=SECONDS_PER_CELL).execute()
    nbformat.write(notebook, result)


if __name__ == "__main__":
    main(*sys.argv[1:])
