/** A stepper through recorded states: buttons, a slider and its keys. It never starts by itself. */

import { button, element, labelled } from "./draw.js";

const SECONDS = 1.2;

/**
 * @param {{say: string}[]} steps what is said in each state
 * @param {(step: number) => void} draw draws a state
 */
export function player(steps, draw) {
  const last = steps.length - 1;
  let now = 0;
  let timer = null;
  const range = element("input", { type: "range", min: 0, max: last, step: 1 });
  const said = element("p", { className: "live-said" });
  const back = button("Back", () => (stop(), show(now - 1)));
  const next = button("Next", () => (stop(), show(now + 1)));
  const play = button("Play", () => (timer ? stop() : start()));
  range.addEventListener("input", () => (stop(), show(Number(range.value))));

  function show(step) {
    now = Math.min(Math.max(step, 0), last);
    range.value = now;
    range.setAttribute("aria-valuetext", `${now + 1} of ${steps.length}`);
    // Disabled buttons would lose the focus.
    back.setAttribute("aria-disabled", now === 0);
    next.setAttribute("aria-disabled", now === last);
    said.textContent = steps[now].say;
    draw(now);
  }

  function start() {
    play.textContent = "Pause";
    said.setAttribute("aria-live", "off");
    timer = setInterval(() => (now === last ? stop() : show(now + 1)), 1000 * SECONDS);
    show(now === last ? 0 : now + 1);
  }

  function stop() {
    clearInterval(timer);
    timer = null;
    play.textContent = "Play";
    said.setAttribute("aria-live", "polite");
  }

  const made = element("div", { className: "live-player" }, back, play, next, labelled("Step", range), said);
  // It also reports once at the start, when nothing plays yet.
  new IntersectionObserver(([entry]) => entry.isIntersecting || stop()).observe(made);
  stop();
  show(0);
  return made;
}
