// Comforts on top of pages that work without them: copying, times that stay true, and one form sent once.

const NOW_MS = 5_000;
const UNITS = [[86_400, 'd'], [3_600, 'h'], [60, 'min'], [1, 's']];

function relative(then, now) {
  const seconds = Math.floor(Math.abs(then - now) / 1000);
  if (seconds * 1000 < NOW_MS) return 'just now';
  const [size, unit] = UNITS.find(([size]) => seconds >= size);
  const amount = `${Math.floor(seconds / size)} ${unit}`;
  return then > now ? `in ${amount}` : `${amount} ago`;
}

function refreshTimes() {
  for (const element of document.querySelectorAll('time[data-relative]')) {
    const text = relative(Date.parse(element.dateTime), Date.now());
    if (element.textContent !== text) element.textContent = text;
  }
}

function localTitles() {
  const format = new Intl.DateTimeFormat(undefined, { dateStyle: 'medium', timeStyle: 'medium' });
  for (const element of document.querySelectorAll('time[data-relative]')) {
    element.title = format.format(Date.parse(element.dateTime));
  }
}

async function copy(button) {
  const source = document.getElementById(button.dataset.copy);
  const said = button.textContent;
  try {
    await navigator.clipboard.writeText(source.textContent);
    button.textContent = 'Copied';
  } catch {
    // Without the clipboard (plain HTTP): selected, to be copied by hand.
    getSelection().selectAllChildren(source);
    button.textContent = 'Press Ctrl+C';
  }
  setTimeout(() => { button.textContent = said; }, 2_000);
}

for (const button of document.querySelectorAll('[data-copy]')) {
  button.hidden = false;
  button.addEventListener('click', () => copy(button));
}

// On a small screen rows become cards: each cell then needs its column's name. Not where most columns are numbers, which
// are there to be compared.
function labelCells(table) {
  const heads = [...(table.tHead?.rows[0]?.cells ?? [])];
  // Rows that come later have no such names.
  if (!table.tBodies[0]?.rows.length) return;
  if (table.closest('.chart-data') || heads.filter((head) => head.classList.contains('num')).length > 3) return;
  for (const row of table.tBodies[0].rows) {
    [...row.cells].forEach((cell, index) => { cell.dataset.label = heads[index]?.textContent ?? ''; });
  }
  table.classList.add('stack');
}

document.querySelectorAll('main table').forEach(labelCells);

document.addEventListener('submit', (event) => {
  if (event.defaultPrevented || event.target.method !== 'post') return;
  if (event.target.dataset.sent) event.preventDefault();
  event.target.dataset.sent = '1';
});
// A page that comes back from the browser's cache can be sent again.
addEventListener('pageshow', () => {
  for (const form of document.forms) delete form.dataset.sent;
});

// What the browser finds wrong is said beside the field, as what the server finds is.
function mark(field) {
  const id = `${field.id}-error`;
  let note = document.getElementById(id);
  if (!note) {
    note = document.createElement('p');
    note.id = id;
    note.className = 'field-error';
    (field.closest('.field') ?? field.parentElement).append(note);
    field.setAttribute('aria-describedby', `${field.getAttribute('aria-describedby') ?? ''} ${id}`.trim());
  }
  note.textContent = field.validationMessage;
  field.setAttribute('aria-invalid', 'true');
}

function unmark(field) {
  if (field.getAttribute('aria-invalid') !== 'true' || !field.validity.valid) return;
  const id = `${field.id}-error`;
  document.getElementById(id)?.remove();
  field.removeAttribute('aria-invalid');
  const rest = (field.getAttribute('aria-describedby') ?? '').split(' ').filter((part) => part && part !== id);
  if (rest.length) field.setAttribute('aria-describedby', rest.join(' '));
  else field.removeAttribute('aria-describedby');
}

// Fields of what is folded are seen when they are looked at.
function reveal(field) {
  for (let fold = field.closest('details:not([open])'); fold; fold = fold.parentElement.closest('details:not([open])')) fold.open = true;
  field.focus();
}

document.addEventListener('invalid', (event) => {
  event.preventDefault();
  const field = event.target;
  mark(field);
  if (field.form.querySelector(':invalid:not(fieldset)') === field) reveal(field);
}, true);
document.addEventListener('input', (event) => { if (event.target.validity) unmark(event.target); });

// The form that was refused, and in it the first field that is wrong, is what is to be read first.
document.querySelector('[popover][data-open]')?.showPopover();
const wrong = document.querySelector('[aria-invalid="true"]');
if (wrong) reveal(wrong);

localTitles();
refreshTimes();
setInterval(refreshTimes, 10_000);
