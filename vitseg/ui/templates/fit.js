export default {
    render({ el }) {
        const watch = new ResizeObserver(() => window.dispatchEvent(new Event("resize")));
        watch.observe(el);
        return () => watch.disconnect();
    },
};
