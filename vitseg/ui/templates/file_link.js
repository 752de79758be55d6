function render({ model, el }) {
    const draw = () => {
        const path = model.get("path"), page = document.getElementById("jupyter-config-data");
        const { baseUrl = "", serverRoot = "" } = page ? JSON.parse(page.textContent) : {};
        const root = `${serverRoot.replace(/^~/, model.get("home")).replace(/\/$/, "")}/`;
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
