// Signs in, reads the API every two seconds, and reports when that fails.

import {
  ApiError, account, read, readTask, session, signIn, signOut, taskFromAddress, ticketFromAddress, versionFromAddress,
} from "./api.js";
import { Overview } from "./overview.js";
import { byId, h } from "./dom.js";
import { clock, short } from "./format.js";
import { TaskPage } from "./tasks.js";

const INTERVAL_MS = 2000;
// The pause after a read is at least so many times as long as the read itself.
const PAUSE_FACTOR = 4;
const MAX_BACKOFF_MS = 15_000;
const THEME = "nvcf.theme";

let overview = null;
let taskPage = null;
let chosen = null;
let chosenTask = null;
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
  chosenTask = null;
  last = null;
  byId("overview").hidden = true;
  byId("task-page").hidden = true;
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
  byId("overview").hidden = Boolean(chosenTask);
  // Never one task under the address of another.
  byId("task-page").hidden = !chosenTask || taskPage?.shown !== chosenTask;
  byId("leave").hidden = false;
  byId("account").textContent = account();
  overview ??= new Overview(choose, (id) => go(`#task=${id}`));
  taskPage ??= new TaskPage();
  schedule(0);
}

function choose(versionId) {
  go(versionId ? `#version=${versionId}` : location.pathname);
}

function go(address) {
  history.pushState(null, "", address);
  start();
}

function showScope(name) {
  const id = chosenTask ?? chosen;
  // Built once a choice, so that its button keeps the focus.
  if (byId("scope").dataset.id === String(id)) return;
  byId("scope").dataset.id = String(id);
  byId("scope").hidden = !id;
  byId("scope").replaceChildren(
    h("span", {}, `${name} ${short(id)}`),
    h("button", { class: "quiet", type: "button", title: "Overview", onclick: () => choose(null) }, "×"),
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
    const data = await (chosenTask ? readTask(chosenTask) : read(chosen, last));
    // Something else was chosen meanwhile, or the user has signed out.
    if (mine !== round) return;
    failures = 0;
    shownAt = Date.now() / 1000;
    if (chosenTask) {
      showTask(data);
    } else {
      last = data;
      show(data);
    }
    // If a response takes long, with thousands of functions for example, reading less often spares the gateway.
    schedule(Math.max(INTERVAL_MS, PAUSE_FACTOR * (performance.now() - began)));
  } catch (error) {
    if (mine !== round) return;
    if (!(error instanceof ApiError)) console.error(error);
    if (error.status === 401 || error.status === 403) showSignIn(`${error.message}.`);
    else fail(error);
  }
}

function showTask(data) {
  byId("task-page").classList.remove("stale");
  byId("task-page").hidden = false;
  notices();
  pulse("live", `live, ${clock(shownAt, true)}`);
  showScope(data.task.name);
  taskPage.show(data);
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
  showScope(data.functions.find((each) => each.versionId === chosen)?.name ?? "");
  overview.show(data, chosen);
}

function fail(error) {
  failures += 1;
  const wait = Math.min(MAX_BACKOFF_MS, INTERVAL_MS * 2 ** (failures - 1));
  for (const id of ["overview", "task-page"]) byId(id).classList.add("stale");
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
  chosenTask = taskFromAddress();
  if (ticket) enter(ticket);
  else if (session()) showOverview();
  else showSignIn();
}

start();
