"use strict";
// Everything a page can do beyond being read. What models have written is read and written as text, never as HTML.

function element(name, properties, ...children) {
  const made = Object.assign(document.createElement(name), properties);
  made.append(...children);
  return made;
}

// Tables: a click on a heading sorts the rows, a second one turns the order, a third one restores it.

function sortKey(cell) {
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

// On paper nothing is folded away.

const unfolded = [];
addEventListener("beforeprint", () => {
  document.querySelectorAll("details:not([open])").forEach((details) => {
    details.open = true;
    unfolded.push(details);
  });
});
addEventListener("afterprint", () => unfolded.splice(0).forEach((details) => (details.open = false)));
