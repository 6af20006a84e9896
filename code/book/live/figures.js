/** The kinds of figures, and how one takes the place of its image. */

import { beam } from "./beam.js";
import { element } from "./draw.js";
import { heads } from "./heads.js";
import { tokenizer } from "./tokenizer.js";
import { script } from "./weights.js";
import { writer } from "./writer.js";

const KINDS = { beam, heads, tokenizer, writer };

/** Draws a figure in `box`, then hides its image: on an error the image stays. */
export async function mount(box, kind, data) {
  const made = element("div", { className: "live-figure", tabIndex: -1 });
  if (data.trace) Object.assign(data, await script(data.trace));
  await KINDS[kind](made, data);
  const image = box.querySelector("img");
  const still = image.closest("a") ?? image;
  still.classList.add("live-still");
  still.before(made);
  const button = box.querySelector(".live-start");
  if (!button) return;
  // The reader has asked for it: the focus goes where the button led, and so does the page.
  button.remove();
  made.focus();
}
