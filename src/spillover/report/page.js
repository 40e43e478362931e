"use strict";
// Draws the charts and fills in the tables. Whatever comes from the data is set as text, never as
// HTML.
(() => {
  const NONE = "–";
  const [SHORT, SHORT_LIST] = [24, 60]; // characters that a cell keeps on one line
  const read = (id) => JSON.parse(document.getElementById(id).textContent);

  function make(name, properties = {}, children = []) {
    const element = document.createElement(name);
    Object.assign(element, properties);
    element.append(...children);
    return element;
  }

  // What a cell shows, for each kind of column ---------------------------------------------------

  const fixed = (value) => (value === null ? NONE : value.toFixed(2).replace("-", "−"));
  const signed = (value) => (value > 0 ? "+" : "") + fixed(value);
  const show = {
    text: (value) => value ?? NONE,
    long: (value) => value || NONE,
    folded: (value) => value || NONE,
    count: (value) => (value === null ? NONE : String(value)),
    number: fixed,
    share: (value) => (value > 0 && value < 0.005 ? value.toExponential(0) : fixed(value)),
    signed: signed,
    span: (pair) =>
      pair.length && pair[0] !== null && pair[1] !== null ? `[${pair.map(fixed).join(", ")}]` : NONE,
    seeds: (values) => (values.length ? values.map(fixed).join("  ") : NONE),
    counts: (outcomes) =>
      Object.entries(outcomes).map(([name, count]) => `${count} ${name}`).join(", ") || "none",
  };
  const numeric = new Set(["count", "number", "share", "signed", "span"]);

  const folded = (text) =>
    make("details", {}, [
      make("summary", { textContent: "reasoning" }),
      make("div", { className: "reasoning", textContent: text }),
    ]);

  function cellOf(column, row) {
    const value = column.values[row];
    if (!column.levels) return value;
    return value < 0 ? null : column.levels[value];
  }

  // Sorts what has no value last, whichever way round the rest goes.
  function compare(column, direction) {
    return (left, right) => {
      let [a, b] = [cellOf(column, left), cellOf(column, right)];
      if (Array.isArray(a)) [a, b] = [a[0] ?? null, b[0] ?? null];
      if (a === null || b === null) return (a === null) - (b === null) || left - right;
      if (typeof a === "object") [a, b] = [a, b].map((it) => Object.values(it).reduce((x, y) => x + y, 0));
      return direction * (typeof a === "number" ? a - b : a.localeCompare(b)) || left - right;
    };
  }

  class Table {
    constructor(place, data) {
      this.data = data;
      this.columns = new Map(data.columns.map((column) => [column.key, column]));
      this.chosen = new Map();
      this.sought = "";
      this.sorting = null;
      this.page = 0;
      this.body = make("tbody");
      this.count = make("span");
      this.back = make("button", { type: "button", textContent: "Previous" });
      this.next = make("button", { type: "button", textContent: "Next" });
      this.back.addEventListener("click", () => this.turn(-1));
      this.next.addEventListener("click", () => this.turn(1));
      const constants = make("span", { textContent: data.constants });
      const caption = make("caption", {}, [place.dataset.caption, constants]);
      const table = make("table", {}, [caption, this.head(), this.body]);
      const box = make("div", { className: "scroll", tabIndex: 0 }, [table]);
      const pager = make("div", { className: "pager" }, [this.back, this.next, this.count]);
      place.append(this.filters(), box, pager);
      this.update();
    }

    head() {
      const cells = this.data.columns.map((column) => {
        const button = make("button", { type: "button", textContent: column.title });
        const cell = make("th", { scope: "col" }, [button]);
        if (numeric.has(column.kind)) cell.className = "number";
        button.addEventListener("click", () => this.sort(column, cell));
        return cell;
      });
      return make("thead", {}, [make("tr", {}, cells)]);
    }

    filters() {
      const box = make("div", { className: "filters" });
      for (const key of this.data.filters) {
        const column = this.columns.get(key);
        const present = [...new Set(column.values.map((_, row) => cellOf(column, row)))];
        const values = present.filter((value) => value !== null);
        if (values.length < 2) continue;
        if (column.kind === "count") values.sort((a, b) => a - b);
        box.append(this.menu(column, values));
      }
      if (this.data.search.length) box.append(this.searchField());
      return box;
    }

    menu(column, values) {
      const select = make("select", {}, [make("option", { value: "", textContent: "all" })]);
      values.forEach((value, index) => {
        select.append(make("option", { value: String(index), textContent: String(value) }));
      });
      const choose = () => {
        if (select.value === "") this.chosen.delete(column.key);
        else this.chosen.set(column.key, values[Number(select.value)]);
      };
      const first = values.indexOf(this.data.start[column.key]);
      if (first >= 0) select.value = String(first);
      choose();
      select.addEventListener("change", () => { choose(); this.page = 0; this.update(); });
      return make("label", {}, [column.title, select]);
    }

    searchField() {
      const input = make("input", { type: "search" });
      input.addEventListener("input", () => {
        this.sought = input.value.toLowerCase();
        this.page = 0;
        this.update();
      });
      return make("label", {}, ["text contains", input]);
    }

    sort(column, cell) {
      const direction = this.sorting?.column === column ? -this.sorting.direction : 1;
      this.sorting = { column, direction };
      for (const other of cell.parentNode.children) other.removeAttribute("aria-sort");
      cell.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      this.page = 0;
      this.update();
    }

    turn(pages) {
      this.page += pages;
      this.update();
    }

    keeps(row) {
      for (const [key, value] of this.chosen) {
        if (cellOf(this.columns.get(key), row) !== value) return false;
      }
      if (!this.sought) return true;
      return this.data.search.some((key) => {
        const text = cellOf(this.columns.get(key), row);
        return text !== null && text.toLowerCase().includes(this.sought);
      });
    }

    update() {
      const rows = Array.from({ length: this.data.rows }, (_, row) => row)
        .filter((row) => this.keeps(row));
      if (this.sorting) rows.sort(compare(this.sorting.column, this.sorting.direction));
      const start = this.page * this.data.page;
      const shown = rows.slice(start, start + this.data.page);
      this.body.replaceChildren(...shown.map((row) => this.row(row)));
      this.back.disabled = this.page === 0;
      this.next.disabled = start + shown.length >= rows.length;
      this.back.hidden = this.next.hidden = rows.length <= this.data.page;
      const range = shown.length ? `${start + 1}–${start + shown.length}` : "0";
      this.count.textContent = `${range} of ${rows.length}` +
        (rows.length < this.data.rows ? ` (${this.data.rows} without the filters)` : "");
    }

    row(row) {
      const cells = this.data.columns.map((column) => {
        const text = show[column.kind](cellOf(column, row));
        const cell = make("td", { className: numeric.has(column.kind) ? "number" : column.kind });
        if (text === NONE) cell.classList.add("none");
        if (text.length <= (column.kind === "seeds" ? SHORT_LIST : SHORT)) cell.classList.add("short");
        if (column.kind === "folded" && text !== NONE) cell.append(folded(text));
        else cell.append(column.kind === "long" ? make("div", { textContent: text }) : text);
        return cell;
      });
      return make("tr", {}, cells);
    }
  }

  // Answers of all arms to the same question, some questions at a time.
  class Beside {
    constructor(place, data) {
      this.data = data;
      this.topic = "";
      this.start = 0;
      this.body = make("tbody");
      this.count = make("span");
      this.back = make("button", { type: "button", textContent: "Previous" });
      this.next = make("button", { type: "button", textContent: "Next" });
      this.back.addEventListener("click", () => this.turn(-data.page));
      this.next.addEventListener("click", () => this.turn(data.page));
      const table = make("table", { className: "beside" }, [this.head(), this.body]);
      const box = make("div", { className: "scroll", tabIndex: 0 }, [table]);
      const pager = make("div", { className: "pager" }, [this.back, this.next, this.count]);
      place.append(this.menu(), box, pager);
      this.update();
    }

    head() {
      const cells = this.data.arms.map(({ name, colour }) => {
        const swatch = make("span", { className: "swatch" });
        swatch.style.background = colour;
        return make("th", { scope: "col" }, [swatch, name]);
      });
      return make("thead", {}, [make("tr", {}, [make("th", { textContent: "asked" }), ...cells])]);
    }

    menu() {
      const topics = [...new Set(this.data.questions.map((question) => question.topic))];
      const all = make("option", { value: "", textContent: "all" });
      const options = topics.map((topic, index) =>
        make("option", { value: String(index), textContent: topic }));
      const select = make("select", {}, [all, ...options]);
      select.addEventListener("change", () => {
        this.topic = select.value === "" ? "" : topics[Number(select.value)];
        this.start = 0;
        this.update();
      });
      return make("div", { className: "filters" }, [make("label", {}, ["topic", select])]);
    }

    turn(by) {
      this.start += by;
      this.update();
    }

    update() {
      const listed = this.data.questions.filter(({ topic }) => !this.topic || topic === this.topic);
      const shown = listed.slice(this.start, this.start + this.data.page);
      this.body.replaceChildren(...shown.map((question) => this.row(question)));
      this.back.disabled = this.start === 0;
      this.next.disabled = this.start + shown.length >= listed.length;
      this.back.hidden = this.next.hidden = listed.length <= this.data.page;
      this.count.textContent =
        `questions ${this.start + 1}–${this.start + shown.length} of ${listed.length}`;
    }

    row(question) {
      const cells = question.answers.map((answers) =>
        make("td", {}, answers.map((answer) => this.answer(answer))));
      const topic = make("span", { className: "small", textContent: question.topic });
      return make("tr", {}, [make("th", { scope: "row" }, [question.prompt, topic]), ...cells]);
    }

    answer({ seed, text, reasoning }) {
      const label = seed === null ? [] : [make("span", { className: "small", textContent: `seed ${seed}` })];
      const said = make("div", { className: "said", textContent: text || "(empty)" });
      return make("div", { className: "one" }, [
        ...label, ...(reasoning ? [folded(reasoning)] : []), said,
      ]);
    }
  }

  // Everything on the page -----------------------------------------------------------------------

  const tables = read("tables");
  for (const place of document.querySelectorAll("[data-table]")) {
    const data = tables[place.dataset.table];
    if (data.rows) new Table(place, data);
    else place.append(make("p", { className: "empty", textContent: place.dataset.empty }));
  }

  const beside = document.getElementById("beside-place");
  if (beside) new Beside(beside, read("beside"));

  const charts = read("charts");
  for (const place of document.querySelectorAll("[data-chart]")) {
    const name = place.dataset.chart;
    window.vegaEmbed(place, charts[name], {
      mode: "vega-lite",
      renderer: "svg",
      ast: true,
      downloadFileName: name,
      actions: { export: { svg: true, png: true }, source: false, compiled: false, editor: false },
    }).catch((error) => {
      place.append(make("p", { className: "failed", textContent: `Not drawn: ${error.message}` }));
    });
  }
})();
