// The live console: controls of the page ↔ a client of the server, and a log of every frame.

import { api } from './api.js';
import { Client } from './wsocket.js';

const ENTRIES_MAX = 1_000;
const TEXT_MAX = 300;
const root = document.getElementById('console');
const $ = (id) => document.getElementById(id);
const { ws: wsUrl, api: apiPath } = root.dataset;

/* Log */

const entries = []; // { element, kind, text, line }, the oldest first
let isPaused = false;
let isFollowing = true;
let dropped = 0;

function kindOf(way, frame) {
  if (way === 'out') return 'sent';
  if (frame.action === 'error') return 'error';
  if (frame.action === 'message') return 'message';
  if (frame.action?.startsWith('presence.')) return 'presence';
  return 'other';
}

// Of an event of presence: the member is in `data`, except in the flat shape, where `data` is their state.
function memberOf({ clientId, data, joinedAt }) {
  return clientId !== undefined && data?.clientId === clientId ? data : { clientId, data, joinedAt };
}

function summaryOf(frame) {
  const { action, channel, data, error, members, messages, clientId } = frame;
  const parts = [];
  if (channel) parts.push(channel);
  if (action === 'error') parts.push(error);
  else if (action === 'presence.members') parts.push(`${members?.length ?? 0} present`);
  else if (action === 'history') parts.push(messages ? `${messages.length} message${messages.length === 1 ? '' : 's'}` : '');
  else if (action?.startsWith('presence.')) {
    const state = memberOf(frame).data;
    parts.push(clientId ?? '', state === undefined ? '' : JSON.stringify(state));
  }
  else if (action === 'ack') parts.push(frame.sequence ? `#${frame.sequence}` : '', frame.id ?? '');
  else if (data !== undefined) parts.push(JSON.stringify(data));
  if (frame.replay) parts.push('(replay)');
  const text = parts.filter(Boolean).join('  ');
  return text.length > TEXT_MAX ? `${text.slice(0, TEXT_MAX)}…` : text;
}

function span(className, text) {
  const element = document.createElement('span');
  element.className = className;
  element.textContent = text;
  return element;
}

function add(way, frame, kind = kindOf(way, frame)) {
  const time = new Date();
  const line = JSON.stringify(frame);
  const element = document.createElement('details');
  element.className = `entry ${kind}`;
  const summary = document.createElement('summary');
  const arrow = span('entry-way', '');
  const mark = span('', { in: '↓', out: '↑', here: '·' }[way]);
  mark.setAttribute('aria-hidden', 'true');
  arrow.append(mark, span('sr', { in: 'received', out: 'sent', here: 'note' }[way]));
  summary.append(
    span('entry-time', time.toLocaleTimeString([], { hour12: false })),
    arrow,
    span('entry-what', frame.action ?? frame.note ?? ''),
    span('entry-text', frame.action ? summaryOf(frame) : frame.text ?? ''),
  );
  element.append(summary);
  // The full frame is only made when somebody looks.
  element.addEventListener('toggle', () => {
    if (!element.open || element.children.length > 1) return;
    const full = document.createElement('pre');
    full.textContent = JSON.stringify(frame, null, 2);
    element.append(full);
  });
  if (isPaused && way !== 'here') {
    dropped += 1;
    tally();
    return;
  }
  entries.push({ element, kind, line, time: time.toISOString(), way, frame });
  $('log-empty').hidden = true;
  element.hidden = !isShown(entries.at(-1));
  $('log').append(element);
  while (entries.length > ENTRIES_MAX) entries.shift().element.remove();
  if (isFollowing) $('log').scrollTop = $('log').scrollHeight;
  tally();
}

function note(text, kind = 'other') {
  add('here', { note: 'connection', text }, kind);
}

function isShown({ kind, line }) {
  const wanted = $('log-kind').value;
  const text = $('log-filter').value.toLowerCase();
  return (!wanted || kind === wanted) && (!text || line.toLowerCase().includes(text));
}

function filter() {
  for (const entry of entries) entry.element.hidden = !isShown(entry);
  tally();
}

function tally() {
  const shown = entries.filter(({ element }) => !element.hidden).length;
  const left = dropped ? `, ${dropped} not kept while paused` : '';
  $('log-count').textContent = entries.length || dropped ? `${shown} of ${entries.length}${left}` : '';
}

$('log').addEventListener('scroll', () => {
  const { scrollTop, scrollHeight, clientHeight } = $('log');
  isFollowing = scrollHeight - scrollTop - clientHeight < 24;
});
$('log-filter').addEventListener('input', filter);
$('log-kind').addEventListener('change', filter);
$('log-pause').addEventListener('click', () => {
  isPaused = !isPaused;
  $('log-pause').setAttribute('aria-pressed', String(isPaused));
  if (!isPaused) dropped = 0;
  tally();
});
$('log-clear').addEventListener('click', () => {
  for (const { element } of entries.splice(0)) element.remove();
  dropped = 0;
  $('log-empty').hidden = false;
  tally();
});
$('log-save').addEventListener('click', () => {
  const lines = entries.map(({ time, way, frame }) => JSON.stringify({ time, way, ...frame }));
  const url = URL.createObjectURL(new Blob([`${lines.join('\n')}\n`], { type: 'application/x-ndjson' }));
  const link = document.createElement('a');
  link.href = url;
  link.download = `console-${new Date().toISOString().replaceAll(':', '')}.ndjson`;
  link.click();
  setTimeout(() => URL.revokeObjectURL(url), 10_000);
});

/* Connection */

let client = null;
let wasOpen = false;

function showWay() {
  const way = $('connect-way').value;
  for (const part of document.querySelectorAll('[data-way]')) {
    part.hidden = part.dataset.way !== way;
    // What is not shown is neither asked for nor checked.
    for (const input of part.querySelectorAll('input')) input.disabled = part.hidden;
  }
}

function showState(state, text) {
  const tones = { open: 'good', connecting: 'warn', waiting: 'warn' };
  $('state').className = `badge ${tones[state] ?? ''}`;
  $('state').textContent = text;
  const isOpen = state === 'open';
  const isOver = state === 'ended' || state === 'idle';
  $('connect').disabled = !isOver;
  $('disconnect').disabled = isOver;
  $('reconnect').disabled = !isOpen;
  $('subscribe').disabled = !isOpen;
  $('publish').disabled = !isOpen;
  $('history').disabled = !isOpen;
  for (const button of $('presence-form').querySelectorAll('button')) button.disabled = !isOpen;
  if (isOver) $('history-more').disabled = true;
  // Once connected its controls are in the way; the log has those to disconnect.
  if (isOpen && !wasOpen) $('g-connect').open = false;
  if (isOver) $('g-connect').open = true;
  wasOpen = isOpen || (wasOpen && !isOver);
}

// A token good for an hour, made with the app's signing key.
async function mint(clientId, pattern) {
  const rights = ['subscribe', 'publish', 'presence', 'history'];
  const wanted = { capabilities: { [pattern]: rights }, ttlS: 3_600 };
  if (clientId) wanted.clientId = clientId;
  try {
    const { token } = await api('POST', `${apiPath}/tokens`, wanted);
    return { token };
  } catch (error) {
    await offerSigningKey();
    throw error;
  }
}

async function offerSigningKey() {
  try {
    const answer = await api('GET', `${apiPath}/signing-keys`);
    const keys = Object.values(answer).find(Array.isArray) ?? [];
    $('sign-notice').hidden = keys.some((key) => key.algorithm === 'HS256' && !key.disabled);
  } catch { /* The failure of the token itself is said. */ }
}

$('sign-make')?.addEventListener('click', async () => {
  try {
    await api('POST', `${apiPath}/signing-keys`, { algorithm: 'HS256' });
    $('sign-notice').hidden = true;
    $('connect-form').requestSubmit();
  } catch (error) {
    note(error.message, 'error');
  }
});

function connect() {
  const form = new FormData($('connect-form'));
  const credentials = {
    key: async () => ({ key: form.get('key').trim() }),
    jwt: async () => ({ token: form.get('jwt').trim() }),
    token: () => mint(form.get('client').trim(), form.get('pattern').trim()),
  };
  const next = new Client(wsUrl, credentials[form.get('way')], { echo: form.has('echo') });
  client?.disconnect();
  client = next;
  const isCurrent = () => client === next;
  next.addEventListener('state', ({ detail }) => {
    if (!isCurrent()) return;
    showState(detail.state, detail.text);
    note(detail.text, detail.state === 'ended' && detail.text !== 'not connected' ? 'error' : 'other');
  });
  next.addEventListener('frame', ({ detail }) => isCurrent() && frame(detail));
  next.addEventListener('channels', () => isCurrent() && showChannels());
  showChannels();
  next.connect();
}

function onSubmit(id, action) {
  $(id).addEventListener('submit', (event) => {
    event.preventDefault();
    action(new FormData(event.target), event.submitter);
  });
}

onSubmit('connect-form', connect);
$('connect-way').addEventListener('change', showWay);
$('disconnect').addEventListener('click', () => client?.disconnect());
$('reconnect').addEventListener('click', () => client?.reconnect());

function frame({ way, frame: content }) {
  // The line is kept alive by these; they say nothing to people.
  if (content.action === 'ping' || content.action === 'pong') return;
  add(way, content);
  if (way !== 'in') return;
  if (content.action === 'presence.members') showMembers(content.members ?? content.data ?? []);
  if (content.action === 'presence.enter' || content.action === 'presence.leave' || content.action === 'presence.update') {
    changeMember(content);
  }
  if (content.action === 'history') showHistory(content);
}

/* Channels */

function showChannels() {
  const chips = [...client.channels].sort().map((channel) => {
    const chip = document.createElement('li');
    const button = document.createElement('button');
    button.type = 'button';
    button.textContent = '×';
    button.setAttribute('aria-label', `Unsubscribe from ${channel}`);
    button.addEventListener('click', () => client.send({ action: 'unsubscribe', channel }));
    chip.append(span('', channel), button);
    return chip;
  });
  $('subscriptions').replaceChildren(...chips);
}

onSubmit('subscribe-form', (form) => {
  const channel = form.get('channel');
  const request = { action: 'subscribe', channel };
  const rewind = Number(form.get('rewind'));
  if (rewind > 0) request.rewind = rewind;
  client?.send(request);
  // The other forms are most often about the same channel.
  for (const id of ['pub-channel', 'presence-channel', 'history-channel']) $(id).value ||= channel;
});

// The value of a JSON field; says what is wrong with it where it is none.
function json(id, fallback) {
  const field = $(id);
  const text = field.value.trim();
  field.setCustomValidity('');
  if (!text && fallback !== undefined) return { value: fallback };
  try {
    return { value: JSON.parse(text) };
  } catch (error) {
    field.setCustomValidity(`Not JSON: ${error.message}`);
    field.reportValidity();
    field.addEventListener('input', () => field.setCustomValidity(''), { once: true });
    return null;
  }
}

onSubmit('publish-form', (form) => {
  const data = json('pub-data');
  if (!data) return;
  const message = { action: 'publish', channel: form.get('channel'), id: newId(), data: data.value };
  if (!form.has('persist')) message.persist = false;
  client?.send(message);
});

// `randomUUID` is there on secure pages only.
function newId() {
  const bytes = crypto.getRandomValues(new Uint8Array(12));
  return Array.from(bytes, (byte) => byte.toString(16).padStart(2, '0')).join('');
}

$('pub-data').addEventListener('keydown', (event) => {
  if (event.key === 'Enter' && (event.ctrlKey || event.metaKey) && !$('publish').disabled) {
    event.preventDefault();
    $('publish-form').requestSubmit();
  }
});

/* Presence */

const members = new Map();
let membersChannel = '';

onSubmit('presence-form', (form, submitter) => {
  const what = submitter?.value ?? 'enter';
  const request = { action: `presence.${what}`, channel: form.get('channel') };
  if (what === 'enter' || what === 'update') {
    const state = json('presence-state', null);
    if (!state) return;
    if (state.value !== null) request.data = state.value;
  }
  if (request.channel !== membersChannel) {
    membersChannel = request.channel;
    members.clear();
    drawMembers();
  }
  client?.send(request);
});

function showMembers(list) {
  members.clear();
  for (const member of list) members.set(member.clientId, member);
  drawMembers();
}

function changeMember(event) {
  if (event.channel !== membersChannel) return;
  const member = memberOf(event);
  if (event.action === 'presence.leave') members.delete(member.clientId);
  else members.set(member.clientId, member);
  drawMembers();
}

function drawMembers() {
  const rows = [...members.values()].map(({ clientId, data, joinedAt }) => {
    const row = document.createElement('tr');
    const name = document.createElement('th');
    name.scope = 'row';
    name.textContent = clientId;
    const state = document.createElement('td');
    state.textContent = data === undefined ? '–' : JSON.stringify(data);
    const since = document.createElement('td');
    since.textContent = joinedAt ? new Date(joinedAt).toLocaleTimeString([], { hour12: false }) : '–';
    row.append(name, state, since);
    return row;
  });
  $('members').replaceChildren(...rows);
  $('members-box').hidden = rows.length === 0;
}

/* History */

let page = null; // What the next page is asked with.

function askHistory(request) {
  page = request;
  client?.send(request);
}

onSubmit('history-form', (form) => {
  const request = { action: 'history', channel: form.get('channel'), direction: form.get('direction') };
  const limit = Number(form.get('limit'));
  if (limit > 0) request.limit = limit;
  askHistory(request);
});

function showHistory(frame) {
  const { messages = [], hasMore } = frame.messages ? frame : frame.data ?? {};
  $('history-more').disabled = !hasMore || !page || messages.length === 0;
  if (!page || messages.length === 0) return;
  const bound = page.direction === 'forward' ? 'after' : 'before';
  page = { ...page, [bound]: messages.at(-1).timestamp };
}

$('history-more').addEventListener('click', () => page && askHistory(page));

addEventListener('pagehide', () => client?.disconnect());
showWay();
showState('idle', 'not connected');
