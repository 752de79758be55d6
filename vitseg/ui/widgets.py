"""The widgets whose work is done in the page, by the scripts beside the templates."""

from pathlib import Path

import anywidget
import traitlets

from vitseg.ui.markup import TEMPLATES


class Fit(anywidget.AnyWidget):
    """Put beside a plotly figure with `responsive` on: a chart drawn before it is on the page has a
    guessed width, so whenever the box they share changes size, the figure follows.
    """

    _esm = TEMPLATES / "fit.js"


class FileLink(anywidget.AnyWidget):
    """A sentence that ends with a file: a link where the Jupyter server can give the file out, else
    its path.

    A file below the server's root opens in a browser tab of its own,
    where its scripts may run: JupyterLab's viewer would leave the charts of a report blank.
    """

    words = traitlets.Unicode("").tag(sync=True)
    path = traitlets.Unicode("").tag(sync=True)
    home = traitlets.Unicode(str(Path.home())).tag(sync=True)

    _esm = TEMPLATES / "file_link.js"
