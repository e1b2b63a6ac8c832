"use strict";
// What the page does by itself: takes news, says how long ago things were, sends what its buttons mean.

const said = document.getElementById("said");
const pulse = document.getElementById("pulse");
let silence = 0;

function say(text) {
  said.textContent = text;
  clearTimeout(silence);
  silence = setTimeout(() => { said.textContent = ""; }, 6000);
}

// -- times

function words(seconds) {
  const far = Math.abs(seconds);
  if (far < 60) return `${Math.floor(far)} s`;
  if (far < 3600) return `${Math.floor(far / 60)} min`;
  if (far < 172800) return `${Math.floor(far / 3600)} h`;
  return `${Math.floor(far / 86400)} d`;
}

function tell(time) {
  const seconds = (Date.now() - Date.parse(time.dateTime)) / 1000;
  if (!time.title) time.title = new Date(time.dateTime).toLocaleString() + "  (" + time.dateTime + ")";
  const text = Math.abs(seconds) < 1 ? "now" : seconds >= 0 ? `${words(seconds)} ago` : `in ${words(seconds)}`;
  if (time.textContent !== text) time.textContent = text;
}

function tellAll() { document.querySelectorAll("time.ago").forEach(tell); }

// -- news: only what differs is touched, so that focus, selection and opened details stay

function alike(a, b) { return a.nodeType === b.nodeType && a.nodeName === b.nodeName && a.id === b.id; }

function morph(old, fresh) {
  if (old.nodeType !== Node.ELEMENT_NODE) {
    if (old.nodeValue !== fresh.nodeValue) old.nodeValue = fresh.nodeValue;
    return;
  }
  if (old.matches("time.ago") && fresh.matches("time.ago") && old.dateTime === fresh.dateTime) return;
  for (const { name } of [...old.attributes]) {
    if (!fresh.hasAttribute(name) && !(name === "open" && old.nodeName === "DETAILS")) old.removeAttribute(name);
  }
  for (const { name, value } of fresh.attributes) {
    if (old.getAttribute(name) !== value && !(name === "open" && old.nodeName === "DETAILS")) old.setAttribute(name, value);
  }
  children(old, fresh);
}

function children(old, fresh) {
  const wanted = [...fresh.childNodes];
  wanted.forEach((child, index) => {
    const there = old.childNodes[index];
    if (!there) old.append(child);
    else if (alike(there, child)) morph(there, child);
    else there.replaceWith(child);
  });
  while (old.childNodes.length > wanted.length) old.lastChild.remove();
}

function take(parts) {
  for (const [id, html] of Object.entries(parts)) {
    if (id === "") { trouble(html); continue; }
    const part = document.getElementById(id);
    if (!part) continue;
    const box = new DOMParser().parseFromString(`<div id="box">${html}</div>`, "text/html");
    children(part, box.getElementById("box"));
  }
  tellAll();
}

function trouble(text) { if (text) say(text); }

function beat(state) {
  if (!pulse) return;
  pulse.className = `pulse ${state}`;
  const text = state === "on" ? "live" : state === "off" ? "reconnecting" : "paused";
  if (pulse.textContent !== text) pulse.textContent = text;
}

let source = null;
const view = document.body.dataset.live;

function listen() {
  if (!view || source) return;
  source = new EventSource(`/events?view=${encodeURIComponent(view)}`);
  source.onopen = () => beat("on");
  source.onmessage = (event) => { beat("on"); take(JSON.parse(event.data)); };
  source.onerror = () => {
    beat("off");
    // A browser gives up after an answer that is no stream, such as 503 while the node starts again.
    if (source && source.readyState === EventSource.CLOSED) { source = null; setTimeout(listen, 3000); }
  };
}

function leave() { if (source) { source.close(); source = null; beat("idle"); } }

// A page that nobody sees is not kept fresh.
document.addEventListener("visibilitychange", () => (document.hidden ? leave() : listen()));
addEventListener("pagehide", leave);
addEventListener("pageshow", listen);

// -- what buttons do

async function send(path, body) {
  const answer = await fetch(path, {
    method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(body), credentials: "same-origin",
  });
  const document_ = await answer.json().catch(() => ({}));
  return { ok: answer.ok, status: answer.status, document: document_ };
}

function ask(question, withReason) {
  const dialog = document.getElementById("ask");
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

async function act(button) {
  const { post, ask: question, reason, to } = button.dataset;
  let why = "";
  if (question) {
    why = await ask(question, reason !== undefined);
    if (why === null) return;
  }
  button.disabled = true;
  try {
    const { ok, document: answer } = await send(post, reason !== undefined && why ? { reason: why } : {});
    if (ok && to) { location.assign(to); return; }
    say(ok ? `${button.textContent}: done.` : answer.detail || "That did not work; try again.");
  } catch {
    say("The node does not answer; try again.");
  } finally {
    button.disabled = false;
  }
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button[data-post]");
  if (button) act(button);
});

const login = document.getElementById("login");
if (login) {
  login.addEventListener("submit", async (event) => {
    event.preventDefault();
    const wrong = document.getElementById("wrong");
    wrong.textContent = "";
    try {
      const { ok, document: answer } = await send("/login", { token: login.token.value });
      if (ok) location.assign("/");
      else wrong.textContent = answer.detail || "That did not work; try again.";
    } catch {
      wrong.textContent = "The node does not answer; try again.";
    }
  });
}

tellAll();
setInterval(tellAll, 1000);
if (!document.hidden) listen();
