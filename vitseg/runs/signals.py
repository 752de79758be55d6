"""Signals that ask for an end wait until the step under way is over, and saved."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_ASKING = [
    getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)
]  # Windows has no SIGHUP


@contextlib.contextmanager
def held_back() -> Iterator[list[int]]:
    """Signals that ask for an end are noted in the list while the block runs, and take effect after
    it.

    A second interrupt takes effect at once. Outside the main thread, where Python handles no
    signals, nothing is held back.
    """
    asked: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        if number == signal.SIGINT and number in asked:
            raise KeyboardInterrupt
        asked.append(number)

    if threading.current_thread() is not threading.main_thread():
        yield asked
        return
    heard = [
        number for number in _ASKING if signal.getsignal(number) != signal.SIG_IGN
    ]  # nohup, or a job in the background
    before = {number: signal.signal(number, note) for number in heard}
    try:
        yield asked
    finally:
        for number, handler in before.items():
            signal.signal(
                number, signal.SIG_DFL if handler is None else handler
            )  # None: set by other than Python
        for number in dict.fromkeys(asked):
            signal.raise_signal(number)
