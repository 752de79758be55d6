"""A sentence that ends with a file: a link where the Jupyter server can give the file out, else its
path.
"""

from __future__ import annotations

from pathlib import Path

import anywidget
import traitlets


class FileLink(anywidget.AnyWidget):
    """`say` sets the sentence. A file below the server's root opens in a browser tab of its own,
    where its scripts may run: JupyterLab's viewer would leave the charts of a report blank.
    """

    words = traitlets.Unicode("").tag(sync=True)
    path = traitlets.Unicode("").tag(sync=True)
    home = traitlets.Unicode(str(Path.home())).tag(sync=True)

    _esm = """
    function render({ model, el }) {
        const draw = () => {
            const path = model.get("path"), page = document.getElementById("jupyter-config-data");
            const { baseUrl = "", serverRoot = "" } = page ? JSON.parse(page.textContent) : {};
            const root = `${serverRoot.replace(/^~/, model.get("home")).replace(/\\/$/, "")}/`;
            const served = baseUrl && path.startsWith(root);
            const file = document.createElement(served ? "a" : "span");
            file.textContent = path;
            if (served) {
                const parts = path.slice(root.length).split("/").map(encodeURIComponent);
                Object.assign(file, { href: `${baseUrl}files/${parts.join("/")}`, target: "_blank", rel: "noopener" });
                file.style.textDecoration = "underline";
            }
            el.replaceChildren(`${model.get("words")} `, file);
            el.setAttribute("role", "status");
        };
        model.on("change:words change:path", draw);
        draw();
    }
    export default { render };
    """

    def say(self, words: str, file: Path | None = None) -> None:
        with self.hold_sync():
            self.words, self.path = words, str(file or "")
