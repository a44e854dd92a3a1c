// What the board shows, out of what the gateway said.

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
const MOST_ROWS = 300;

export class Board {
  constructor(choose) {
    this.choose = choose;
    const per = (value) => (value === null || value === undefined ? DASH : `${rate(value)}/s`);
    this.rate = new Chart(byId("chart-rate"), "Throughput", [
      { name: "answers", color: "good", area: true, format: per },
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
      { name: "wanted", color: "busy", step: true, whole: true, format: count },
      { name: "running", color: "good", step: true, area: true, format: count },
    ]);
    const numbers = ["Queued", "In work", "Oldest", "Answers", "Failures", "p50", "p99"];
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

  show(seen, chosen) {
    const now = Date.parse(seen.figures.at) / 1000;
    const names = new Map(seen.functions.map((each) => [each.versionId, each.name]));
    const mine = (list) => (chosen ? list.filter((each) => each.functionVersionId === chosen) : list);
    const living = mine(seen.instances).filter((each) => LIVING.includes(each.state) || each.state === "FAILED");
    this.showTiles(seen, mine(seen.instances));
    this.showCharts(seen, mine(seen.instances), now);
    this.showFunctions(seen, chosen);
    this.showInstances(living, names, now);
    this.showDecisions(seen.scaling, names, now);
    this.showClusters(seen.clusters, now);
    this.showEvents(seen.events, names, now);
    const { since, gateways } = seen.figures;
    byId("foot").textContent =
      `Rates and percentiles: the last ${seen.figures.windowSeconds} s of calls whose callers waited, ` +
      `as ${gateways.known === 1 ? "the gateway has" : `${gateways.known} gateways have`} counted since ` +
      `${clock(Date.parse(since) / 1000, true)}. Sessions (gRPC, WebSocket) are not in them.`;
  }

  showTiles(seen, instances) {
    const { versions, series } = seen.chosen;
    const sum = (pick) => versions.reduce((total, each) => total + (pick(each) ?? 0), 0);
    const answers = sum((each) => each.answersPerSecond);
    const failures = sum((each) => each.failuresPerSecond);
    const ended = Math.max(answers, sum((each) => each.arrivalsPerSecond), failures);
    const latest = versions.length === 1 ? versions[0].latency : (series.findLast((each) => each.latency)?.latency ?? null);
    const oldest = Math.max(...versions.map((each) => each.queue?.oldestSeconds ?? -1), -1);
    const unread = versions.some((each) => each.queue === null);
    const states = (state) => instances.filter((each) => each.state === state).length;
    const busy = states("STARTING") + states("PENDING");
    const tiles = [
      ["Answers", rate(answers), "/s", `${rate(sum((each) => each.arrivalsPerSecond))}/s arriving`],
      ["Failures", percent(failures, ended), "", failures ? `${rate(failures)}/s` : "none in the last minute", failures && "bad"],
      ["Latency p50", seconds(latest?.p50), "", latest ? `p99 ${seconds(latest.p99)}` : "no answers lately"],
      ["Callers waiting", count(sum((each) => each.waiting)), "", `${count(sum((each) => each.queue?.inFlight))} in work`],
      ["Queued", unread ? DASH : count(sum((each) => each.queue?.queued)), "",
        unread ? "the broker has not answered" : oldest >= 0 ? `oldest ${seconds(oldest)}` : "nothing waits for a worker"],
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

  showCharts(seen, instances, now) {
    const { series, stepSeconds } = seen.chosen;
    const line = (pick) => series.map((each) => [each.at + stepSeconds / 2, pick(each)]);
    const called = series.some((each) => each.arrivalsPerSecond || each.answersPerSecond || each.waiting);
    const quiet = "No calls in this time";
    const rates = called ? [line((each) => each.answersPerSecond), line((each) => each.failuresPerSecond)] : [[], []];
    this.rate.show(rates, now, quiet);
    const share = (name) => line((each) => each.latency?.[name] ?? null);
    this.latency.show([share("p50"), share("p90"), share("p99")], now, "No answers in this time");
    this.waiting.show([called ? line((each) => each.waiting) : []], now, quiet);
    this.instanceChart.show([wanted(seen.scaling, now), running(instances, now)], now, "No instances in this time");
  }

  showFunctions(seen, chosen) {
    const figures = new Map(seen.figures.versions.map((each) => [each.functionVersionId, each]));
    const listed = seen.functions.filter((each) => each.status !== "INACTIVE");
    const inactive = seen.functions.length - listed.length;
    const instances = new Map(listed.map((each) => [each.versionId, []]));
    for (const each of seen.instances) instances.get(each.functionVersionId)?.push(each);
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
          now?.queue ? count(now.queue.queued) : { text: DASH, title: now ? "the broker has not answered in time" : "" },
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
      ? `Nothing is deployed: ${inactive} versions are there, but have no instances and take no calls.`
      : "No functions yet. Deploy one:  nvcf deploy function.py";
    const many = rows.length < listed.length ? `the busiest ${rows.length} of ${listed.length}` : "";
    const hint = chosen ? "click again for all" : rows.length > 1 ? "click one to see only that" : "";
    this.functions.show(rows, { note: [many, hint].filter(Boolean).join("; "), empty });
  }

  showInstances(instances, names, now) {
    const order = (each) => LIVING.indexOf(each.state) + (each.state === "FAILED" ? 9 : 0);
    const sorted = [...instances].sort((a, b) => order(a) - order(b) || b.createdAt.localeCompare(a.createdAt));
    const rows = sorted.slice(0, MOST_ROWS).map((each) => ({
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
      note: instances.length > MOST_ROWS ? `the first ${MOST_ROWS} of ${instances.length}` : "",
      empty: "No instances. They start when requests come, or at once where a deployment asks for some.",
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
    this.decisions.show(rows, { note: "up → wanted", empty: "Nothing has been decided yet." });
  }

  showClusters(clusters, now) {
    const rows = clusters.flatMap((each) => {
      const silent = now - Date.parse(each.heartbeatAt) / 1000 > SILENT_AFTER;
      const condition = silent ? "silent" : each.draining ? "draining" : "live";
      return each.pools.map((pool) => ({
        key: `${each.clusterId} ${pool.gpu} ${pool.instanceType}`,
        cells: [
          each.clusterId, state(condition, silent ? `last heard of ${age(each.heartbeatAt, now)} ago` : ""),
          [each.region, each.clusterGroup].filter(Boolean).join(", "), meter(pool),
        ],
      }));
    });
    this.clusters.show(rows, { empty: "No cluster has reported: without an agent nothing can start." });
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
    this.events.show(rows, { empty: "Nothing has happened yet." });
  }
}

// A page of thousands of rows would do nothing but draw. `figures` come busiest first.
function busiest(listed, figures, chosen) {
  if (listed.length <= MOST_ROWS) return listed;
  const places = new Map([...figures.keys()].map((id, place) => [id, place]));
  const place = ({ versionId }) => (versionId === chosen ? -1 : (places.get(versionId) ?? places.size));
  return [...listed].sort((a, b) => place(a) - place(b)).slice(0, MOST_ROWS);
}

function state(name, title) {
  const color = COLORS[name] ?? "dim";
  const words = name.charAt(0) + name.slice(1).toLowerCase();
  return { text: name, class: color, title: title ?? "", make: () => h("span", { class: `state ${color}` }, words) };
}

function change(data) {
  if (data.desired == null) return DASH;
  const text = `${data.up ?? "?"} → ${data.desired}`;
  // Where there are several GPU specifications, how many of which.
  return data.kinds?.includes(",") ? { text: `${text} (${data.kinds})`, title: data.kinds } : text;
}

// "2 instances: reason" beside a column that says 2 already.
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

// How many instances all versions together were to have, after each decision.
function wanted(events, now) {
  const last = new Map();
  const points = [];
  for (const each of [...events].reverse()) {
    const desired = Number(each.data?.desired ?? NaN);
    if (Number.isNaN(desired)) continue;
    last.set(each.functionVersionId, desired);
    const total = [...last.values()].reduce((sum, value) => sum + value, 0);
    points.push([Date.parse(each.at) / 1000, total]);
  }
  return within(points, now, now - SPAN);
}

// Out of the instances' own records; those that ended are remembered for five minutes only.
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

// A step line from `begin` on: it starts with what held then and goes on to now.
function within(points, now, begin) {
  if (!points.length) return [];
  const inside = points.filter(([time]) => time > begin && time <= now);
  const held = points.findLast(([time]) => time <= begin);
  const start = held ? [[begin, held[1]]] : [];
  const line = [...start, ...inside];
  return line.length ? [...line, [now, line.at(-1)[1]]] : [];
}
