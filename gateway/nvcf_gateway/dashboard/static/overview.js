// The overview: tiles, charts and tables, made from the API's data.

import { Chart } from "./charts.js";
import { Table, byId, h } from "./dom.js";
import { TaskTable } from "./tasks.js";
import { DASH, age, clock, count, percent, rate, seconds, short, shortInstance, whole } from "./format.js";

const LIVING = ["RUNNING", "STARTING", "PENDING", "TERMINATING"];
const COLORS = {
  RUNNING: "good", ACTIVE: "good", live: "good", STARTING: "busy", PENDING: "busy", DEPLOYING: "busy",
  TERMINATING: "busy", DEGRADING: "busy", draining: "busy", cordoned: "busy", unhealthy: "bad", FAILED: "bad",
  ERROR: "bad", DEGRADED: "bad", silent: "bad",
};
// Or twice the time between two heartbeats, if that is longer (protocol.md, section 6.7).
const SILENT_AFTER = 10;
const RECORD_LIFE = 300;
const SPAN = 900;
const MAX_ROWS = 300;
// Further rows are behind a button, so that no table needs a scroll box of its own.
const FIRST_ROWS = 8;

export class Overview {
  constructor(choose, chooseTask) {
    this.choose = choose;
    this.tasks = new TaskTable(chooseTask);
    const per = (value) => (value === null || value === undefined ? DASH : `${rate(value)}/s`);
    this.rate = new Chart(byId("chart-rate"), "Throughput", [
      { name: "responses", color: "good", area: true, format: per },
      { name: "failures", color: "bad", format: per },
    ]);
    this.latency = new Chart(byId("chart-latency"), "Latency", [
      { name: "p50", color: "good", format: seconds },
      { name: "p90", color: "blue", format: seconds },
      { name: "p99", color: "violet", format: seconds },
    ]);
    this.waiting = new Chart(byId("chart-waiting"), "Calls in progress", [
      { name: "waiting", color: "blue", area: true, whole: true, format: count },
    ]);
    this.instanceChart = new Chart(byId("chart-instances"), "Instances", [
      { name: "desired", color: "busy", step: true, whole: true, format: count },
      { name: "running", color: "good", step: true, area: true, format: count },
    ]);
    const numbers = ["Queued", "In flight", "Oldest", "Responses", "Failures", "p50", "p99"];
    const minor = ["In flight", "Oldest", "Responses", "p50"];
    this.functions = new Table(byId("functions"), "Functions", [
      { title: "Function", class: "name" }, { title: "Version", class: "minor" }, { title: "Status" },
      { title: "Instances", class: "minor" },
      ...numbers.map((title) => ({ title, class: minor.includes(title) ? "n minor" : "n" })),
    ], 2 * FIRST_ROWS);
    this.instances = new Table(byId("instances"), "Instances", [
      { title: "Function", class: "name" }, { title: "State", class: "wide" }, { title: "Cluster", class: "minor" },
      { title: "GPU", class: "minor" }, { title: "Age", class: "n" }, { title: "Restarts", class: "n minor" },
      { title: "Instance", class: "minor" },
    ], FIRST_ROWS);
    this.decisions = new Table(byId("decisions"), "Scaling decisions", [
      { title: "When" }, { title: "Function", class: "name" }, { title: "Instances", class: "n" }, { title: "Why", class: "wide" },
    ], FIRST_ROWS);
    this.clusters = new Table(byId("clusters"), "Clusters", [
      { title: "Cluster", class: "name" }, { title: "State" }, { title: "Region", class: "minor" }, { title: "In use" },
    ], FIRST_ROWS);
    this.events = new Table(byId("events"), "Events", [
      { title: "When" }, { title: "Function", class: "name" }, { title: "Kind", class: "minor" }, { title: "What", class: "wide" },
    ], FIRST_ROWS);
  }

  show(data, chosen) {
    const now = Date.parse(data.figures.at) / 1000;
    const names = new Map(data.functions.map((each) => [each.versionId, each.name]));
    const mine = (list) => (chosen ? list.filter((each) => each.functionVersionId === chosen) : list);
    const living = mine(data.instances).filter((each) => LIVING.includes(each.state) || each.state === "FAILED");
    this.showTiles(data, mine(data.instances));
    this.showCharts(data, mine(data.instances), now);
    this.showFunctions(data, chosen);
    this.showVersion(data, chosen);
    this.tasks.show(data.tasks, now);
    this.showInstances(living, names, now);
    this.showDecisions(data.scaling, names, now);
    this.showClusters(data.clusters, now);
    this.showEvents(data.events, names, now);
    const { since, gateways } = data.figures;
    byId("foot").textContent =
      `Rates and percentiles: the last ${data.figures.windowSeconds} s of calls whose callers waited, ` +
      `as ${gateways.known === 1 ? "the gateway has" : `${gateways.known} gateways have`} counted since ` +
      `${clock(Date.parse(since) / 1000, true)}. Sessions (gRPC, WebSocket) are not in them.`;
  }

  showTiles(data, instances) {
    const { versions, series } = data.chosen;
    const sum = (pick) => versions.reduce((total, each) => total + (pick(each) ?? 0), 0);
    const responses = sum((each) => each.answersPerSecond);
    const failures = sum((each) => each.failuresPerSecond);
    const ended = Math.max(responses, sum((each) => each.arrivalsPerSecond), failures);
    const latest = versions.length === 1 ? versions[0].latency : (series.findLast((each) => each.latency)?.latency ?? null);
    const oldest = Math.max(...versions.map((each) => each.queue?.oldestSeconds ?? -1), -1);
    const unread = versions.some((each) => each.queue === null);
    const states = (state) => instances.filter((each) => each.state === state).length;
    const busy = states("STARTING") + states("PENDING");
    const tiles = [
      ["Responses", rate(responses), "/s", `${rate(sum((each) => each.arrivalsPerSecond))}/s arriving`],
      ["Failures", percent(failures, ended), "", failures ? `${rate(failures)}/s` : "none in the last minute", failures && "bad"],
      ["Latency p50", seconds(latest?.p50), "", latest ? `p99 ${seconds(latest.p99)}` : "no recent responses"],
      ["Callers waiting", count(sum((each) => each.waiting)), "", `${count(sum((each) => each.queue?.inFlight))} in flight`],
      ["Queued", unread ? DASH : count(sum((each) => each.queue?.queued)), "",
        unread ? "the broker has not responded" : oldest >= 0 ? `oldest ${seconds(oldest)}` : "no request waits"],
      ["Instances", count(states("RUNNING")), "running",
        [busy && `${busy} starting`, states("TERMINATING") && `${states("TERMINATING")} ending`].filter(Boolean).join(", ") || "none starting or ending"],
    ];
    byId("tiles").replaceChildren(
      ...tiles.map(([label, value, unit, more, color]) =>
        h("div", { class: "card tile" }, h("div", { class: "label" }, label),
          h("div", { class: `value ${color || ""}` }, value, unit ? h("small", {}, unit) : null),
          h("div", { class: "more" }, more)),
      ),
    );
  }

  showCharts(data, instances, now) {
    const { series, stepSeconds } = data.chosen;
    const line = (pick) => series.map((each) => [each.at + stepSeconds / 2, pick(each)]);
    const called = series.some((each) => each.arrivalsPerSecond || each.answersPerSecond || each.waiting);
    const quiet = "No calls in this time";
    const rates = called ? [line((each) => each.answersPerSecond), line((each) => each.failuresPerSecond)] : [[], []];
    this.rate.show(rates, now, quiet);
    const share = (name) => line((each) => each.latency?.[name] ?? null);
    this.latency.show([share("p50"), share("p90"), share("p99")], now, "No responses in this time");
    this.waiting.show([called ? line((each) => each.waiting) : []], now, quiet);
    this.instanceChart.show([desired(data, now), running(instances, now)], now, "No instances in this time");
  }

  showFunctions(data, chosen) {
    const figures = new Map(data.figures.versions.map((each) => [each.functionVersionId, each]));
    // A version that ends keeps its row until its last instance has ended.
    const alive = new Set(data.instances.filter((each) => LIVING.includes(each.state)).map((each) => each.functionVersionId));
    const listed = data.functions.filter((each) => each.status !== "INACTIVE" || alive.has(each.versionId));
    const inactive = data.functions.length - listed.length;
    const instances = new Map(listed.map((each) => [each.versionId, []]));
    for (const each of data.instances) instances.get(each.functionVersionId)?.push(each);
    const rows = worstFirst(listed, figures, instances, chosen).map((each) => {
      const now = figures.get(each.versionId);
      const own = instances.get(each.versionId);
      const ended = Math.max(now?.answersPerSecond ?? 0, now?.arrivalsPerSecond ?? 0, now?.failuresPerSecond ?? 0);
      const choose = () => this.choose(each.versionId === chosen ? null : each.versionId);
      const button = () => h("button", { type: "button", "aria-pressed": String(each.versionId === chosen) }, each.name);
      return {
        key: each.versionId,
        class: each.versionId === chosen ? "chosen" : "",
        onclick: choose,
        cells: [
          { text: each.name, class: each.versionId === chosen ? "on" : "", make: button },
          { text: short(each.versionId), title: each.versionId },
          state(each.status, each.status === "ERROR" ? (each.statusReason ?? "") : ""),
          counted(own),
          now?.queue ? count(now.queue.queued) : { text: DASH, title: now ? "the broker has not responded in time" : "" },
          now?.queue ? count(now.queue.inFlight) : DASH,
          now?.queue?.oldestSeconds != null ? seconds(now.queue.oldestSeconds) : DASH,
          now ? `${rate(now.answersPerSecond)}/s` : DASH,
          { text: now ? percent(now.failuresPerSecond, ended) : DASH, class: now?.failuresPerSecond ? "bad" : "" },
          seconds(now?.latency?.p50),
          seconds(now?.latency?.p99),
        ],
      };
    });
    const empty = inactive
      ? `Nothing is deployed: ${inactive} versions exist, but have no instances and accept no calls.`
      : "No functions yet. Deploy one:  nvcf deploy function.py";
    const many = rows.length < listed.length ? `${rows.length} of ${listed.length}, those with trouble first` : "";
    const hint = chosen ? "click again to show all" : rows.length > 1 ? "click a function to show only it" : "";
    this.functions.show(rows, { note: [many, hint].filter(Boolean).join("; "), empty });
  }

  // One version: what it is, how it is deployed, and why it has as many instances as it has.
  showVersion(data, chosen) {
    const version = data.functions.find((each) => each.versionId === chosen);
    const host = byId("version");
    host.hidden = !version;
    if (!version) return;
    const facts = [
      ["Status", [version.status, version.statusReason].filter(Boolean).join(": ")],
      ["Why", data.scaling.length ? whole(data.scaling[0].text) : "no scaling decision yet"],
      ...(data.deployment?.deploymentSpecifications ?? []).map((each) => ["Deployed on", specification(each)]),
      ["Function id", version.id],
      ["Version id", version.versionId],
      ["Created", new Date(version.createdAt).toLocaleString()],
    ];
    host.replaceChildren(
      h("div", { class: "head" }, h("h2", {}, version.name)),
      h("dl", {}, ...facts.flatMap(([name, text]) => [h("dt", {}, name), h("dd", {}, text)])),
    );
  }

  showInstances(instances, names, now) {
    const order = (each) => LIVING.indexOf(each.state) + (each.state === "FAILED" ? 9 : 0);
    const sorted = [...instances].sort((a, b) => order(a) - order(b) || b.createdAt.localeCompare(a.createdAt));
    const rows = sorted.slice(0, MAX_ROWS).map((each) => ({
      key: each.instanceId,
      cells: [
        names.get(each.functionVersionId) ?? short(each.functionVersionId),
        state(each.state, each.reason),
        each.clusterName ?? each.clusterId ?? DASH,
        [each.gpu, each.visibleDevices].filter((part) => part != null && part !== "").join(" ") || DASH,
        age(each.createdAt, now),
        count(each.restarts ?? 0),
        { text: shortInstance(each.instanceId), title: each.instanceId },
      ],
    }));
    this.instances.show(rows, {
      note: instances.length > MAX_ROWS ? `the first ${MAX_ROWS} of ${instances.length}` : "",
      empty: "No instances. They start when requests arrive, or at once if the deployment has a minimum.",
    });
  }

  showDecisions(events, names, now) {
    const rows = events.map((each) => ({
      key: `${each.at}${each.functionVersionId}${each.text}`,
      cells: [
        when(each.at, now),
        each.functionName ?? names.get(each.functionVersionId) ?? short(each.functionVersionId),
        change(each.data ?? {}),
        { text: whole(why(each)), title: each.text, class: each.data?.desired == null || Number(each.data.missing) > 0 ? "busy" : "" },
      ],
    }));
    this.decisions.show(rows, { note: "up → desired", empty: "No scaling decisions yet." });
  }

  showClusters(clusters, now) {
    const rows = clusters.flatMap((each) => {
      const limit = Math.max(SILENT_AFTER, 2 * (each.heartbeatSeconds ?? 0));
      const silent = now - Date.parse(each.heartbeatAt) / 1000 > limit;
      const wish = each.draining ? "draining" : each.cordoned ? "cordoned" : null;
      const condition = silent ? "silent" : wish ?? (each.healthy === false ? "unhealthy" : "live");
      return devices(each.pools).map((pool) => ({
        key: `${each.clusterId} ${pool.gpu} ${pool.instanceType}`,
        cells: [
          { text: each.clusterName || each.clusterId, title: each.clusterId }, state(condition, silent ? `last heartbeat ${age(each.heartbeatAt, now)} ago` : ""),
          [each.region, each.clusterGroup].filter(Boolean).join(", "), meter(pool),
        ],
      }));
    });
    this.clusters.show(rows, { empty: "No cluster is connected: instances need an agent to start them." });
  }

  showEvents(events, names, now) {
    const rows = events.map((each) => ({
      key: `${each.at}${each.functionVersionId}${each.text}`,
      cells: [
        when(each.at, now),
        each.functionName ?? names.get(each.functionVersionId) ?? short(each.functionVersionId),
        each.kind,
        { text: whole(each.text), title: each.text },
      ],
    }));
    this.events.show(rows, { empty: "No events yet." });
  }
}

// Those with trouble first, then the busiest: `figures` come in that order. Thousands of rows would be too slow to draw.
function worstFirst(listed, figures, instances, chosen) {
  const places = new Map([...figures.keys()].map((id, place) => [id, place]));
  const place = ({ versionId }) => places.get(versionId) ?? places.size;
  const weight = (each) => (each.versionId === chosen ? 9 : trouble(each, figures.get(each.versionId), instances.get(each.versionId)));
  return [...listed].sort((a, b) => weight(b) - weight(a) || place(a) - place(b)).slice(0, MAX_ROWS);
}

// How badly a version is off: 3 it does not start, 2 calls fail, 1 nothing runs though something should.
function trouble(version, now, instances) {
  if (version.status === "ERROR" || instances.some((each) => each.state === "FAILED")) return 3;
  if (now?.failuresPerSecond) return 2;
  const idle = !instances.some((each) => each.state === "RUNNING");
  return idle && (now?.queue?.queued || ["DEPLOYING", "DEGRADED"].includes(version.status)) ? 1 : 0;
}

function specification(each) {
  const where = [...(each.clusters ?? []), ...(each.regions ?? [])].join(", ");
  return `${each.gpu} ${each.instanceType}, ${each.minInstances} to ${each.maxInstances} instances, ` +
    `${each.maxRequestConcurrency ?? 1} requests at once in each${where ? `, in ${where}` : ""}`;
}

// A state, with the reason below it if there is one.
function state(name, reason) {
  const color = COLORS[name] ?? "dim";
  const words = name.charAt(0) + name.slice(1).toLowerCase();
  const make = () =>
    h("span", {}, h("span", { class: `state ${color}` }, words), reason ? h("span", { class: "reason" }, whole(reason)) : null);
  return { text: `${name} ${reason ?? ""}`, class: color, title: reason ?? "", make };
}

function change(data) {
  if (data.desired == null) return DASH;
  const text = `${data.up ?? "?"} → ${data.desired}`;
  // With several GPU specifications, the count of each.
  return data.kinds?.includes(",") ? { text: `${text} (${data.kinds})`, title: data.kinds } : text;
}

// Removes the count from "2 instances: reason": another column shows it.
function why(event) {
  const [first, ...rest] = event.text.split(": ");
  return rest.length && first.split(" ")[0] === event.data?.desired ? rest.join(": ") : event.text;
}

function when(time, now) {
  return { text: age(time, now), title: new Date(time).toLocaleString() };
}

function counted(instances) {
  const parts = LIVING.map((name) => [instances.filter((each) => each.state === name).length, name.toLowerCase()]);
  return parts.filter(([number]) => number).map(([number, name]) => `${number} ${name}`).join(", ") || "none";
}

// The instance types of one GPU share its devices: they are shown once.
function devices(pools) {
  const known = new Map(pools.map((each) => [`${each.gpu} ${each.instancesFree}/${each.instancesTotal}`, each]).reverse());
  return [...known.values()].reverse();
}

function meter(pool) {
  const used = pool.instancesTotal - pool.instancesFree;
  const kind = pool.gpu === "CPU" ? "CPU slots" : `${pool.gpu} ${pool.instanceType}`;
  const text = `${used} of ${pool.instancesTotal} ${kind}`;
  return {
    text,
    make: () => {
      const bar = h("i");
      bar.style.width = `${pool.instancesTotal ? (100 * used) / pool.instancesTotal : 0}%`;
      return h("span", {}, h("span", { class: "meter" }, bar), text);
    },
  };
}

// The desired number of instances of all versions after each decision. A version that is not deployed any more
// wants none since its last decision, or since its last instance changed.
function desired({ scaling, functions, instances }, now) {
  const decided = scaling.filter((each) => each.data?.desired != null && !Number.isNaN(Number(each.data.desired)));
  const steps = decided.map((each) => [Date.parse(each.at) / 1000, each.functionVersionId, Number(each.data.desired)]);
  const deployed = new Set(functions.filter((each) => each.status !== "INACTIVE").map((each) => each.versionId));
  for (const id of new Set(steps.map(([, id]) => id))) {
    if (deployed.has(id)) continue;
    const ends = instances.filter((each) => each.functionVersionId === id).map((each) => Date.parse(each.updatedAt) / 1000);
    steps.push([Math.max(...steps.filter((each) => each[1] === id).map(([at]) => at), ...ends), id, 0]);
  }
  const last = new Map();
  const points = steps.sort((a, b) => a[0] - b[0]).map(([at, id, count]) => {
    last.set(id, count);
    return [at, [...last.values()].reduce((sum, value) => sum + value, 0)];
  });
  return within(points, now, now - SPAN);
}

// From the instances' records; the platform keeps those of ended instances for five minutes.
function running(instances, now) {
  const changes = instances.flatMap((each) => {
    if (!each.readyAt) return [];
    const ended = ["COMPLETED", "FAILED"].includes(each.state) ? [[Date.parse(each.updatedAt) / 1000, -1]] : [];
    return [[Date.parse(each.readyAt) / 1000, 1], ...ended];
  });
  changes.sort((a, b) => a[0] - b[0]);
  let total = 0;
  const points = changes.map(([time, change]) => [time, (total += change)]);
  return within(points, now, now - RECORD_LIFE);
}

// A step line from `begin` until now; it starts with the value at `begin`.
function within(points, now, begin) {
  if (!points.length) return [];
  const inside = points.filter(([time]) => time > begin && time <= now);
  const before = points.findLast(([time]) => time <= begin);
  const start = before ? [[begin, before[1]]] : [];
  const line = [...start, ...inside];
  return line.length ? [...line, [now, line.at(-1)[1]]] : [];
}
