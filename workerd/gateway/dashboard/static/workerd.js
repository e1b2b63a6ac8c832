"use strict";
// Applies server-sent updates, shows times as the reader has them, sends the requests of buttons and forms.

const TOAST_MS = 6000;
const RESUBSCRIBE_MS = 3000;
const FAILED = "The request failed; retry later.";
const UNREACHABLE = "The node does not answer; retry later.";
const prefix = document.body.dataset.prefix || "";  // the path of a proxy in front

const toast = document.getElementById("toast");
const pulse = document.getElementById("pulse");
let toastTimer = 0;

function showToast(text) {
  toast.textContent = text;
  clearTimeout(toastTimer);
  toastTimer = setTimeout(() => { toast.textContent = ""; }, TOAST_MS);
}

// -- times

function durationText(seconds) {
  const span = Math.abs(seconds);
  if (span < 60) return `${Math.floor(span)} s`;
  if (span < 3600) return `${Math.floor(span / 60)} min`;
  if (span < 172800) return `${Math.floor(span / 3600)} h`;
  return `${Math.floor(span / 86400)} d`;
}

const FULL = { dateStyle: "medium", timeStyle: "medium" };

function showAge(time) {
  const moment = new Date(time.dateTime);
  const seconds = (Date.now() - moment) / 1000;
  const age = Math.abs(seconds) < 1 ? "now" : seconds >= 0 ? `${durationText(seconds)} ago` : `in ${durationText(seconds)}`;
  const isFull = time.classList.contains("full");
  const local = moment.toLocaleString(undefined, FULL);
  const utc = `${time.dateTime.slice(0, 19).replace("T", " ")} UTC`;
  const title = isFull ? utc : `${local}, ${utc}`;
  if (time.title !== title) time.title = title;
  const text = isFull ? `${local} · ${age}` : age;
  if (time.textContent !== text) time.textContent = text;
}

// Fields for a time are in the reader's zone; what they come with, and what is sent, is UTC.

function localText(utc) {
  const moment = new Date(`${utc}Z`);
  return new Date(moment - moment.getTimezoneOffset() * 60000).toISOString().slice(0, 19);
}

function utcText(field) { return field.value ? new Date(field.value).toISOString() : ""; }

document.querySelectorAll("input[data-zone]").forEach((field) => {
  if (field.getAttribute("value")) field.defaultValue = field.value = localText(field.getAttribute("value"));
  if (field.form.method !== "get") return;
  const name = field.name;
  field.form.addEventListener("formdata", (event) => {
    if (field.value) event.formData.set(name, utcText(field).slice(0, 19) + "Z");
  });
});

function showAges() { document.querySelectorAll("time.ago").forEach(showAge); }

// -- updates: only nodes that differ are replaced, so that focus, selection and open details survive

function sameElement(a, b) { return a.nodeType === b.nodeType && a.nodeName === b.nodeName && a.id === b.id; }

function morph(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  if (old.matches("time.ago") && fresh.matches("time.ago") && old.dateTime === fresh.dateTime) return;
  const isDetails = old.nodeName === "DETAILS";
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !(name === "open" && isDetails)) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value && !(name === "open" && isDetails)) old.setAttribute(name, value);
  }
  morphChildren(old, fresh);
}

function morphChildren(old, fresh) {
  const children = [...fresh.childNodes];
  children.forEach((child, index) => {
    const current = old.childNodes[index];
    if (!current) old.append(child);
    else if (sameElement(current, child)) morph(current, child);
    else current.replaceWith(child);
  });
  while (old.childNodes.length > children.length) old.lastChild.remove();
}

function applyUpdate(parts) {
  for (const [id, html] of Object.entries(parts)) {
    if (id === "") { if (html) showToast(html); continue; }  // the error part, as text
    const part = document.getElementById(id);
    if (!part) continue;
    const box = new DOMParser().parseFromString(`<div id="box">${html}</div>`, "text/html");
    morphChildren(part, box.getElementById("box"));
  }
  showAges();
  showTicks();
}

function setPulse(state) {
  if (!pulse) return;
  pulse.className = `pulse ${state}`;
  const text = state === "on" ? "live" : state === "off" ? "reconnecting" : "paused";
  if (pulse.textContent !== text) pulse.textContent = text;
}

let source = null;
const view = document.body.dataset.live;

function subscribe() {
  if (!view || source) return;
  source = new EventSource(`${prefix}/events?view=${encodeURIComponent(view)}`);
  source.onopen = () => setPulse("on");
  source.onmessage = (event) => { setPulse("on"); applyUpdate(JSON.parse(event.data)); };
  source.onerror = () => {
    setPulse("off");
    // A browser does not reconnect after an error response, such as 503 while the node restarts.
    if (source && source.readyState === EventSource.CLOSED) { source = null; setTimeout(subscribe, RESUBSCRIBE_MS); }
  };
}

function unsubscribe() { if (source) { source.close(); source = null; setPulse("idle"); } }

// Hidden pages are not updated.
document.addEventListener("visibilitychange", () => (document.hidden ? unsubscribe() : subscribe()));
addEventListener("pagehide", unsubscribe);
addEventListener("pageshow", subscribe);

// -- buttons

async function send(path, body, method = "POST") {
  const response = await fetch(path, {
    method, headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), credentials: "same-origin",
  });
  return { ok: response.ok, answer: await response.json().catch(() => ({})) };
}

/** Resolves to the reason ("" without one), or to null if the user declined. */
function confirmAction(question, withReason) {
  const dialog = document.getElementById("confirm");
  document.getElementById("question").textContent = question;
  const field = dialog.querySelector("input[name=reason]");
  field.value = "";
  field.parentElement.hidden = !withReason;
  dialog.returnValue = "no";
  dialog.showModal();
  (withReason ? field : dialog.querySelector("button[value=yes]")).focus();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes" ? field.value.trim() : null), { once: true });
  });
}

/** Disables the button while `work` runs; what it returns is shown. */
async function during(button, work) {
  button.disabled = true;
  try {
    const text = await work();
    if (text) showToast(text);
  } catch {
    showToast(UNREACHABLE);
  } finally {
    button.disabled = false;
  }
}

async function onButton(button) {
  const { post: path, confirm: question, reason: withReason, body, to, method } = button.dataset;
  let reason = "";
  if (question) {
    reason = await confirmAction(question, withReason !== undefined);
    if (reason === null) return;
  }
  await during(button, async () => {
    const given = withReason !== undefined && reason ? { reason } : JSON.parse(body || "{}");
    const { ok, answer } = await send(path, given, method);
    if (ok && to) { location.assign(to); return ""; }
    return ok ? `${button.textContent}: done.` : answer.detail || FAILED;
  });
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-post]");
  if (button) onButton(button);
});

// -- jobs that are ticked, and all that match the filters of the page

const ticked = new Set();  // ids: rows move when the page is updated

function ticks() { return [...document.querySelectorAll("#list input.tick")]; }

function showTicks() {
  const all = document.getElementById("tick-all");
  if (!all) return;
  const shown = ticks();
  const ids = new Set(shown.map((box) => box.value));
  ticked.forEach((id) => { if (!ids.has(id)) ticked.delete(id); });  // nobody sees what is gone
  shown.forEach((box) => { box.checked = ticked.has(box.value); });
  all.checked = shown.length > 0 && ticked.size === shown.length;
  all.indeterminate = ticked.size > 0 && !all.checked;
  document.getElementById("ticked").textContent = ticked.size ? `${ticked.size} ticked` : "none ticked";
  document.querySelectorAll("button[data-ticked]").forEach((button) => { button.disabled = !ticked.size; });
}

document.addEventListener("change", ({ target }) => {
  if (target.id === "tick-all") ticks().forEach((box) => (target.checked ? ticked.add(box.value) : ticked.delete(box.value)));
  else if (target.matches("#list input.tick")) target.checked ? ticked.add(target.value) : ticked.delete(target.value);
  else return;
  showTicks();
});

function jobs(count) { return count === 1 ? "1 job" : `${count.toLocaleString("en")} jobs`; }

async function onTicked(button) {
  const ids = [...ticked], act = button.dataset.ticked;
  if (await confirmAction(`${button.textContent}: ${jobs(ids.length)}?`, false) === null) return;
  let done = 0, refused = "";
  await during(button, async () => {
    for (const id of ids) {
      const { ok, answer } = await send(`${prefix}/jobs/${id}/${act}`, {});
      if (ok) { done += 1; ticked.delete(id); } else refused = answer.detail || FAILED;
      showToast(`${done} of ${jobs(ids.length)} …`);
    }
    return `${done} of ${jobs(ids.length)}: done.${refused ? ` The others: ${refused}` : ""}`;
  });
  showTicks();
}

async function onAll(button) {
  const { all: path, filter } = button.dataset;
  const body = { filter: JSON.parse(filter) };
  let found;
  await during(button, async () => {
    found = await send(path, { ...body, dry_run: true });
    return found.ok ? "" : found.answer.detail || FAILED;
  });
  if (!found || !found.ok) return;
  const { matched } = found.answer;
  if (!matched) { showToast("No job matches."); return; }
  const question = `${jobs(matched)} ${matched === 1 ? "matches" : "match"}. ${button.textContent}?`;
  if (await confirmAction(question, false) === null) return;
  await during(button, async () => {
    showToast(`${button.textContent} …`);
    const { ok, answer } = await send(path, body);
    return ok ? `${answer.done.toLocaleString("en")} of ${jobs(answer.matched)}: done.` : answer.detail || FAILED;
  });
}

// -- values that the page redacts or cuts short

async function onShow(button) {
  const { show: path, reveal, confirm: question } = button.dataset;
  if (question && await confirmAction(question, false) === null) return;
  await during(button, async () => {
    const response = await fetch(path, { headers: reveal === undefined ? {} : { "X-Reveal": "1" }, credentials: "same-origin" });
    const answer = await response.json().catch(() => ({}));
    if (!response.ok) return answer.detail || FAILED;
    const shown = Object.fromEntries(VALUES.filter((name) => (answer[name] ?? null) !== null).map((name) => [name, answer[name]]));
    document.getElementById("values-text").textContent = JSON.stringify(shown, null, 2);
    document.getElementById("values").showModal();
    return "";
  });
}

const VALUES = ["vars", "meta", "state", "payload", "payload_base64", "params", "extras"];
document.getElementById("values")?.addEventListener("close", () => { document.getElementById("values-text").textContent = ""; });

// -- forms that send JSON: fields as text, those with data-json as JSON; empty ones are left out

function fieldValue(field) {
  if (field.dataset.zone !== undefined) return utcText(field);
  if (field.dataset.json === undefined) return field.value;
  try {
    return JSON.parse(field.value);
  } catch {
    throw new SyntaxError(`${field.name}: expected JSON, such as ["a", 1] or "text".`);
  }
}

function isChanged(field) {
  if (field.nodeName !== "SELECT") return field.value !== field.defaultValue;
  return [...field.options].some((option) => option.selected !== option.defaultSelected);
}

/** The body that the form stands for; of a form that changes something only what was changed. */
function formBody(form, named, onlyChanged) {
  const body = {}, vars = {};
  for (const field of form.elements) {
    if (!field.name || field.name === named || (onlyChanged && !isChanged(field))) continue;
    const isEmpty = !field.value.trim();
    if (isEmpty && !onlyChanged) continue;
    const value = isEmpty ? null : fieldValue(field);
    if (field.name === "vars" && form.querySelector("[name^='vars.']")) Object.assign(vars, value);
    else if (field.name.startsWith("vars.")) vars[field.name.slice(5)] = value;
    else body[field.name] = value;
  }
  return Object.keys(vars).length ? { ...body, vars } : body;
}

async function onSend(button) {
  const { send: path, method, to, named, changed } = button.dataset;
  const form = button.form;
  if (!form.reportValidity()) return;
  let body;
  try {
    body = formBody(form, named, changed !== undefined);
  } catch (error) {
    showToast(error.message);
    return;
  }
  const name = named ? encodeURIComponent(form.elements[named].value) : "";
  await during(button, async () => {
    const { ok, answer } = await send(path + name, body, method || "POST");
    if (!ok) return answer.detail || FAILED;
    location.assign(to.endsWith("/") ? to + (name || answer.id) : to);
    return "";
  });
}

const HANDLERS = { send: onSend, ticked: onTicked, all: onAll, show: onShow };
document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  const kind = button && Object.keys(HANDLERS).find((name) => button.dataset[name] !== undefined);
  if (kind) HANDLERS[kind](button);
});
document.querySelectorAll("form.form").forEach((form) => form.addEventListener("submit", (event) => {
  event.preventDefault();  // Enter in a field
  form.querySelector("button[data-send]")?.click();
}));

const login = document.getElementById("login");
if (login) {
  login.addEventListener("submit", async (event) => {
    event.preventDefault();
    const error = document.getElementById("login-error");
    error.textContent = "";
    try {
      const { ok, answer } = await send(`${prefix}/login`, { token: login.token.value });
      if (ok) location.assign(`${prefix}/`);
      else error.textContent = answer.detail || FAILED;
    } catch {
      error.textContent = UNREACHABLE;
    }
  });
}

showAges();
showTicks();
setInterval(showAges, 1000);
if (!document.hidden) subscribe();
