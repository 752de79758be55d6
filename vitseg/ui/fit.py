"""A chart drawn before it is on the page has a guessed width; this has it measured again."""

from __future__ import annotations

import anywidget


class Fit(anywidget.AnyWidget):
    """Put beside a plotly figure with `responsive` on: whenever the box they share changes size,
    the figure follows.
    """

    _esm = """
    function render({ el }) {
        const tell = () => window.dispatchEvent(new Event("resize"));
        const watch = new ResizeObserver(tell);
        const start = () => el.isConnected ? watch.observe(el.parentElement) : requestAnimationFrame(start);
        start();
        return () => watch.disconnect();
    }
    export default { render };
    """
