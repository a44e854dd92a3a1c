// The gateway's API as the page uses it, and the session it reads with.

const BASE = new URL("..", import.meta.url).href.replace(/\/$/, "");
const PATIENCE = 10_000;
const EVENTS_EVERY = 6_000;
const KEPT = "nvcf.session";

export class Refused extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

// A session lives as long as this tab: another tab, or the next day, signs in anew.
export function session() {
  return sessionStorage.getItem(KEPT);
}

export function leave() {
  sessionStorage.removeItem(KEPT);
}

// The ticket in the address leaves it at once, so that it stays in no history and no copied link.
export function ticketFromAddress() {
  const ticket = new URLSearchParams(location.hash.slice(1)).get("ticket");
  if (location.hash) history.replaceState(null, "", location.pathname);
  return ticket;
}

export async function signIn(credential) {
  const answer = await call("POST", "/v2/nvcf/dashboard/sessions", credential);
  sessionStorage.setItem(KEPT, answer.session);
  sessionStorage.setItem(`${KEPT}.account`, answer.ncaId);
}

export const account = () => sessionStorage.getItem(`${KEPT}.account`) ?? "";

export async function read(versionId, before) {
  const get = (path) => call("GET", `/v2/nvcf/${path}`, session());
  const one = versionId ? `functionVersionId=${encodeURIComponent(versionId)}` : "";
  const [functions, instances, clusters, figures, chosen] = await Promise.all([
    get("functions"),
    get("instances"),
    get("clusters"),
    get("figures"),
    versionId ? get(`figures?${one}`) : null,
  ]);
  const seen = {
    functions: functions.functions,
    instances: instances.instances,
    clusters: clusters.clusters,
    figures,
    chosen: chosen ?? figures,
  };
  return { ...seen, ...(await happened(seen, versionId, one, before, get)) };
}

// Events are the dearest question, and there are hardly new ones while instances and versions stay as they are.
async function happened(seen, versionId, one, before, get) {
  const states = [
    ...seen.instances.map((each) => `${each.instanceId} ${each.state}`),
    ...seen.functions.map((each) => `${each.versionId} ${each.status}`),
  ].join();
  const same = before && before.versionId === versionId && before.states === states;
  if (same && Date.now() - before.readAt < EVENTS_EVERY) {
    const { scaling, events, readAt } = before;
    return { scaling, events, readAt, states, versionId };
  }
  const [scaling, events] = await Promise.all([
    get(`events?kind=scaling&limit=200&${one}`),
    get(`events?limit=200&${one}`),
  ]);
  return {
    scaling: scaling.events,
    events: events.events.filter((event) => event.kind !== "scaling"),
    readAt: Date.now(),
    states,
    versionId,
  };
}

async function call(method, path, credential) {
  let response;
  try {
    response = await fetch(BASE + path, {
      method,
      headers: { Authorization: `Bearer ${credential}` },
      cache: "no-store",
      credentials: "omit",
      signal: AbortSignal.timeout(PATIENCE),
    });
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new Refused(0, late ? "The gateway has not answered in time." : "The gateway does not answer.");
  }
  const document = await response.json().catch(() => ({}));
  if (!response.ok) throw new Refused(response.status, document.detail ?? document.title ?? `HTTP ${response.status}`);
  return document;
}
