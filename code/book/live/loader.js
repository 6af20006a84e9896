/* Starts a figure when it is near, or on a click if it needs weights. On an error its image stays, and a click tries again. */
(() => {
  let js, css;
  const add = (tag, at) => new Promise((onload, onerror) => {
    document.head.append(Object.assign(document.createElement(tag), at, { onload, onerror }));
  });
  const start = async (box, button = {}) => {
    if (box.on) return;
    const d = box.dataset;
    box.on = button.textContent = "Loading…";
    try {
      window.liveFiles = { ...window.liveFiles, ...JSON.parse(d.files) };
      css ||= add("link", { rel: "stylesheet", href: d.style });
      js ||= add("script", { src: d.bundle });
      await js.catch(() => (js = 0));
      await live.figures.mount(box, d.kind, JSON.parse(d.data));
    } catch {
      box.on = 0;
      button.textContent = "Not loaded. Try again";
    }
  };
  const near = new IntersectionObserver((all) => all.forEach((e) => {
    if (e.isIntersecting) start(e.target);
  }), { rootMargin: "300px" });
  for (const box of document.querySelectorAll(".live")) {
    const button = box.querySelector(".live-start");
    if (button) button.onclick = () => start(box, button), (button.hidden = false);
    else near.observe(box);
  }
})();
