"""A real kernel, and its cells."""

from __future__ import annotations

import pytest
from jupyter_client.manager import start_new_kernel


@pytest.fixture
def kernel(tmp_path, monkeypatch):
    monkeypatch.setenv("VITSEG_RUNS", str(tmp_path / "runs"))
    manager, client = start_new_kernel(kernel_name="python3")
    yield manager, client
    client.stop_channels()
    manager.shutdown_kernel(now=True)


@pytest.fixture
def say():
    """`say(client, code)` runs a cell and gives what it prints."""

    def run(client, code: str, timeout: float = 60) -> str:
        printed: list[str] = []
        reply = client.execute_interactive(
            code,
            timeout=timeout,
            output_hook=lambda m: printed.append(m["content"].get("text", "")),
            store_history=False,
        )
        assert reply["content"]["status"] == "ok", reply["content"]
        return "".join(printed).strip()

    return run
