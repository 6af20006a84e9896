/** Files of data and weights, and the check of a model in the reader's own browser. */

import { element, verdict } from "./draw.js";
import { GPT } from "./model.js";

const TOLERANCE = 1e-5;
const loading = {};

/** What the file of this name holds. Files are scripts, which also load from file://. */
export function script(name) {
  loading[name] ??= new Promise((resolve, reject) => {
    const made = element("script", { src: window.liveFiles[name] });
    made.addEventListener("load", () => resolve(window.liveData[name]));
    made.addEventListener("error", () => {
      delete loading[name];
      reject(new Error(`${made.src} did not load`));
    });
    document.head.append(made);
  });
  return loading[name];
}

/** The model whose weights are in the file of this name, as base64. */
export async function load(name) {
  const bytes = Uint8Array.from(atob(await script(name)), (sign) => sign.charCodeAt(0));
  return new GPT(bytes.buffer);
}

/** The largest difference of a logit from PyTorch's, computed in this browser. */
export function largestDifference(model) {
  const { logits } = model.logits(Array.from(model.tensors["check.ids"].data));
  const expected = model.tensors["check.logits"].data;
  return logits.reduce((largest, logit, i) => Math.max(largest, Math.abs(logit - expected[i])), 0);
}

/** A line that says whether this browser computes what PyTorch computed. */
export function checked(model) {
  const difference = largestDifference(model);
  const text = `the largest difference of a logit from PyTorch’s is ${difference.toExponential(0)}`;
  return verdict(difference <= TOLERANCE, text, `at most ${TOLERANCE} is allowed`);
}
