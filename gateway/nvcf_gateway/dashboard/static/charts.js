// Line charts over the last fifteen minutes, as SVG.

import { clock } from "./format.js";
import { h, svg } from "./dom.js";

const LEFT = 40;
const BOTTOM = 18;
const TOP = 8;
const SPAN = 15 * 60;
const GAP = 11;

// Lines: {name, color, area, step, format}; data: per line a list of [unix seconds, value | null].
export class Chart {
  constructor(figure, title, lines) {
    this.lines = lines;
    this.values = lines.map((line) => h("span", { class: `key c-${line.color}` }));
    this.plot = h("div", { class: "plot" });
    this.tip = h("div", { class: "tip", hidden: "" });
    figure.replaceChildren(h("figcaption", {}, h("div", {}, title), h("div", { class: "keys" }, ...this.values)), this.plot);
    this.plot.addEventListener("pointermove", (event) => this.point(event));
    this.plot.addEventListener("pointerleave", () => this.point(null));
    new ResizeObserver(() => this.draw()).observe(this.plot);
  }

  show(data, now, nothing) {
    this.data = data;
    this.now = now;
    this.nothing = nothing;
    this.lines.forEach((line, index) => {
      const last = data[index].at(-1);
      const value = last && now - last[0] <= 2 * GAP ? last[1] : null;
      this.values[index].replaceChildren(h("i"), `${line.name} ${line.format(value)}`);
    });
    this.draw();
  }

  draw() {
    if (!this.data) return;
    const width = this.plot.clientWidth;
    const height = this.plot.clientHeight;
    const all = this.data.flat().map(([, value]) => value).filter((value) => value !== null);
    const top = nice(Math.max(...all, 0), this.lines[0].whole);
    this.x = (time) => LEFT + ((time - this.now + SPAN) / SPAN) * (width - LEFT - 4);
    const y = (value) => TOP + (1 - value / top) * (height - TOP - BOTTOM);
    const picture = svg("svg", { viewBox: `0 0 ${width} ${height}`, role: "img", "aria-label": this.describe() });
    for (const share of [0, 0.5, 1]) {
      const at = Math.round(y(share * top)) + 0.5;
      picture.append(svg("line", { class: "grid", x1: LEFT, x2: width - 4, y1: at, y2: at }));
      const label = share ? this.lines[0].format(share * top) : "0";
      picture.append(svg("text", { x: LEFT - 6, y: at + 4, "text-anchor": "end" }, label));
    }
    const every = width > 340 ? 180 : 300;
    for (let at = Math.ceil((this.now - SPAN) / every) * every; at < this.now; at += every) {
      const place = this.x(at);
      if (place > LEFT + 14 && place < width - 18) {
        picture.append(svg("text", { x: place, y: height - 3, "text-anchor": "middle" }, clock(at)));
      }
    }
    this.lines.forEach((line, index) => this.drawLine(picture, line, this.data[index], y));
    const empty = all.length ? null : h("div", { class: "nothing" }, this.nothing);
    this.cursor = svg("line", { class: "cursor", x1: 0, x2: 0, y1: TOP, y2: height - BOTTOM, visibility: "hidden" });
    picture.append(this.cursor);
    this.plot.replaceChildren(picture, this.tip, ...(empty ? [empty] : []));
    this.point(this.pointed);
  }

  drawLine(picture, line, points, y) {
    for (const part of parts(points, line.step)) {
      const path = line.step ? steps(part, this.x, y) : straight(part, this.x, y);
      const group = svg("g", { class: `c-${line.color}` });
      if (line.area) {
        const floor = y(0);
        const from = this.x(part[0][0]);
        const to = this.x(part.at(-1)[0]);
        group.append(svg("path", { class: "area", d: `${path}L${to},${floor}L${from},${floor}Z` }));
      }
      group.append(svg("path", { class: "line", d: path }));
      picture.append(group);
    }
  }

  point(event) {
    this.pointed = event;
    this.tip.hidden = true;
    this.cursor?.setAttribute("visibility", "hidden");
    if (!event || !this.data) return;
    const box = this.plot.getBoundingClientRect();
    const place = event.clientX - box.left;
    const time = this.now - SPAN + ((place - LEFT) / (box.width - LEFT - 4)) * SPAN;
    if (place < LEFT || time > this.now) return;
    const rows = this.lines.map((line, index) => {
      const found = line.step ? before(this.data[index], time) : nearest(this.data[index], time);
      return found ? h("div", { class: `c-${line.color}` }, `${line.name} ${line.format(found[1])}`) : null;
    });
    if (rows.every((row) => row === null)) return;
    this.tip.replaceChildren(h("div", { class: "dim" }, clock(time, true)), ...rows.filter(Boolean));
    this.tip.hidden = false;
    const right = place > box.width / 2;
    this.tip.style.left = right ? "" : `${place + 12}px`;
    this.tip.style.right = right ? `${box.width - place + 12}px` : "";
    for (const name of ["x1", "x2"]) this.cursor.setAttribute(name, place);
    this.cursor.setAttribute("visibility", "visible");
  }

  describe() {
    return this.lines.map((line, index) => `${line.name} ${line.format(this.data[index].at(-1)?.[1] ?? null)}`).join(", ");
  }
}

// Splits a line where a value is missing, or where two steps are missing.
function parts(points, step) {
  const found = [];
  let part = [];
  for (const point of points) {
    const broken = part.length && !step && point[0] - part.at(-1)[0] > GAP;
    if ((point[1] === null || broken) && part.length) {
      found.push(part);
      part = [];
    }
    if (point[1] !== null) part.push(point);
  }
  return part.length ? [...found, part] : found;
}

function straight(part, x, y) {
  // Draw a single point as a short line, or it would be invisible.
  const points = part.length > 1 ? part : [part[0], [part[0][0] + 2, part[0][1]]];
  return points.map(([time, value], index) => `${index ? "L" : "M"}${x(time).toFixed(1)},${y(value).toFixed(1)}`).join("");
}

function steps(part, x, y) {
  return part
    .map(([time, value], index) => {
      const [at, height] = [x(time).toFixed(1), y(value).toFixed(1)];
      return index ? `H${at}V${height}` : `M${at},${height}`;
    })
    .join("");
}

function nearest(points, time) {
  let best = null;
  for (const point of points) {
    const distance = Math.abs(point[0] - time);
    if (point[1] !== null && distance <= GAP && (!best || distance < Math.abs(best[0] - time))) best = point;
  }
  return best;
}

function before(points, time) {
  return points.findLast((point) => point[0] <= time && point[1] !== null) ?? null;
}

function nice(value, whole) {
  if (value <= 0) return whole ? 2 : 1;
  const size = 10 ** Math.floor(Math.log10(value));
  const top = [1, 2, 3, 4, 5, 6, 8, 10].find((factor) => factor * size >= value * 1.02) ?? 12;
  return whole ? Math.max(2, 2 * Math.ceil((top * size) / 2)) : top * size;
}
