/** Sampling as in llm_learn.generate: temperature, top-k, top-p. */

import { range } from "./model.js";
import { softmax } from "./tensors.js";

/** filter_logits: unlikely tokens get -Infinity. `topK` and `topP` are null or set. */
export function filterLogits(logits, { topK = null, topP = null } = {}) {
  let kept = Float64Array.from(logits);
  if (topK !== null) {
    const kth = kept.slice().sort().at(-Math.min(topK, kept.length));
    kept = kept.map((logit) => (logit < kth ? -Infinity : logit));
  }
  if (topP !== null && topP < 1) {
    const probabilities = softmax(kept);
    const order = range(kept.length).sort((a, b) => kept[b] - kept[a]);
    let massBefore = 0;
    for (const i of order) {
      if (massBefore >= topP) kept[i] = -Infinity;
      massBefore += probabilities[i];
    }
  }
  return kept;
}

/** The probabilities of the next token; a temperature of 0 gives all of it to the most likely one. */
export function nextProbabilities(logits, { temperature = 1, topK = null, topP = null } = {}) {
  if (temperature === 0) {
    const best = logits.indexOf(Math.max(...logits));
    return Float64Array.from(logits, (_, i) => Number(i === best));
  }
  return softmax(filterLogits(logits.map((logit) => logit / temperature), { topK, topP }));
}

/** An index, sampled with one uniform number. */
export function sampleIndex(probabilities, uniform) {
  let remaining = uniform;
  for (let i = 0; i < probabilities.length; i++) {
    remaining -= probabilities[i];
    if (remaining < 0) return i;
  }
  return probabilities.findLastIndex((probability) => probability > 0);
}

/** A seeded generator of uniform numbers (mulberry32). */
export function randomNumbers(seed) {
  let state = seed;
  return () => {
    state = (state + 0x6d2b79f5) | 0;
    let mixed = Math.imul(state ^ (state >>> 15), 1 | state);
    mixed = (mixed + Math.imul(mixed ^ (mixed >>> 7), 61 | mixed)) ^ mixed;
    return ((mixed ^ (mixed >>> 14)) >>> 0) / 4294967296;
  };
}
