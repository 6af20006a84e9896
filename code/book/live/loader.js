/* Starts a figure when it is near, or on a click if it needs weights. On any error its image stays. */
(() => {
  const add = (tag, address) => new Promise((onload, onerror) => {
    document.head.append(Object.assign(document.createElement(tag), address, { onload, onerror }));
  });
  const start = async (box) => {
    const { kind, data, files, bundle, style } = box.dataset;
    if (box.started) return;
    box.started = true;
    window.liveFiles = { ...window.liveFiles, ...JSON.parse(files) };
    window.liveStyle ??= add("link", { rel: "stylesheet", href: style });
    await (window.liveBundle ??= add("script", { src: bundle }));
    await live.figures.mount(box, kind, JSON.parse(data));
    box.querySelector(".live-start")?.remove();
  };
  const near = new IntersectionObserver((all) => all.forEach(({ target, isIntersecting }) => {
    if (isIntersecting) near.unobserve(target), start(target);
  }), { rootMargin: "300px" });
  for (const box of document.querySelectorAll(".live")) {
    const button = box.querySelector(".live-start");
    if (button) button.onclick = () => start(box), (button.hidden = false);
    else near.observe(box);
  }
})();
