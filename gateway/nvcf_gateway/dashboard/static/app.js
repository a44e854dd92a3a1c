// Signs in, reads the API every two seconds, and reports when that fails.

import { ApiError, account, read, session, signIn, signOut, ticketFromAddress, versionFromAddress } from "./api.js";
import { Overview } from "./overview.js";
import { byId, h } from "./dom.js";
import { clock, short } from "./format.js";

const INTERVAL_MS = 2000;
// The pause after a read is at least so many times as long as the read itself.
const PAUSE_FACTOR = 4;
const MAX_BACKOFF_MS = 15_000;
const THEME = "nvcf.theme";

let overview = null;
let chosen = null;
let timer = 0;
let round = 0;
let failures = 0;
let shownAt = null;
let last = null;

function setTheme(name) {
  document.documentElement.dataset.theme = name;
}

function preferredTheme() {
  const dark = matchMedia("(prefers-color-scheme: dark)").matches;
  return localStorage.getItem(THEME) ?? (dark ? "dark" : "light");
}

function pulse(kind, text) {
  byId("pulse").className = `pulse ${kind}`;
  byId("pulse").textContent = text;
}

function notices(...texts) {
  const shown = texts.filter(Boolean).map(([text, kind]) => h("p", { class: `notice ${kind ?? ""}` }, text));
  byId("notices").replaceChildren(...shown);
}

function showSignIn(error) {
  round += 1;
  clearTimeout(timer);
  signOut();
  chosen = null;
  last = null;
  byId("overview").hidden = true;
  byId("leave").hidden = true;
  byId("scope").hidden = true;
  byId("account").textContent = "";
  byId("sign-in").hidden = false;
  byId("sign-in-error").hidden = !error;
  byId("sign-in-error").textContent = error ?? "";
  notices();
  pulse("", "");
  byId("key").focus();
}

function showOverview() {
  byId("sign-in").hidden = true;
  byId("overview").hidden = false;
  byId("leave").hidden = false;
  byId("account").textContent = account();
  overview ??= new Overview(choose);
  schedule(0);
}

function choose(versionId) {
  history.pushState(null, "", versionId ? `#version=${versionId}` : location.pathname);
  start();
}

function showScope(functions) {
  // Built once a choice, so that its button keeps the focus.
  if (byId("scope").dataset.version === String(chosen)) return;
  byId("scope").dataset.version = String(chosen);
  const name = functions.find((each) => each.versionId === chosen)?.name ?? "";
  byId("scope").hidden = !chosen;
  byId("scope").replaceChildren(
    h("span", {}, `${name} ${short(chosen)}`),
    h("button", { class: "quiet", type: "button", title: "All functions", onclick: () => choose(null) }, "×"),
  );
}

function schedule(delay) {
  clearTimeout(timer);
  round += 1;
  const mine = round;
  timer = setTimeout(() => refresh(mine), delay);
}

async function refresh(mine) {
  if (document.hidden) {
    pulse("", "paused");
    return;
  }
  const began = performance.now();
  try {
    const data = await read(chosen, last);
    // Another version was chosen meanwhile, or the user has signed out.
    if (mine !== round) return;
    failures = 0;
    last = data;
    shownAt = Date.now() / 1000;
    show(data);
    // If a response takes long, with thousands of functions for example, reading less often spares the gateway.
    schedule(Math.max(INTERVAL_MS, PAUSE_FACTOR * (performance.now() - began)));
  } catch (error) {
    if (mine !== round) return;
    if (!(error instanceof ApiError)) console.error(error);
    if (error.status === 401 || error.status === 403) showSignIn(`${error.message}.`);
    else fail(error);
  }
}

function show(data) {
  byId("overview").classList.remove("stale");
  const { gateways, versions } = data.figures;
  const missing = gateways.known - gateways.answered;
  notices(
    missing > 0 && [`${missing} of ${gateways.known} gateways did not respond in time: rates and counts are too low.`],
    versions.some((each) => each.queue === null) && ["The broker did not report the length of some queues in time."],
  );
  pulse("live", `live, ${clock(shownAt, true)}`);
  showScope(data.functions);
  overview.show(data, chosen);
}

function fail(error) {
  failures += 1;
  const wait = Math.min(MAX_BACKOFF_MS, INTERVAL_MS * 2 ** (failures - 1));
  byId("overview").classList.add("stale");
  const age = shownAt ? ` The data is from ${clock(shownAt, true)}.` : "";
  const text = error instanceof ApiError ? error.message : `Error in the page: ${error.message}.`;
  notices([`${text.replace(/[.]?$/, ".")}${age} Trying again in ${wait / 1000} s.`, "bad"]);
  pulse("stale", "not live");
  schedule(wait);
}

async function enter(credential) {
  try {
    await signIn(credential);
    showOverview();
  } catch (error) {
    showSignIn(`${error.message.replace(/[.]?$/, ".")}`);
  }
}

byId("theme").addEventListener("click", () => {
  const name = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem(THEME, name);
  setTheme(name);
});
byId("leave").addEventListener("click", () => showSignIn());
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = byId("key").value.trim();
  byId("key").value = "";
  if (key) enter(key);
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && session()) schedule(0);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(preferredTheme()));
addEventListener("popstate", start);

function start() {
  setTheme(preferredTheme());
  const ticket = ticketFromAddress();
  chosen = versionFromAddress();
  if (ticket) enter(ticket);
  else if (session()) showOverview();
  else showSignIn();
}

start();
