// Creates and changes elements. Data of the platform is inserted as text, never as markup.

export const byId = (id) => document.getElementById(id);

export function h(tag, properties = {}, ...children) {
  const element = document.createElement(tag);
  for (const [name, value] of Object.entries(properties)) {
    if (name === "class") element.className = value;
    else if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
    else if (value !== undefined && value !== null) element.setAttribute(name, value);
  }
  element.append(...children.filter((child) => child !== null && child !== undefined));
  return element;
}

export function svg(tag, attributes = {}, text) {
  const element = document.createElementNS("http://www.w3.org/2000/svg", tag);
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  if (text !== undefined) element.textContent = text;
  return element;
}

// A table that keeps its row elements while their content changes, so focus, selection and scroll position stay.
// `first` rows are shown until a button is pressed. Columns: {title, class}. Rows: {key, class, onclick, cells: [text | {text, class, title, make}]}.
export class Table {
  constructor(host, title, columns, first) {
    this.first = first;
    this.all = false;
    this.shown = [];
    this.more = h("button", { class: "quiet unfold", type: "button", onclick: () => this.toggle() });
    this.rows = new Map();
    this.note = h("span", { class: "dim" });
    this.body = h("tbody");
    this.empty = h("p", { class: "empty" });
    this.columns = columns;
    const head = h("tr", {}, ...columns.map((each) => h("th", { class: each.class ?? "", scope: "col" }, each.title)));
    this.table = h("table", {}, h("thead", {}, head), this.body);
    host.replaceChildren(
      h("div", { class: "head" }, h("h2", {}, title), this.note),
      h("div", { class: "scroll", tabindex: "-1" }, this.table, this.empty),
      this.more,
    );
  }

  toggle() {
    this.all = !this.all;
    this.show(...this.shown);
  }

  show(everything, { note = "", empty = "" } = {}) {
    this.shown = [everything, { note, empty }];
    const rows = this.all ? everything : everything.slice(0, this.first);
    this.more.hidden = everything.length <= this.first;
    setText(this.more, this.all ? `Show the first ${this.first}` : `Show all ${everything.length}`);
    setText(this.note, note);
    setText(this.empty, empty);
    this.empty.hidden = rows.length > 0;
    this.table.hidden = rows.length === 0;
    const kept = new Map();
    let place = this.body.firstChild;
    for (const row of rows) {
      const known = this.rows.get(row.key) ?? this.make(row);
      this.update(known, row);
      kept.set(row.key, known);
      if (known.element === place) place = place.nextSibling;
      else this.body.insertBefore(known.element, place);
    }
    // Remove what is left, by position and not by key: of two rows with the same key only the last is known.
    while (place) {
      const stale = place;
      place = place.nextSibling;
      stale.remove();
    }
    this.rows = kept;
  }

  make(row) {
    const cells = this.columns.map((column) => h("td", { class: column.class ?? "" }));
    const known = { cells, row, element: h("tr", {}, ...cells) };
    known.element.addEventListener("click", () => known.row.onclick?.());
    return known;
  }

  update(known, row) {
    known.row = row;
    setClass(known.element, `${row.onclick ? "link " : ""}${row.class ?? ""}`);
    row.cells.forEach((content, index) => {
      const cell = known.cells[index];
      const { text, class: name = "", title = "", make } = typeof content === "object" ? content : { text: content };
      setClass(cell, `${this.columns[index].class ?? ""} ${make ? "" : name}`.trim());
      if (cell.title !== title) cell.title = title;
      const print = make ? `${text}\u0000${name}` : text;
      if (cell.dataset.print === print) return;
      cell.dataset.print = print;
      if (make) cell.replaceChildren(make());
      else cell.textContent = text;
    });
  }
}

function setText(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function setClass(element, name) {
  if (element.className !== name) element.className = name;
}
