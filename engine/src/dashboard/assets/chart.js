// A small chart of lines over time. The picture stretches to the width there is, so words stay outside of it, in HTML.
// For those who do not see it: what it shows is told in a sentence, and its numbers are in a table.

const SHORTEST_MS = 60_000;
const SVG = 'http://www.w3.org/2000/svg';

function make(name, attributes = {}, ...children) {
  const element = document.createElement(name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  element.append(...children);
  return element;
}

function draw(name, attributes) {
  const element = document.createElementNS(SVG, name);
  for (const [key, value] of Object.entries(attributes)) element.setAttribute(key, value);
  return element;
}

// The next round number.
function roundUp(value) {
  const step = 10 ** Math.floor(Math.log10(value));
  return [1, 1.5, 2, 3, 4, 5, 6, 8, 10].map((factor) => factor * step).find((top) => top >= value * 0.999);
}

function ago(ms) {
  return ms < 120_000 ? `${Math.round(ms / 1000)} s ago` : `${Math.round(ms / 60_000)} min ago`;
}

function clock(time) {
  return new Date(time).toLocaleTimeString([], { hour: '2-digit', minute: '2-digit', second: '2-digit' });
}

export class LineChart {
  // series: names, one per line. format: a number as text. windowMs: what is shown. least: what the axis goes up to at
  // least, so that next to nothing does not look like a lot.
  constructor(container, { title, series, format, windowMs, least }) {
    Object.assign(this, { title, series, format, windowMs, least });
    this.points = []; // { time, values }, the oldest first

    this.legend = series.map(() => make('strong', {}, '–'));
    const legend = make('span', { class: 'legend-list' });
    series.forEach((name, index) => {
      const swatch = draw('svg', { class: 'swatch', viewBox: '0 0 12 3', 'aria-hidden': 'true' });
      swatch.append(draw('rect', { class: `swatch-${index + 1}`, width: 12, height: 3, rx: 1.5 }));
      const entry = make('span');
      if (series.length > 1) entry.append(swatch, `${name} `);
      entry.append(this.legend[index]);
      legend.append(entry);
    });
    const caption = make('figcaption', {}, make('span', { class: 'chart-title' }, title), legend);

    this.marks = [make('span'), make('span'), make('span', {}, '0')];
    this.area = draw('svg', { class: 'plot-area', role: 'img', preserveAspectRatio: 'none', viewBox: '0 0 1000 100' });
    for (const y of [0, 50, 100]) this.area.append(draw('line', { class: 'grid', x1: 0, x2: 1000, y1: y, y2: y }));
    this.below = draw('path', { class: 'below-1' });
    this.curves = series.map((_, index) => draw('path', { class: `curve curve-${index + 1}` }));
    this.area.append(this.below, ...[...this.curves].reverse());
    this.from = make('span');
    const plot = make(
      'div',
      { class: 'plot' },
      make('div', { class: 'plot-y', 'aria-hidden': 'true' }, ...this.marks),
    );
    plot.append(this.area, make('div', { class: 'plot-x', 'aria-hidden': 'true' }, this.from, make('span', {}, 'now')));

    this.rows = make('tbody');
    const head = make('tr', {}, make('th', { scope: 'col' }, 'Time'));
    for (const name of series) head.append(make('th', { scope: 'col', class: 'num' }, name));
    const table = make('table', {}, make('caption', { class: 'sr' }, title), make('thead', {}, head), this.rows);
    const box = make('div', { class: 'table', role: 'region', 'aria-label': `${title}, data`, tabindex: '0' }, table);
    const summary = make('summary', {}, 'Data', make('span', { class: 'sr' }, ` of ${title}`));
    this.data = make('details', { class: 'chart-data' }, summary, box);
    this.data.addEventListener('toggle', () => this.fillTable());

    container.replaceChildren(make('figure', { class: 'chart' }, caption, plot, this.data));
    this.render();
  }

  push(time, values) {
    this.points.push({ time, values });
    while (this.points.length > 2 && this.points[1].time < time - this.windowMs) this.points.shift();
    this.render();
  }

  render() {
    const last = this.points.at(-1);
    const now = last?.time ?? Date.now();
    const all = this.points.flatMap((point) => point.values).filter(Number.isFinite);
    const top = roundUp(Math.max(this.least, ...all));
    this.marks[0].textContent = this.format(top);
    this.marks[1].textContent = this.format(top / 2);
    // Little is shown wide, rather than a lot of nothing beside it.
    const windowMs = Math.min(this.windowMs, Math.max(SHORTEST_MS, now - (this.points[0]?.time ?? now)));
    this.from.textContent = ago(windowMs);

    const x = (time) => (1000 * (1 - (now - time) / windowMs)).toFixed(1);
    const y = (value) => (100 * (1 - value / top)).toFixed(2);
    this.curves.forEach((curve, index) => {
      const path = this.points
        .filter((point) => Number.isFinite(point.values[index]))
        .map((point, at) => `${at ? 'L' : 'M'}${x(point.time)} ${y(point.values[index])}`)
        .join('');
      curve.setAttribute('d', path);
      if (index === 0) {
        const first = this.points.find((point) => Number.isFinite(point.values[0]));
        this.below.setAttribute('d', path ? `${path}L1000 100L${x(first.time)} 100Z` : '');
      }
      const value = last?.values[index];
      this.legend[index].textContent = Number.isFinite(value) ? this.format(value) : '–';
    });
    const told = this.series.map((name, index) => `${name} ${this.legend[index].textContent}`).join(', ');
    this.area.setAttribute('aria-label', `${this.title}, since ${ago(windowMs)}. Now: ${told}.`);
    this.fillTable();
  }

  fillTable() {
    if (!this.data.open) return;
    const rows = this.points.slice(-60).reverse().map((point) => {
      const row = make('tr', {}, make('th', { scope: 'row' }, clock(point.time)));
      for (const value of point.values) {
        row.append(make('td', { class: 'num' }, Number.isFinite(value) ? this.format(value) : '–'));
      }
      return row;
    });
    this.rows.replaceChildren(...rows);
  }
}
