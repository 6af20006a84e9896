/** Beam search: the candidates of each step, those that are kept, and those that are dropped. */

import { bars, element } from "./draw.js";
import { player } from "./player.js";

/** @param {{steps: {say: string, rows: [string, number, boolean, boolean][]}[]}} data text, log-probability, whether kept, whether greedy */
export function beam(box, data) {
  const table = element("div");
  const draw = (step) => {
    const rows = data.steps[step].rows.map(([label, logProbability, kept, greedy]) => ({
      label,
      value: Math.exp(logProbability),
      note: `${(100 * Math.exp(logProbability)).toPrecision(2)} %${kept ? ", kept" : ""}${greedy ? ", greedy" : ""}`,
      muted: !kept,
    }));
    table.replaceChildren(bars(rows, 1));
  };
  box.append(player(data.steps, draw), table);
}
