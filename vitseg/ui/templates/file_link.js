export default {
    render({ model, el }) {
        const draw = () => {
            const path = model.get("path"), file = document.createElement("a");
            const page = JSON.parse(document.getElementById("jupyter-config-data")?.textContent ?? "{}");
            const root = page.serverRoot?.replace(/^~/, model.get("home")).replace(/\/?$/, "/");
            file.textContent = path;
            if (path.startsWith(root)) {
                file.href = `${page.baseUrl}files/`;
                file.pathname += encodeURI(path.slice(root.length));
                file.target = "_blank";
                file.style.textDecoration = "underline";
            }
            el.replaceChildren(`${model.get("words")} `, file);
        };
        el.role = "status";
        model.on("change", draw);
        draw();
    },
};
