// Shows the filter of the materials page, and hides the entries that it leaves out.
const form = document.querySelector('form.materials-filter');
const entries = [...document.querySelectorAll('li.material')];
const sections = [...new Set(entries.map((entry) => entry.closest('section')))];

function filter() {
  const wanted = [...form.querySelectorAll('select')].map((select) => select.value).filter(Boolean);
  for (const entry of entries) {
    entry.hidden = !wanted.every((name) => entry.classList.contains(name));
  }
  for (const section of sections) {
    section.hidden = !section.querySelector('li.material:not([hidden])');
  }
  const left = entries.filter((entry) => !entry.hidden).length;
  form.querySelector('output').value = `${left} of ${entries.length} shown`;
}

// A link to an entry that the filter hides shows it.
function unhide() {
  const target = document.getElementById(decodeURIComponent(location.hash.slice(1)));
  if (target?.closest('[hidden]') && (target.matches('li.material') || sections.includes(target))) {
    form.reset();
    filter();
    target.scrollIntoView();
  }
}

form.addEventListener('change', filter);
addEventListener('hashchange', unhide);
form.hidden = false;
filter(); // a reload may keep what was chosen
