// Signing in, asking every two seconds, and saying honestly when that does not work.

import { Refused, account, leave, read, session, signIn, ticketFromAddress } from "./api.js";
import { Board } from "./board.js";
import { byId, h } from "./dom.js";
import { clock, short } from "./format.js";

const EVERY = 2000;
const PAUSE = 4;
const LONGEST_WAIT = 15_000;
const THEME = "nvcf.theme";

let board = null;
let chosen = null;
let timer = 0;
let round = 0;
let failures = 0;
let seenAt = null;
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

function showDoor(why) {
  round += 1;
  clearTimeout(timer);
  leave();
  chosen = null;
  last = null;
  byId("board").hidden = true;
  byId("leave").hidden = true;
  byId("scope").hidden = true;
  byId("account").textContent = "";
  byId("door").hidden = false;
  byId("door-why").hidden = !why;
  byId("door-why").textContent = why ?? "";
  notices();
  pulse("", "");
  byId("key").focus();
}

function showBoard() {
  byId("door").hidden = true;
  byId("board").hidden = false;
  byId("leave").hidden = false;
  byId("account").textContent = account();
  board ??= new Board(choose);
  again(0);
}

function choose(versionId, name) {
  chosen = versionId;
  byId("scope").hidden = !versionId;
  byId("scope").replaceChildren(
    h("span", {}, `${name} ${short(versionId)}`),
    h("button", { class: "quiet", type: "button", title: "All functions", onclick: () => choose(null) }, "×"),
  );
  again(0);
}

function again(delay) {
  clearTimeout(timer);
  round += 1;
  const mine = round;
  timer = setTimeout(() => look(mine), delay);
}

async function look(mine) {
  if (document.hidden) {
    pulse("", "paused");
    return;
  }
  const began = performance.now();
  try {
    const seen = await read(chosen, last);
    // Something else was chosen meanwhile, or the user has left.
    if (mine !== round) return;
    failures = 0;
    last = seen;
    seenAt = Date.now() / 1000;
    show(seen);
    // Where answering takes long, of thousands of functions say, there is little else that the gateway would do.
    again(Math.max(EVERY, PAUSE * (performance.now() - began)));
  } catch (error) {
    if (mine !== round) return;
    if (!(error instanceof Refused)) console.error(error);
    if (error.status === 401 || error.status === 403) showDoor(`${error.message}.`);
    else fail(error);
  }
}

function show(seen) {
  byId("board").classList.remove("stale");
  const { gateways, versions } = seen.figures;
  const missing = gateways.known - gateways.answered;
  notices(
    missing > 0 && [`${missing} of ${gateways.known} gateways did not answer in time: rates and counts are too low.`],
    versions.some((each) => each.queue === null) && ["The broker did not say in time how long some queues are."],
  );
  pulse("live", `live, ${clock(seenAt, true)}`);
  board.show(seen, chosen);
}

function fail(error) {
  failures += 1;
  const wait = Math.min(LONGEST_WAIT, EVERY * 2 ** (failures - 1));
  byId("board").classList.add("stale");
  const old = seenAt ? ` What is shown is from ${clock(seenAt, true)}.` : "";
  const text = error instanceof Refused ? error.message : `The page has a fault: ${error.message}.`;
  notices([`${text.replace(/[.]?$/, ".")}${old} Trying again in ${wait / 1000} s.`, "bad"]);
  pulse("stale", "not live");
  again(wait);
}

async function enter(credential) {
  try {
    await signIn(credential);
    showBoard();
  } catch (error) {
    showDoor(`${error.message.replace(/[.]?$/, ".")}`);
  }
}

byId("theme").addEventListener("click", () => {
  const name = document.documentElement.dataset.theme === "dark" ? "light" : "dark";
  localStorage.setItem(THEME, name);
  setTheme(name);
});
byId("leave").addEventListener("click", () => showDoor());
byId("key-form").addEventListener("submit", (event) => {
  event.preventDefault();
  const key = byId("key").value.trim();
  byId("key").value = "";
  if (key) enter(key);
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && session()) again(0);
});
matchMedia("(prefers-color-scheme: dark)").addEventListener("change", () => setTheme(preferredTheme()));
addEventListener("hashchange", start);

function start() {
  setTheme(preferredTheme());
  const ticket = ticketFromAddress();
  if (ticket) enter(ticket);
  else if (session()) showBoard();
  else showDoor();
}

start();
