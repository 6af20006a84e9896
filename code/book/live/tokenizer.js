/** Tokens and merges: the reader's text in tokens, and the merges of one chunk, step by step. */

import { BPETokenizer } from "./bpe.js";
import { button, element, labelled, verdict, visible } from "./draw.js";
import { player } from "./player.js";

const MAX_CHARACTERS = 300;

/** @param {{merges: number[], text: string, check: [string, number[]][]}} data texts with their tokens in Python to check */
export function tokenizer(box, data) {
  const bpe = new BPETokenizer(data.merges);
  const name = (id) => visible(bpe.name(id));
  const input = element("textarea", { value: data.text, rows: 2, maxLength: MAX_CHARACTERS });
  const summary = element("p", { className: "live-said", "aria-live": "polite" });
  const chunks = element("div", { className: "live-tokens", role: "group", "aria-label": "Chunks; choose one to see its merges" });
  const merging = element("div");
  let chosen = 0;

  function choose(states, index) {
    chosen = index;
    [...chunks.children].forEach((made, i) => made.setAttribute("aria-pressed", i === index));
    const row = element("div", { className: "live-tokens" });
    const steps = states.map((ids, i) => ({
      say: i
        ? `Merge ${i} of ${states.length - 1}: ${joined(states[i - 1], ids)}. ${ids.length} tokens are left.`
        : `${ids.length} bytes, each a token of its own.`,
    }));
    const draw = (step) => row.replaceChildren(...states[step].map((id) => token(id, step && !states[step - 1].includes(id))));
    merging.replaceChildren(player(steps, draw), row);
  }

  const joined = (before, after) => {
    const made = after.find((id) => !before.includes(id)) ?? after.find((id, i) => id !== before[i]);
    return `“${name(made)}”, token ${made}`;
  };
  const token = (id, isNew) => element("span", { className: isNew ? "live-token live-new" : "live-token" }, name(id), element("small", {}, id));

  function update() {
    const all = bpe.merges(input.value);
    const ids = all.flatMap((states) => states.at(-1));
    const bytes = all.reduce((sum, states) => sum + states[0].length, 0);
    summary.textContent = `${[...input.value].length} characters, ${bytes} bytes, ${ids.length} tokens.`;
    chunks.replaceChildren(
      ...all.map((states, i) => {
        const made = button("", () => choose(states, i), { className: "live-chunk" });
        made.append(...states.at(-1).map((id) => token(id)));
        return made;
      }),
    );
    if (all.length) choose(all[Math.min(chosen, all.length - 1)], Math.min(chosen, all.length - 1));
    else merging.replaceChildren();
  }

  const equal = data.check.filter(([text, ids]) => String(bpe.encode(text)) === String(ids)).length;
  const checked = `${equal} of ${data.check.length} texts have the same tokens as in Python`;
  input.addEventListener("input", update);
  box.append(labelled("Text", input), summary, chunks, merging, verdict(equal === data.check.length, checked, "all must"));
  update();
}
