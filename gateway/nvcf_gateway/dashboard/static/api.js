// The parts of the gateway's API that the page uses, and the session it reads with.

const BASE = new URL("..", import.meta.url).href.replace(/\/$/, "");
const TIMEOUT_MS = 10_000;
const EVENTS_INTERVAL_MS = 6_000;
const STORAGE_KEY = "nvcf.session";

export class ApiError extends Error {
  constructor(status, text) {
    super(text);
    this.status = status;
  }
}

// A session lives as long as this tab: another tab has to sign in again.
export function session() {
  return sessionStorage.getItem(STORAGE_KEY);
}

export function signOut() {
  sessionStorage.removeItem(STORAGE_KEY);
}

// Removes the ticket from the address at once, so that it stays in no history and no copied link.
export function ticketFromAddress() {
  const ticket = new URLSearchParams(location.hash.slice(1)).get("ticket");
  if (ticket) history.replaceState(null, "", location.pathname);
  return ticket;
}

// A version has an address of its own, so that it can be linked to and the browser's Back works.
export const versionFromAddress = () => new URLSearchParams(location.hash.slice(1)).get("version");

export const taskFromAddress = () => new URLSearchParams(location.hash.slice(1)).get("task");

export async function signIn(credential) {
  const issued = await call("POST", "/v2/nvcf/dashboard/sessions", credential);
  sessionStorage.setItem(STORAGE_KEY, issued.session);
  sessionStorage.setItem(`${STORAGE_KEY}.account`, issued.ncaId);
}

export const account = () => sessionStorage.getItem(`${STORAGE_KEY}.account`) ?? "";

export async function read(versionId, before) {
  const get = (path) => call("GET", `/v2/nvcf/${path}`, session());
  const one = versionId ? `functionVersionId=${encodeURIComponent(versionId)}` : "";
  const [functions, instances, clusters, figures, tasks, chosen] = await Promise.all([
    get("functions"),
    get("instances"),
    get("clusters"),
    get("figures"),
    versionId ? NO_TASKS : readTasks(),
    versionId ? get(`figures?${one}`) : null,
  ]);
  const data = {
    functions: functions.functions,
    instances: instances.instances,
    clusters: clusters.clusters,
    figures,
    tasks,
    chosen: chosen ?? figures,
  };
  const version = data.functions.find((each) => each.versionId === versionId);
  const [events, deployed] = await Promise.all([
    readEvents(data, versionId, one, before, get),
    version && get(`deployments/functions/${version.id}/versions/${versionId}`).catch(() => null),
  ]);
  return { ...data, ...events, deployment: deployed?.deployment };
}

const NO_TASKS = { tasks: [], more: false };
const MOST_TASKS = 200;

// A key that is limited to some functions sees no tasks.
async function readTasks() {
  try {
    const { tasks, cursor } = await call("GET", `/v1/nvct/tasks?limit=${MOST_TASKS}`, session());
    return { tasks, more: Boolean(cursor) };
  } catch (error) {
    if (error.status === 403) return NO_TASKS;
    throw error;
  }
}

export async function readTask(id) {
  const path = `/v1/nvct/tasks/${encodeURIComponent(id)}`;
  const [{ task }, { events }, { results }] = await Promise.all(
    ["", "/events", "/results"].map((each) => call("GET", path + each, session())),
  );
  return { task, events, results };
}

// Events are the most expensive request, and rarely change while instances and versions do not.
async function readEvents(data, versionId, one, before, get) {
  const states = [
    ...data.instances.map((each) => `${each.instanceId} ${each.state}`),
    ...data.functions.map((each) => `${each.versionId} ${each.status}`),
  ].join();
  const same = before && before.versionId === versionId && before.states === states;
  if (same && Date.now() - before.readAt < EVENTS_INTERVAL_MS) {
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
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
  } catch (error) {
    const late = error.name === "TimeoutError";
    throw new ApiError(0, late ? "The gateway has not responded in time." : "The gateway does not respond.");
  }
  const document = await response.json().catch(() => ({}));
  if (!response.ok) throw new ApiError(response.status, document.detail ?? document.title ?? `HTTP ${response.status}`);
  return document;
}
