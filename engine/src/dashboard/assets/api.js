// Calls of the dashboard's API: JSON in, JSON out, with the session's cookies and the CSRF token of the page.

const BASE = new URL('../../', import.meta.url).pathname.replace(/\/$/, '');

export class ApiError extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

function csrf() {
  return document.querySelector('meta[name="csrf-token"]')?.content ?? '';
}

async function once(method, path, body) {
  const headers = { 'X-CSRF-Token': csrf(), Accept: 'application/json' };
  if (body !== undefined) headers['Content-Type'] = 'application/json';
  return fetch(path, {
    method,
    headers,
    body: body === undefined ? undefined : JSON.stringify(body),
    credentials: 'same-origin',
    cache: 'no-store',
    redirect: 'error',
  });
}

let renewal = null;

// One renewal at a time: a refresh token is good once, and used twice it ends the session.
function renew() {
  renewal ??= once('POST', `${BASE}/api/refresh`, {}).finally(() => { renewal = null; });
  return renewal;
}

export async function api(method, path, body) {
  let answer = await once(method, path, body);
  if (answer.status === 401 && (await renew()).ok) answer = await once(method, path, body);
  const text = await answer.text();
  let value = null;
  try { value = text ? JSON.parse(text) : null; } catch { /* said below */ }
  if (!answer.ok) throw new ApiError(answer.status, value?.error ?? `The server answered ${answer.status}`);
  return value;
}
