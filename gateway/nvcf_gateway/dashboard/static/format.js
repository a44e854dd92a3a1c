// Formats numbers, times and durations for people.

export const DASH = "–";

export function count(value) {
  if (value === null || value === undefined) return DASH;
  if (value >= 1e6) return `${trim(value / 1e6)} M`;
  if (value >= 1e4) return `${trim(value / 1e3)} k`;
  return String(Math.round(value));
}

export function rate(value) {
  if (value === null || value === undefined) return DASH;
  if (value === 0) return "0";
  if (value < 0.01) return "<0.01";
  return value >= 1e4 ? count(value) : trim(value);
}

export function seconds(value) {
  if (value === null || value === undefined) return DASH;
  if (value < 0.001) return "<1 ms";
  if (value < 1) return `${trim(value * 1000)} ms`;
  if (value < 90) return `${trim(value)} s`;
  if (value < 5400) return `${trim(value / 60)} min`;
  return `${trim(value / 3600)} h`;
}

export function percent(part, whole) {
  if (!whole) return DASH;
  const share = (100 * part) / whole;
  if (share === 0) return "0 %";
  return share < 0.1 ? "<0.1 %" : `${trim(share)} %`;
}

export function age(time, now) {
  const passed = Math.max(0, Math.floor(now - Date.parse(time) / 1000));
  if (Number.isNaN(passed)) return DASH;
  for (const [size, unit] of [[86400, "d"], [3600, "h"], [60, "m"]]) {
    if (passed >= size) return `${Math.floor(passed / size)} ${unit}`;
  }
  return `${passed} s`;
}

export function clock(unixSeconds, withSeconds = false) {
  const moment = new Date(unixSeconds * 1000);
  const options = { hour: "2-digit", minute: "2-digit", hourCycle: "h23" };
  if (withSeconds) options.second = "2-digit";
  return moment.toLocaleTimeString([], options);
}

const UUID = /\b([0-9a-f]{8})(-[0-9a-f]{4}){3}-[0-9a-f]{12}\b/g;

// A text on one line, with shortened ids.
export const whole = (text) => text.replace(/\s*\n\s*/g, " · ").replace(UUID, "$1");

export const short = (id) => String(id ?? "").slice(0, 8);

// Agents' ids of instances begin alike for all: `0-sr-3f2a9c1d-…`.
export const shortInstance = (id) => short(String(id ?? "").replace(/^(\d+-)?sr-(?=[0-9a-f])/, ""));

// Three significant digits, without superfluous zeros.
function trim(value) {
  if (value >= 100) return String(Math.round(value));
  return String(Number(value.toPrecision(value >= 10 ? 3 : 2)));
}
