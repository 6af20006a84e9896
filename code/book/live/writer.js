/** Writer: the next-token probabilities of the recorded GPT, and its text. */

import { BPETokenizer } from "./bpe.js";
import { bars, button, element, labelled, slider, visible } from "./draw.js";
import { checked, load } from "./weights.js";
import { nextProbabilities, randomNumbers, sampleIndex } from "./sample.js";
import { range } from "./model.js";

const SHOWN = 10;

/** @param {{text: string, model: string}} data */
export async function writer(box, data) {
  const model = await load(data.model);
  const bpe = new BPETokenizer(model.tensors.merges.data);
  const settings = { temperature: 1, topK: null, topP: null };
  const uniform = randomNumbers(0);
  const input = element("textarea", { value: data.text, rows: 3, maxLength: 1000 });
  const odds = element("div");
  const summary = element("p", { className: "live-said", "aria-live": "polite" });
  const name = (id) => visible(bpe.name(id));
  let ids = [];
  let logits = null;
  let probabilities = null;
  let runs = 0;

  function predict() {
    ids = bpe.encode(input.value);
    logits = ids.length ? model.logits(ids).logits : null;
    probabilities = logits && nextProbabilities(logits, settings);
  }

  function draw() {
    write.setAttribute("aria-disabled", !logits);
    if (!logits) {
      summary.textContent = "Write something first.";
      return odds.replaceChildren();
    }
    const order = range(logits.length).sort((a, b) => logits[b] - logits[a]);
    const left = probabilities.filter((probability) => probability > 0).length;
    summary.textContent =
      `The most likely next token is “${name(order[0])}”; ${left.toLocaleString("en")} tokens have a probability above 0. ` +
      `The model sees the last ${Math.min(ids.length, model.config.context_length)} of ${ids.length} tokens.`;
    const rows = order.slice(0, SHOWN).map((id) => ({
      label: name(id),
      value: probabilities[id],
      note: `${(100 * probabilities[id]).toFixed(1)} %`,
      muted: probabilities[id] === 0,
    }));
    odds.replaceChildren(bars(rows, Math.max(0.25, rows[0].value)));
  }

  function update() {
    predict();
    draw();
  }

  const write = button("Generate 20 tokens", async () => {
    const mine = ++runs;
    // The page stays usable between two tokens; another click or the reader's own text ends this run.
    for (let i = 0; i < 20 && logits && mine === runs; i++) {
      input.value += bpe.decode([sampleIndex(probabilities, uniform())]);
      input.scrollTop = input.scrollHeight;
      update();
      await new Promise((resolve) => setTimeout(resolve));
    }
  });
  const set = (name, value) => {
    settings[name] = value;
    update();
  };
  const { vocab_size: V } = model.config;
  input.addEventListener("input", () => (runs++, update()));
  box.append(
    labelled("Text", input),
    slider({ label: "Temperature", min: 0, max: 2, step: 0.1, value: 1, show: (t) => t.toFixed(1), onInput: (t) => set("temperature", t) }),
    slider({ label: "Top-k", min: 0, max: 12, step: 1, value: 12, show: (k) => (2 ** k >= V ? "off" : 2 ** k), onInput: (k) => set("topK", 2 ** k >= V ? null : 2 ** k) }),
    slider({ label: "Top-p", min: 0.05, max: 1, step: 0.05, value: 1, show: (p) => (p === 1 ? "off" : p.toFixed(2)), onInput: (p) => set("topP", p === 1 ? null : p) }),
    write,
    summary,
    odds,
    checked(model),
  );
  update();
}
