/** Elements of a figure. Texts are the reader's and the model's, so they are set as text, never as markup. */

/** An element with properties and children; strings become text. Names with a hyphen, `role` and `for` are attributes. */
export function element(tag, properties = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name.includes("-") || ["role", "for"].includes(name)) made.setAttribute(name, value);
    else made[name] = value;
  }
  made.append(...children);
  return made;
}

/** Spaces, line breaks and tabs, made visible. */
export function visible(text) {
  return text.replace(/ /g, "␣").replace(/\n/g, "⏎").replace(/\r/g, "␍").replace(/\t/g, "⇥") || "∅";
}

let count = 0;

/** A label with its control. */
export function labelled(text, control) {
  control.id ||= `live-${++count}`;
  return element("span", { className: "live-control" }, element("label", { for: control.id }, text), control);
}

/** A slider that shows its value. */
export function slider({ label, min, max, step, value, show = String, onInput }) {
  const input = element("input", { type: "range", min, max, step, value });
  const output = element("output", {}, show(value));
  const update = () => {
    output.textContent = show(Number(input.value));
    input.setAttribute("aria-valuetext", output.textContent);
  };
  update();
  input.addEventListener("input", () => {
    update();
    onInput(Number(input.value));
  });
  const control = labelled(label, input);
  control.append(output);
  return control;
}

/** A button. */
export function button(text, onClick, properties = {}) {
  const made = element("button", { type: "button", ...properties }, text);
  made.addEventListener("click", onClick);
  return made;
}

/** Horizontal bars: rows of {label, value, note, muted}; a value of `largest` takes the whole width. */
export function bars(rows, largest) {
  const table = element("table", { className: "live-bars" });
  for (const { label, value, note, muted } of rows) {
    const bar = element("span", { className: "live-bar" });
    bar.style.inlineSize = `${(100 * value) / largest}%`;
    const row = element("tr", { className: muted ? "live-muted" : "" });
    row.append(element("th", { scope: "row" }, label), element("td", {}, bar), element("td", {}, note));
    table.append(row);
  }
  return table;
}

/** A line that says whether this browser computes what Python computed. */
export function verdict(good, text, rule) {
  const shown = good ? `✓ Checked in this browser: ${text}.` : `✗ This browser computes something else: ${text}; ${rule}.`;
  return element("p", { className: good ? "live-check" : "live-check live-wrong" }, shown);
}
