/* Boxes to tick chapters off. The ticks stay in the reader's browser; no page needs this script. */
(() => {
  "use strict";
  const KEY = "llm-learn:read";
  const byClass = (name) => [...document.getElementsByClassName(name)];
  const spots = byClass("tick");
  const panel = document.querySelector(".ticks-panel");
  let read = new Set(); // slugs; those that this book does not know are kept, and not counted
  let kept = true; // false where the browser stores nothing

  // --- Storage ---

  // The slugs in a text made by `write`; throws where the text is something else.
  function parse(text) {
    const data = JSON.parse(text);
    const slugs = data && data.read;
    if (!Array.isArray(slugs) || !slugs.every((slug) => typeof slug === "string")) {
      throw new TypeError("no list of chapters");
    }
    return slugs;
  }

  // A page that moved to another part keeps its name, and so its tick.
  const name = (slug) => slug.split("/").pop();
  const present = (slug) => {
    const spot = spots.find((spot) => name(spot.dataset.slug) === name(slug));
    return spot ? spot.dataset.slug : slug;
  };

  const write = () => JSON.stringify({ book: "LLM Learn", read: [...read].sort() });

  function load() {
    let text = null;
    try {
      text = localStorage.getItem(KEY);
    } catch {
      kept = false;
      return;
    }
    try {
      read = new Set(text ? parse(text).map(present) : []);
    } catch {
      read = new Set(); // not ours, or damaged: the next tick replaces it
    }
  }

  function store() {
    try {
      if (read.size) {
        localStorage.setItem(KEY, write());
      } else {
        localStorage.removeItem(KEY);
      }
    } catch {
      kept = false;
    }
    show();
  }

  // --- What the page shows ---

  // Those of the slugs that are published; all of them have their box on a page with the panel.
  const known = (slugs) => [...slugs].filter((slug) => spots.some((spot) => spot.dataset.slug === slug));

  const sum = (slugs, hours) => slugs.reduce((total, slug) => total + hours.get(slug), 0);

  function count(spots) {
    const hours = new Map(spots.map((s) => [s.dataset.slug, Number(s.dataset.hours)]));
    const all = [...hours.keys()];
    const done = all.filter((slug) => read.has(slug));
    return { all: all.length, done: done.length, hoursAll: sum(all, hours), hours: sum(done, hours) };
  }

  function show() {
    for (const spot of spots) {
      spot.querySelector("input").checked = read.has(spot.dataset.slug);
    }
    for (const place of byClass("read-count")) {
      const route = document.getElementById(place.dataset.of);
      const own = spots.filter((spot) =>
        route ? route.contains(spot) : spot.dataset.slug.startsWith(`${place.dataset.of}/`));
      const { all, done } = count(own);
      place.textContent = all ? `You have read ${done} of ${all} published.` : "";
    }
    if (panel) {
      const { all, done, hours, hoursAll } = count(spots);
      const bar = panel.querySelector("progress");
      [bar.max, bar.value] = [Math.max(all, 1), done];
      panel.querySelector(".ticks-status").textContent =
        `You have read ${done} of ${all} published chapters, ${hours} of ${hoursAll} hours.`;
      panel.querySelector("textarea").value = write();
    }
    if (!kept) {
      say("Your browser does not let this page store anything: ticks last until you leave it.");
    }
  }

  function say(text) {
    const place = panel && panel.querySelector(".ticks-message");
    if (place) {
      place.textContent = text;
    }
  }

  function addBox(spot) {
    const box = document.createElement("input");
    const label = document.createElement("label");
    box.type = "checkbox";
    box.autocomplete = "off";
    label.append(box);
    if (spot.dataset.label) {
      label.append(` ${spot.dataset.label}`);
    } else {
      box.setAttribute("aria-label", `I have read: ${spot.dataset.title}`);
    }
    box.addEventListener("change", () => {
      read[box.checked ? "add" : "delete"](spot.dataset.slug);
      say("");
      store();
    });
    spot.append(label);
  }

  // --- The panel ---

  function importText(text) {
    let slugs;
    try {
      slugs = new Set(parse(text).map(present));
    } catch {
      say('Nothing was imported: this is not a text of ticks, such as {"read": ["first-model/attention"]}.');
      return;
    }
    load();
    const before = known(read).length;
    const others = slugs.size - known(slugs).length;
    slugs.forEach((slug) => read.add(slug));
    const verb = others === 1 ? "is no chapter" : "are no chapters";
    say(`Imported: ${known(read).length - before} new.` + (others ? ` ${others} ${verb} of this site yet.` : ""));
    store();
  }

  function clearQuestion() {
    const count = known(read).length;
    if (count) {
      return `Clear ${count === 1 ? "the one tick" : `all ${count} ticks`} in this browser?`;
    }
    return "Clear the ticks of chapters that this site does not have yet?";
  }

  const actions = {
    async copy(area) {
      try {
        await navigator.clipboard.writeText(area.value);
        say("Copied.");
      } catch {
        area.select();
        say("Your browser does not allow copying here. The text is selected: copy it yourself.");
      }
    },
    save() {
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([write()], { type: "application/json" }));
      link.download = "llm-learn-ticks.json";
      link.click();
      setTimeout(() => URL.revokeObjectURL(link.href), 1000);
      say("Saved as llm-learn-ticks.json.");
    },
    import(area) {
      importText(area.value);
    },
    open() {
      panel.querySelector("input[type=file]").click();
    },
    clear() {
      if (!read.size) {
        say("There is nothing to clear.");
      } else if (window.confirm(clearQuestion())) {
        read = new Set();
        say("All ticks are cleared.");
        store();
      }
    },
  };

  spots.forEach(addBox);
  if (panel) {
    const file = panel.querySelector("input[type=file]");
    file.addEventListener("change", async () => {
      if (file.files.length) {
        importText(await file.files[0].text());
        file.value = "";
      }
    });
    for (const button of panel.querySelectorAll("button")) {
      button.addEventListener("click", () =>
        actions[button.dataset.do](panel.querySelector("textarea")));
    }
    panel.hidden = false;
  }
  const refresh = () => {
    load();
    show();
  };
  window.addEventListener("storage", (event) => event.key === KEY && refresh());
  window.addEventListener("pageshow", refresh); // also when the browser comes back to the page
  refresh();
  document.documentElement.classList.add("has-ticks");
})();
