"use strict";
// Applies server-sent updates, shows the age of times, sends the requests of buttons.

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

function showAge(time) {
  const seconds = (Date.now() - Date.parse(time.dateTime)) / 1000;
  if (!time.title) time.title = new Date(time.dateTime).toLocaleString() + "  (" + time.dateTime + ")";
  const text = Math.abs(seconds) < 1 ? "now" : seconds >= 0 ? `${durationText(seconds)} ago` : `in ${durationText(seconds)}`;
  if (time.textContent !== text) time.textContent = text;
}

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

async function post(path, body, method = "POST") {
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

async function onButton(button) {
  const { post: path, confirm: question, reason: withReason, body, to, method } = button.dataset;
  let reason = "";
  if (question) {
    reason = await confirmAction(question, withReason !== undefined);
    if (reason === null) return;
  }
  button.disabled = true;
  try {
    const given = withReason !== undefined && reason ? { reason } : JSON.parse(body || "{}");
    const { ok, answer } = await post(path, given, method);
    if (ok && to) { location.assign(to); return; }
    showToast(ok ? `${button.textContent}: done.` : answer.detail || FAILED);
  } catch {
    showToast(UNREACHABLE);
  } finally {
    button.disabled = false;
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-post]");
  if (button) onButton(button);
});

// -- forms that set something: text fields as text, those marked with data-json as JSON, empty ones left out

async function saveForm(button) {
  const form = button.form;
  if (!form.reportValidity()) return;
  const body = {};
  for (const field of form.elements) {
    if (!field.name || field.name === "name" || !field.value.trim()) continue;
    try {
      body[field.name] = field.dataset.json === undefined ? field.value.trim() : JSON.parse(field.value);
    } catch {
      showToast(`${field.name}: expected JSON.`);
      return;
    }
  }
  button.disabled = true;
  try {
    const response = await fetch(button.dataset.put + encodeURIComponent(form.elements.name.value), {
      method: "PUT", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), credentials: "same-origin",
    });
    const answer = await response.json().catch(() => ({}));
    if (response.ok) location.assign(button.dataset.to + encodeURIComponent(form.elements.name.value));
    else showToast(answer.detail || FAILED);
  } catch {
    showToast(UNREACHABLE);
  } finally {
    button.disabled = false;
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-put]");
  if (button) saveForm(button);
});

const login = document.getElementById("login");
if (login) {
  login.addEventListener("submit", async (event) => {
    event.preventDefault();
    const error = document.getElementById("login-error");
    error.textContent = "";
    try {
      const { ok, answer } = await post(`${prefix}/login`, { token: login.token.value });
      if (ok) location.assign(`${prefix}/`);
      else error.textContent = answer.detail || FAILED;
    } catch {
      error.textContent = UNREACHABLE;
    }
  });
}

showAges();
setInterval(showAges, 1000);
if (!document.hidden) subscribe();
