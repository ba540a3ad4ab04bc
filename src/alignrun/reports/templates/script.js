"use strict";
// Everything a page can do beyond being read. What models have written is read and written as text, never as HTML.

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// Tables: a click on a heading sorts the rows, a second one turns the order, a third one restores it.

function sortKey(cell) {
  if (cell.dataset.key) return Number(cell.dataset.key);
  const shown = cell.querySelector(".name") || cell;
  const text = shown.textContent.trim();
  if (!cell.classList.contains("value")) return text;
  const number = parseFloat(text.replace(/\u2212/g, "-").replace(/,/g, ""));
  return Number.isNaN(number) ? null : number;
}

function compareKeys(one, other) {
  if (typeof one === "number") return one - other;
  return one.localeCompare(other, undefined, { numeric: true });
}

function makeSortable(table) {
  const body = table.tBodies[0];
  const original = [...body.rows];
  const headings = [...table.tHead.rows[0].cells];
  headings.forEach((heading, column) => {
    const button = element("button", { type: "button", className: "sort", title: "Sort" });
    button.append(...heading.childNodes);
    heading.append(button);
    button.addEventListener("click", () => {
      const numeric = original.some((row) => typeof sortKey(row.cells[column]) === "number");
      const orders = numeric ? ["descending", "ascending", ""] : ["ascending", "descending", ""];
      const order = orders[(orders.indexOf(heading.getAttribute("aria-sort") || "") + 1) % orders.length];
      headings.forEach((each) => each.removeAttribute("aria-sort"));
      if (order) heading.setAttribute("aria-sort", order);
      const keyed = original.map((row) => [sortKey(row.cells[column]), row]);
      const known = keyed.filter(([key]) => key !== null);
      const sign = order === "descending" ? -1 : 1;
      if (order) known.sort(([one], [other]) => sign * compareKeys(one, other));
      const absent = keyed.filter(([key]) => key === null);
      body.append(...(order ? [...known, ...absent] : keyed).map(([, row]) => row));
    });
  });
}

document.querySelectorAll("table.sortable").forEach(makeSortable);

// Completions: chosen by policies, filtered by text, sorted, and compared word by word.

const LONGEST = 4e6;  // cells of the table of a comparison

function words(text) {
  if (!Intl.Segmenter) return text.match(/\s+|\S+/g) || [];
  return [...new Intl.Segmenter(undefined, { granularity: "word" }).segment(text)].map((part) => part.segment);
}

// Which words of each text are not in their longest common subsequence; null where the texts are too long for it.
function difference(one, other) {
  let start = 0;
  let [end, otherEnd] = [one.length, other.length];
  while (start < Math.min(end, otherEnd) && one[start] === other[start]) start++;
  while (end > start && otherEnd > start && one[end - 1] === other[otherEnd - 1]) [end, otherEnd] = [end - 1, otherEnd - 1];
  const [rows, columns] = [end - start, otherEnd - start];
  if (rows * columns > LONGEST) return null;
  const width = columns + 1;
  const common = new Uint16Array((rows + 1) * width);
  for (let i = rows - 1; i >= 0; i--)
    for (let j = columns - 1; j >= 0; j--)
      common[i * width + j] = one[start + i] === other[start + j]
        ? common[(i + 1) * width + j + 1] + 1
        : Math.max(common[(i + 1) * width + j], common[i * width + j + 1]);
  const [first, second] = [new Set(), new Set()];
  let [i, j] = [0, 0];
  while (i < rows || j < columns) {
    if (i < rows && j < columns && one[start + i] === other[start + j]) [i, j] = [i + 1, j + 1];
    else if (j === columns || (i < rows && common[(i + 1) * width + j] >= common[i * width + j + 1])) first.add(start + i++);
    else second.add(start + j++);
  }
  return [first, second];
}

function texts(article) {
  return [...article.querySelectorAll(".side .text-block")];
}

function showDifference(article) {
  const blocks = texts(article);
  const split = blocks.map((block) => words(block.textContent));
  const found = difference(...split);
  if (!found) return article.append(element("p", { className: "note too-long" }, "Too long to be compared."));
  blocks.forEach((block, place) => {
    block.replaceChildren(
      ...split[place].map((word, at) => (found[place].has(at) ? element("mark", {}, word) : document.createTextNode(word))),
    );
  });
}

function hideDifference(article) {
  texts(article).forEach((block) => (block.textContent = block.textContent));
  article.querySelectorAll(".too-long").forEach((note) => note.remove());
}

// The sample that two completions of a prompt make; what is copied has been text before.
function pair(answers, one, other) {
  const p = one.dataset.p.split(",")[other.dataset.player];
  const sides = element("div", { className: "sides" }, one.cloneNode(true), other.cloneNode(true));
  sides.querySelectorAll(".over").forEach((note) => note.remove());
  const article = element("article", { className: "sample" }, ...[...answers.children].slice(0, -1).map((each) => each.cloneNode(true)), sides);
  article.dataset.length = one.dataset.length;
  if (!p) return article;
  article.dataset.p = p;
  const [name, otherName] = [one, other].map((each) => each.querySelector(".who").textContent);
  const share = element("span", {});
  share.style.width = `${100 * p}%`;
  const shown = Number(p).toFixed(3);
  const bar = element("div", { className: "bar", role: "img", ariaLabel: shown }, share);
  const says = element("span", {}, `P(${name} \u227b ${otherName}) = `, element("b", {}, shown));
  article.append(element("div", { className: "verdict" }, says, bar));
  return article;
}

const ORDERS = {
  "as drawn": null,
  "P, highest first": ["p", -1],
  "P, lowest first": ["p", 1],
  "longest first": ["length", -1],
  "shortest first": ["length", 1],
};

function choice(label, names) {
  const select = element("select", {}, ...names.map((name, place) => element("option", { value: place }, name)));
  return [select, element("label", {}, label, select)];
}

function browse(container) {
  const answers = [...container.querySelectorAll(":scope > .answers")];
  const controls = element("div", { className: "controls" });
  const list = answers.length ? element("div", { className: "pairs" }) : container;
  let samples = [...container.querySelectorAll(":scope > .sample")];

  const filter = element("input", { type: "search", placeholder: "text" });
  const [order, orderLabel] = choice("sort", Object.keys(ORDERS));
  const different = element("input", { type: "checkbox" });
  const cutOnly = element("input", { type: "checkbox" });
  const count = element("output", {});

  const visible = new IntersectionObserver((entries) => {
    entries.filter((entry) => entry.isIntersecting).forEach((entry) => {
      visible.unobserve(entry.target);
      showDifference(entry.target);
    });
  }, { rootMargin: "500px" });

  function compare() {
    visible.disconnect();
    samples.forEach(different.checked ? (sample) => visible.observe(sample) : hideDifference);
  }

  function arrange() {
    const wanted = filter.value.trim().toLowerCase();
    let shown = 0;
    samples.forEach((sample) => {
      const text = [...sample.querySelectorAll(".text-block")].map((block) => block.textContent).join("\n").toLowerCase();
      sample.hidden = !text.includes(wanted) || (cutOnly.checked && !sample.querySelector(".cut"));
      if (!sample.hidden) shown++;
    });
    const [key, sign] = ORDERS[Object.keys(ORDERS)[order.value]] || [];
    const value = (sample) => (key in sample.dataset ? sign * sample.dataset[key] : Infinity);
    list.append(...(key ? [...samples].sort((one, other) => value(one) - value(other) || 0) : samples));
    count.textContent = `${shown} of ${samples.length}`;
  }

  if (answers.length) {
    const names = new Map([...answers[0].querySelectorAll(".side")].map((side) => [side.dataset.player, side.querySelector(".who").textContent]));
    const [first, firstLabel] = choice("policy", [...names.values()]);
    const [second, secondLabel] = choice("against", [...names.values()]);
    second.value = names.size - 1;
    const choose = () => {
      const of = (one, player) => [...one.querySelectorAll(".side")].filter((side) => side.dataset.player === player);
      samples = answers.flatMap((one) => {
        const others = of(one, second.value);
        const next = first.value === second.value ? 1 : 0;  // a policy against itself: one completion and the next
        return of(one, first.value).map((side, place) => pair(one, side, others[(place + next) % others.length]));
      });
      list.replaceChildren();
      arrange();
      compare();
    };
    [first, second].forEach((select) => select.addEventListener("change", choose));
    controls.append(firstLabel, secondLabel);
    container.classList.add("paired");
    container.append(list);
    choose();
  }
  filter.addEventListener("input", arrange);
  [order, cutOnly].forEach((control) => control.addEventListener("change", arrange));
  different.addEventListener("change", compare);
  const checks = [[different, "differences"], [cutOnly, "cut off only"]];
  controls.append(
    element("label", {}, "filter", filter),
    orderLabel,
    ...checks.map(([box, name]) => element("label", { className: "check" }, box, name)),
    count,
  );
  container.before(controls);
  arrange();
}

document.querySelectorAll(".browse").forEach(browse);

// On paper nothing is folded away.

const unfolded = [];
addEventListener("beforeprint", () => {
  document.querySelectorAll("details:not([open])").forEach((details) => {
    details.open = true;
    unfolded.push(details);
  });
});
addEventListener("afterprint", () => unfolded.splice(0).forEach((details) => (details.open = false)));
