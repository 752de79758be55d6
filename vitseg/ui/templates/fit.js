function render({ el }) {
    const tell = () => window.dispatchEvent(new Event("resize"));
    const watch = new ResizeObserver(tell);
    const start = () => el.isConnected ? watch.observe(el.parentElement) : requestAnimationFrame(start);
    start();
    return () => watch.disconnect();
}
export default { render };
