"use strict";
// Names come from the files of a run: they only ever pass through textContent.
const tip = document.getElementById("tip");
const aloud = document.getElementById("aloud");
const data = JSON.parse(document.getElementById("data").textContent);
const hidden = new Set();

// --- tables ---

const value = (row, column) => row.cells[column].dataset.v ?? row.cells[column].textContent;

function sort(table, header) {
  const column = header.cellIndex;
  const numeric = header.classList.contains("n");
  const before = header.getAttribute("aria-sort");
  const down = before === "none" ? numeric && column > 0 : before === "ascending";
  for (const other of table.tHead.rows[0].cells) if (other.hasAttribute("aria-sort")) other.setAttribute("aria-sort", "none");
  header.setAttribute("aria-sort", down ? "descending" : "ascending");
  const rows = [...table.tBodies[0].rows].map((row) => [value(row, column), row]);
  rows.sort(([a], [b]) => {
    if (a === "" || b === "") return (a === "") - (b === ""); // nothing comes last either way
    const order = numeric ? a - b : a.localeCompare(b, "en", { numeric: true });
    return down ? -order : order;
  });
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

for (const table of document.querySelectorAll("table.sorts")) {
  for (const button of table.querySelectorAll("th button")) {
    button.addEventListener("click", () => sort(table, button.closest("th")));
  }
}

for (const button of document.querySelectorAll(".legend button")) {
  button.addEventListener("click", () => {
    const slot = button.dataset.slot;
    const off = !hidden.has(slot);
    if (off) hidden.add(slot); else hidden.delete(slot);
    button.setAttribute("aria-pressed", String(!off));
    for (const part of document.querySelectorAll(`.s${slot}`)) part.classList.toggle("off", off);
  });
}

// --- plots ---

const percent = (rate) => {
  if (rate === null) return "–";
  if (rate < 5e-7 || rate === 100) return rate.toFixed(0);
  if (rate < 5e-4) return Number(rate.toPrecision(1)).toFixed(7).replace(/0+$/, "");
  return rate.toFixed(rate >= 10 ? 1 : rate >= 1 ? 2 : 3);
};

function measured([wrong, correct, rate, low, high]) {
  if (rate === null) return `${wrong} / ${correct}, nothing to divide by`;
  const interval = low === null ? "" : `, ${percent(low)} to ${percent(high)} %`;
  return `${wrong} of ${correct} = ${percent(rate)} %${interval}`;
}

const name = (i) => data.lines[i][1];
const all = (i) => (data.lines[i].length > 2 ? `${name(i)}\n${measured(data.lines[i].slice(2))}` : name(i));

function show(text, x, y) {
  tip.textContent = text;
  const box = tip.getBoundingClientRect();
  const left = x + 14 + box.width > innerWidth ? x - 14 - box.width : x + 14;
  tip.style.transform = `translate(${Math.max(4, left)}px, ${Math.max(4, Math.min(y + 14, innerHeight - box.height - 4))}px)`;
}

/** Give a plot a cursor that follows the pointer and the arrow keys. */
function explore(plot, columns, rows, text, mark, chosen) {
  if (!plot) return;
  let at = columns === 1 ? [0, -1] : [-1, 0];
  const clamp = (n, count) => Math.max(0, Math.min(count - 1, n));
  const leave = () => { tip.textContent = ""; mark(null); };
  const move = (column, row, x, y, loud) => {
    at = [clamp(column, columns), clamp(row, rows)];
    mark(at);
    show(text(...at), x, y);
    if (loud) aloud.textContent = text(...at);
  };
  plot.addEventListener("pointermove", (event) => {
    const box = plot.getBoundingClientRect();
    const column = Math.floor(((event.clientX - box.left) / box.width) * columns);
    move(column, Math.floor(((event.clientY - box.top) / box.height) * rows), event.clientX, event.clientY, false);
  });
  plot.addEventListener("pointerleave", leave);
  plot.addEventListener("blur", leave);
  plot.addEventListener("keydown", (event) => {
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1], Home: [-columns, 0], End: [columns, 0] }[event.key];
    if (event.key === "Escape") leave();
    if (event.key === "Enter" && chosen && Math.min(...at) >= 0) chosen(...at);
    if (!step || (rows === 1 && step[1])) return;
    event.preventDefault();
    const box = plot.getBoundingClientRect();
    const column = clamp(at[0] + step[0], columns), row = clamp(at[1] + step[1], rows);
    move(column, row, box.left + ((column + 0.5) / columns) * box.width, box.top + ((row + 0.5) / rows) * box.height, true);
  });
  if (chosen) plot.addEventListener("click", () => { if (Math.min(...at) >= 0) chosen(...at); });
}

function framed(plot, width) {
  const frame = plot?.querySelector(".cell");
  return (at) => {
    frame.classList.toggle("on", at !== null);
    if (!at) return;
    frame.setAttribute("x", `${(100 * at[0]) / width}%`);
    frame.setAttribute("y", at[1] * data.tall);
  };
}

function cursor(plot, columns) {
  const line = plot?.querySelector(".cursor");
  return (at) => {
    line.classList.toggle("on", at !== null);
    if (at) for (const name of ["x1", "x2"]) line.setAttribute(name, `${(100 * (at[0] + 0.5)) / columns}%`);
  };
}

const rowOf = new Map([...document.querySelectorAll("#layers tbody tr")].map((row) => [Number(row.dataset.i), row]));
function find(line) {
  const i = data.lines[line][0];
  for (const row of rowOf.values()) row.classList.toggle("found", row === rowOf.get(i));
  rowOf.get(i)?.scrollIntoView({ block: "center" });
}

const byLayer = document.getElementById("by-layer");
const lines = data.lines.length;
if (data.below) explore(byLayer, 1, lines, (_, i) => all(i), framed(byLayer, 1), (_, i) => find(i));
else explore(byLayer, lines, 1, all, cursor(byLayer, lines), find);

const byBit = document.getElementById("by-bit");
const bits = new Map(data.bits.map((item) => [item[0], item]));
const bitText = (bit) => `bit ${bit}\n${bits.has(bit) ? measured(bits.get(bit).slice(1)) : "nothing to divide by"}`;
explore(byBit, data.width, 1, bitText, cursor(byBit, data.width), null);

const byBoth = document.getElementById("by-both");
const cells = new Map(data.cells.map((item) => [item[0] * data.width + item[1], item]));
explore(byBoth, data.width, lines, (bit, i) => {
  const cell = cells.get(i * data.width + bit);
  return `${name(i)}, bit ${bit}\n${cell ? measured(cell.slice(2)) : "nothing to divide by"}`;
}, framed(byBoth, data.width), (bit, i) => find(i));
