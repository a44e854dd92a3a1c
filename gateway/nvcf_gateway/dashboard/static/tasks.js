// Tasks: the table on the overview, and the page of one task.

import { Table, byId, h } from "./dom.js";
import { DASH, age, count, seconds, short, whole } from "./format.js";

const STATES = {
  QUEUED: ["busy", "Queued"], LAUNCHED: ["busy", "Launched"], RUNNING: ["good", "Running"],
  COMPLETED: ["dim", "Completed"], ERRORED: ["bad", "Errored"], CANCELED: ["dim", "Canceled"],
  EXCEEDED_MAX_RUNTIME_DURATION: ["bad", "Run time over"], EXCEEDED_MAX_QUEUED_DURATION: ["bad", "Waited too long"],
};
const LIVING = ["RUNNING", "LAUNCHED", "QUEUED"];
const FIRST_ROWS = 8;
const MOST_METADATA = 300;

export class TaskTable {
  constructor(choose) {
    this.choose = choose;
    this.table = new Table(byId("tasks"), "Tasks", [
      { title: "Task", class: "name" }, { title: "Status", class: "wide" }, { title: "Done" },
      { title: "Cluster", class: "minor" }, { title: "GPU", class: "minor" }, { title: "Ran", class: "n minor" },
      { title: "Age", class: "n" }, { title: "Id", class: "minor" },
    ], FIRST_ROWS);
  }

  show({ tasks, more }, now) {
    byId("tasks").hidden = tasks.length === 0;
    const order = (each) => (LIVING.includes(each.status) ? LIVING.indexOf(each.status) : LIVING.length);
    const rows = [...tasks].sort((a, b) => order(a) - order(b) || b.createdAt.localeCompare(a.createdAt)).map((each) => ({
      key: each.id,
      onclick: () => this.choose(each.id),
      cells: [
        { text: each.name, make: () => h("button", { type: "button" }, each.name) },
        state(each),
        done(each),
        each.clusterName ?? DASH,
        gpus(each),
        seconds(ran(each, now)),
        { text: age(each.createdAt, now), title: new Date(each.createdAt).toLocaleString() },
        { text: short(each.id), title: each.id },
      ],
    }));
    this.table.show(rows, { note: more ? `the newest ${tasks.length}` : "" });
  }
}

export class TaskPage {
  constructor() {
    this.shown = null;
    this.results = new Table(byId("task-results"), "Results", [
      { title: "When" }, { title: "Name", class: "name" }, { title: "Metadata", class: "wide" },
    ], 2 * FIRST_ROWS);
    this.events = new Table(byId("task-events"), "Events", [
      { title: "When" }, { title: "What", class: "wide" },
    ], 2 * FIRST_ROWS);
  }

  show({ task, events, results }) {
    const now = Date.now() / 1000;
    this.shown = task.id;
    this.showFacts(task, now);
    this.results.show(results.map((each) => ({
      key: each.resultId,
      cells: [when(each.createdAt, now), each.name, metadata(each.metadata)],
    })), { empty: "The task has reported no results yet." });
    this.events.show(events.map((each) => ({
      key: each.eventId,
      cells: [when(each.createdAt, now), { text: whole(each.message), title: each.message }],
    })), { empty: "No events yet." });
  }

  showFacts(task, now) {
    const host = byId("task");
    const [color, words] = STATES[task.status] ?? ["dim", task.status];
    const reason = task.healthInfo?.error ?? task.waitingFor;
    const limits = [
      task.maxRuntimeDuration && `runs at most ${duration(task.maxRuntimeDuration)}`,
      task.maxQueuedDuration && `waits at most ${duration(task.maxQueuedDuration)}`,
      task.terminationGracePeriodDuration && `gets ${duration(task.terminationGracePeriodDuration)} to end`,
    ];
    const cards = task.gpuSpecification?.gpusPerInstance || (task.gpuSpecification?.gpu === "CPU" ? 0 : 1);
    const time = ran(task, now);
    const facts = [
      ["Status", h("span", { class: `state ${color}` }, words)],
      ["Why", reason && h("span", { class: "lines" }, reason)],
      ["Done", task.percentComplete != null && bar(task.percentComplete)],
      ["Runs on", [gpus(task), task.clusterName && `in ${task.clusterName}`].filter(Boolean).join(", ")],
      ["Ran", time != null && seconds(time)],
      ["GPU time", time != null && cards > 0 && `${seconds(time * cards)} (${count(cards)} × ${seconds(time)})`],
      ["Launches", task.launches > 1 && count(task.launches)],
      ["Last heartbeat", LIVING.includes(task.status) && task.lastHeartbeatAt && `${age(task.lastHeartbeatAt, now)} ago`],
      ["Limits", limits.filter(Boolean).join(", ")],
      ["Results", task.resultHandlingStrategy === "UPLOAD" &&
        (task.resultsLocation ? `${task.resultsLocation.replace(/\/$/, "")}/${task.id}/` : "in the platform's store")],
      ["Description", task.description],
      ["Tags", (task.tags ?? []).join(", ")],
      ["Secrets", (task.secrets ?? []).join(", ")],
      ["Created", new Date(task.createdAt).toLocaleString()],
      ["Id", task.id],
      ["Output", command(`nvcf task logs ${short(task.id)} -f`)],
      ["Files", command(`nvcf task results ${short(task.id)}${task.resultHandlingStrategy === "UPLOAD" ? " --download FOLDER" : ""}`)],
    ];
    const shown = facts.filter(([, value]) => value);
    // Made anew only when something has changed, so that a selection stays.
    const print = shown.map(([name, value]) => `${name} ${value.textContent ?? value}`).join("\n");
    if (host.dataset.print === print) return;
    host.dataset.print = print;
    host.replaceChildren(
      h("div", { class: "head" }, h("h2", {}, task.name)),
      h("dl", {}, ...shown.flatMap(([name, value]) => [h("dt", {}, name), h("dd", {}, value)])),
    );
  }
}

const command = (text) => h("code", {}, text);

function state(task) {
  const [color, words] = STATES[task.status] ?? ["dim", task.status];
  const reason = task.healthInfo?.error ?? task.waitingFor ?? "";
  // The end of the task's output may follow: it is on its page.
  const first = reason.split("\n", 1)[0];
  const make = () =>
    h("span", {}, h("span", { class: `state ${color}` }, words), first ? h("span", { class: "reason" }, whole(first)) : null);
  return { text: `${task.status} ${reason}`, class: color, title: reason, make };
}

function done(task) {
  if (task.percentComplete == null) return DASH;
  return { text: `${task.percentComplete}`, make: () => bar(task.percentComplete) };
}

function bar(percent) {
  const filled = h("i");
  filled.style.width = `${percent}%`;
  return h("span", {}, h("span", { class: "meter" }, filled), `${percent} %`);
}

function gpus({ gpuSpecification: each }) {
  if (!each || each.gpu === "CPU") return "CPU";
  return each.gpusPerInstance > 1 ? `${each.gpusPerInstance} × ${each.gpu}` : each.gpu;
}

// Seconds of its run so far; null before it has begun.
function ran(task, now) {
  if (!task.startedAt) return null;
  const end = task.endedAt ? Date.parse(task.endedAt) / 1000 : now;
  return Math.max(0, end - Date.parse(task.startedAt) / 1000);
}

// "PT1H30M" in words; any other text as it is.
function duration(text) {
  const parts = /^P(?:(\d+)D)?(?:T(?:(\d+)H)?(?:(\d+)M)?(?:([\d.]+)S)?)?$/.exec(text);
  if (!parts) return text;
  const [days, hours, minutes, rest] = parts.slice(1).map((each) => Number(each ?? 0));
  return seconds(((days * 24 + hours) * 60 + minutes) * 60 + rest);
}

function when(time, now) {
  return { text: age(time, now), title: new Date(time).toLocaleString() };
}

function metadata(value) {
  const text = value && typeof value === "object"
    ? Object.entries(value).map(([name, each]) => `${name} ${plain(each)}`).join(", ")
    : String(value ?? "");
  return text.length > MOST_METADATA ? { text: `${text.slice(0, MOST_METADATA)}…`, title: text } : text;
}

function plain(value) {
  if (typeof value === "number") return String(Number(value.toPrecision(5)));
  return typeof value === "object" ? JSON.stringify(value) : value;
}
