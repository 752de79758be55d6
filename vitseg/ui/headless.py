"""Execute a notebook without a browser and see its text as it comes: `python -m vitseg.ui.headless NOTEBOOK`."""

from __future__ import annotations

import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import nbformat
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

from vitseg.errors import VitsegError

_PICTURES = {"application/vnd.plotly.v1+json", "image/png", "image/jpeg"}


class TalkingClient(NotebookClient):
    """Passes printed text and tables on to standard output while cells run; pictures stay in the notebook."""

    def process_message(self, msg: dict[str, Any], cell: Any, cell_index: int) -> Any:
        content = msg["content"]
        if msg["msg_type"] == "stream":
            sys.stdout.write(content["text"])
        elif msg["msg_type"] == "execute_result" and not _PICTURES & content["data"].keys():
            sys.stdout.write(content["data"]["text/plain"] + "\n")
        sys.stdout.flush()
        return super().process_message(msg, cell, cell_index)


def execute(path: Path) -> nbformat.NotebookNode:
    """The notebook, executed from a fresh kernel in its own folder. Raises CellExecutionError."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as private:
        # pipes in a private folder rather than ports, where the system has them: nobody else can listen or speak
        transport = "ipc" if os.name == "posix" else "tcp"
        kernel = AsyncKernelManager(kernel_name="python3", transport=transport, connection_file=f"{private}/kernel.json")
        client = TalkingClient(notebook, km=kernel, timeout=None, resources={"metadata": {"path": str(path.parent)}})
        client.execute(cleanup_kc=True)
    return notebook


def main() -> int:
    try:
        execute(Path(sys.argv[1]))
    except CellExecutionError as error:
        known = error.ename.rpartition(".")[2] in {c.__name__ for c in VitsegError.__subclasses__()}
        sys.stderr.write(f"\n{error.evalue if known else error}\n")
        return 2 if known else 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
