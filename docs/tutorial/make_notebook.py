"""Run the notebook and keep what it shows: ``python docs/tutorial/make_notebook.py``, where ``vggdeploy demo`` has run.

What differs from machine to machine without saying anything, execution times and versions, is left out.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from traitlets.config import Config

NOTEBOOK = Path(__file__).parent / "in-a-notebook.ipynb"


def executed(source: Path, home: Path) -> nbformat.NotebookNode:
    """The notebook with what its cells show when they run in ``home``, one after another, in a kernel of its own.

    Raises:
        CellExecutionError: a cell failed.
    """
    notebook = nbformat.read(source, as_version=4)
    sockets = Config({"KernelManager": {"transport": "ipc"}})  # no port is opened
    where = {"metadata": {"path": str(home)}}
    NotebookClient(notebook, config=sockets, timeout=300, resources=where, record_timing=False).execute()
    notebook.metadata = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description="Run the notebook and write it with what it shows.")
    parser.add_argument("-o", "--output", type=Path, default=NOTEBOOK, help="default: the notebook itself")
    output = parser.parse_args().output
    nbformat.write(executed(NOTEBOOK, Path.cwd()), output)


if __name__ == "__main__":
    main()
