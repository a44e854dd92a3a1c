// The overview: tiles, charts and tables, made from the API's data.

import { Chart } from "./charts.js";
import { Table, byId, h } from "./dom.js";
import { DASH, age, brief, clock, count, percent, rate, seconds, short } from "./format.js";

const LIVING = ["RUNNING", "STARTING", "PENDING", "TERMINATING"];
const COLORS = {
  RUNNING: "good", ACTIVE: "good", live: "good", STARTING: "busy", PENDING: "busy", DEPLOYING: "busy",
  TERMINATING: "busy", draining: "busy", FAILED: "bad", ERROR: "bad", silent: "bad",
};
const SILENT_AFTER = 10;
const RECORD_LIFE = 300;
const SPAN = 900;
const MAX_ROWS = 300;

export class Overview {
  constructor(choose) {
    this.choose = choose;
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
    this.functions = new Table(byId("functions"), "Functions", [
      { title: "Function", class: "name" }, { title: "Version" }, { title: "Status" }, { title: "Instances" },
      ...numbers.map((title) => ({ title, class: "n" })),
    ]);
    this.instances = new Table(byId("instances"), "Instances", [
      { title: "Function", class: "name" }, { title: "State" }, { title: "Cluster" }, { title: "GPU" },
      { title: "Age", class: "n" }, { title: "Restarts", class: "n" }, { title: "Instance" },
    ]);
    this.decisions = new Table(byId("decisions"), "Scaling decisions", [
      { title: "When" }, { title: "Function", class: "name" }, { title: "Instances", class: "n" }, { title: "Why", class: "wide" },
    ]);
    this.clusters = new Table(byId("clusters"), "Clusters", [
      { title: "Cluster", class: "name" }, { title: "State" }, { title: "Region" }, { title: "In use" },
    ]);
    this.events = new Table(byId("events"), "Events", [
      { title: "When" }, { title: "Function", class: "name" }, { title: "Kind" }, { title: "What", class: "wide" },
    ]);
  }

  show(data, chosen) {
    const now = Date.parse(data.figures.at) / 1000;
    const names = new Map(data.functions.map((each) => [each.versionId, each.name]));
    const mine = (list) => (chosen ? list.filter((each) => each.functionVersionId === chosen) : list);
    const living = mine(data.instances).filter((each) => LIVING.includes(each.state) || each.state === "FAILED");
    this.showTiles(data, mine(data.instances));
    this.showCharts(data, mine(data.instances), now);
    this.showFunctions(data, chosen);
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
    this.instanceChart.show([desired(data.scaling, now), running(instances, now)], now, "No instances in this time");
  }

  showFunctions(data, chosen) {
    const figures = new Map(data.figures.versions.map((each) => [each.functionVersionId, each]));
    const listed = data.functions.filter((each) => each.status !== "INACTIVE");
    const inactive = data.functions.length - listed.length;
    const instances = new Map(listed.map((each) => [each.versionId, []]));
    for (const each of data.instances) instances.get(each.functionVersionId)?.push(each);
    const rows = busiest(listed, figures, chosen).map((each) => {
      const now = figures.get(each.versionId);
      const own = instances.get(each.versionId);
      const ended = Math.max(now?.answersPerSecond ?? 0, now?.arrivalsPerSecond ?? 0, now?.failuresPerSecond ?? 0);
      const choose = () => this.choose(each.versionId === chosen ? null : each.versionId, each.name);
      const button = () => h("button", { type: "button", "aria-pressed": String(each.versionId === chosen) }, each.name);
      return {
        key: each.versionId,
        class: each.versionId === chosen ? "chosen" : "",
        onclick: choose,
        cells: [
          { text: each.name, class: each.versionId === chosen ? "on" : "", make: button },
          { text: short(each.versionId), title: each.versionId },
          state(each.status, each.status === "ERROR" ? each.statusReason : ""),
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
    const many = rows.length < listed.length ? `the busiest ${rows.length} of ${listed.length}` : "";
    const hint = chosen ? "click again to show all" : rows.length > 1 ? "click a function to show only it" : "";
    this.functions.show(rows, { note: [many, hint].filter(Boolean).join("; "), empty });
  }

  showInstances(instances, names, now) {
    const order = (each) => LIVING.indexOf(each.state) + (each.state === "FAILED" ? 9 : 0);
    const sorted = [...instances].sort((a, b) => order(a) - order(b) || b.createdAt.localeCompare(a.createdAt));
    const rows = sorted.slice(0, MAX_ROWS).map((each) => ({
      key: each.instanceId,
      cells: [
        names.get(each.functionVersionId) ?? short(each.functionVersionId),
        state(each.state, each.reason),
        each.clusterId ?? DASH,
        [each.gpu, each.visibleDevices].filter((part) => part != null && part !== "").join(" ") || DASH,
        age(each.createdAt, now),
        count(each.restarts ?? 0),
        { text: short(each.instanceId), title: each.instanceId },
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
        { text: brief(why(each)), title: each.text, class: each.data?.desired == null || Number(each.data.missing) > 0 ? "busy" : "" },
      ],
    }));
    this.decisions.show(rows, { note: "up → desired", empty: "No scaling decisions yet." });
  }

  showClusters(clusters, now) {
    const rows = clusters.flatMap((each) => {
      const silent = now - Date.parse(each.heartbeatAt) / 1000 > SILENT_AFTER;
      const condition = silent ? "silent" : each.draining ? "draining" : "live";
      return each.pools.map((pool) => ({
        key: `${each.clusterId} ${pool.gpu} ${pool.instanceType}`,
        cells: [
          each.clusterId, state(condition, silent ? `last heartbeat ${age(each.heartbeatAt, now)} ago` : ""),
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
        { text: brief(each.text), title: each.text },
      ],
    }));
    this.events.show(rows, { empty: "No events yet." });
  }
}

// Thousands of rows would be too slow to draw. `figures` come busiest first.
function busiest(listed, figures, chosen) {
  if (listed.length <= MAX_ROWS) return listed;
  const places = new Map([...figures.keys()].map((id, place) => [id, place]));
  const place = ({ versionId }) => (versionId === chosen ? -1 : (places.get(versionId) ?? places.size));
  return [...listed].sort((a, b) => place(a) - place(b)).slice(0, MAX_ROWS);
}

function state(name, title) {
  const color = COLORS[name] ?? "dim";
  const words = name.charAt(0) + name.slice(1).toLowerCase();
  return { text: name, class: color, title: title ?? "", make: () => h("span", { class: `state ${color}` }, words) };
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

// The desired number of instances of all versions after each decision.
function desired(events, now) {
  const last = new Map();
  const points = [];
  for (const each of [...events].reverse()) {
    const count = Number(each.data?.desired ?? NaN);
    if (Number.isNaN(count)) continue;
    last.set(each.functionVersionId, count);
    const total = [...last.values()].reduce((sum, value) => sum + value, 0);
    points.push([Date.parse(each.at) / 1000, total]);
  }
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
