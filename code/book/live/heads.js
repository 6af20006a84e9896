/** Where it looks: the attention weights of every head of the recorded GPT, on the reader's text. */

import { BPETokenizer } from "./bpe.js";
import { button, element, labelled, slider, visible } from "./draw.js";
import { checked, load } from "./weights.js";

/** @param {{text: string, model: string}} data */
export async function heads(box, data) {
  const model = await load(data.model);
  const bpe = new BPETokenizer(model.tensors.merges.data);
  const { num_layers: L, num_heads: H, context_length: T } = model.config;
  const input = element("textarea", { value: data.text, rows: 2, maxLength: 300 });
  const row = element("div", { className: "live-tokens", role: "group", "aria-label": "Tokens; choose the one that attends" });
  const said = element("p", { className: "live-said", "aria-live": "polite" });
  let block = 0;
  let head = 0;
  let query = Infinity;
  let ids = [];
  let weights = [];

  function draw() {
    query = Math.min(query, ids.length - 1);
    const mine = weights[block]?.[head]?.[query] ?? [];
    [...row.children].forEach((made, s) => {
      made.style.setProperty("--weight", s <= query ? mine[s] : 0);
      made.setAttribute("aria-pressed", s === query);
      made.lastChild.textContent = s <= query ? `${Math.round(100 * mine[s])} %` : "–";
    });
    const best = mine.indexOf(Math.max(...mine));
    said.textContent = ids.length
      ? `In block ${block + 1}, head ${head + 1}, “${name(query)}” attends most to “${name(best)}”, ${query - best} positions back, with a weight of ${Math.round(100 * mine[best])} %.`
      : "Write something first.";
  }

  const name = (s) => visible(bpe.name(ids[s]));

  function update() {
    ids = bpe.encode(input.value).slice(-T);
    weights = model.attention(ids);
    row.replaceChildren(
      ...ids.map((_, s) => {
        const made = button(name(s), () => ((query = s), draw()), { className: "live-token live-weight" });
        made.append(element("small"));
        return made;
      }),
    );
    query = Infinity;
    draw();
  }

  input.addEventListener("input", update);
  box.append(
    labelled("Text", input),
    slider({ label: "Block", min: 1, max: L, step: 1, value: 1, onInput: (l) => ((block = l - 1), draw()) }),
    slider({ label: "Head", min: 1, max: H, step: 1, value: 1, onInput: (h) => ((head = h - 1), draw()) }),
    row,
    said,
    checked(model),
  );
  update();
}
