/* What the theme leaves to the mouse. */

document.addEventListener("DOMContentLoaded", () => {
  // Regions that scroll can be reached, so that the arrow keys move them; those that fit are no stop on the way.
  const regions = ".bd-article :is(figure, div.math, .cell_output, .output, .pst-scrollable-table-container)";
  const reach = (region) => {
    if (/auto|scroll/.test(getComputedStyle(region).overflowX) && region.scrollWidth > region.clientWidth) {
      region.tabIndex = 0;
    } else {
      region.removeAttribute("tabindex");
    }
  };
  const observer = new ResizeObserver((entries) => entries.forEach((entry) => reach(entry.target)));
  document.querySelectorAll(regions).forEach((region) => observer.observe(region));
});

// The theme takes the focus from its buttons when they are pressed: a reader with a keyboard gets it back, at once
// or when the dialog that the button has opened is closed.
{
  let opener = null;
  const back = () => opener?.checkVisibility() && opener.focus();
  document.addEventListener(
    "click",
    (event) => {
      const button = event.target.closest("button");
      if (button && event.detail === 0) {
        opener = button;
        setTimeout(() => document.activeElement === document.body && back());
      }
    },
    true,
  );
  document.addEventListener("close", () => setTimeout(back), true);
}
