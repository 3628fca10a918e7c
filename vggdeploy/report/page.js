"use strict";
// Charts: drawn in the reader's light or dark, and again when that changes.
const read = (id) => JSON.parse(document.getElementById(id).textContent);
const specs = read("specs"), themes = read("themes"), shown = [];
// On paper all is light: the style's dark is for screens only.
const dark = window.matchMedia("screen and (prefers-color-scheme: dark)");
async function draw(place, spec, index) {
  if (shown[index]) shown[index].finalize();
  for (const param of spec.params || []) if (param.name === "dark") param.value = dark.matches;
  const theme = dark.matches ? "dark" : "light";
  // ast: expressions are interpreted, not compiled, so the page's policy need not allow eval.
  shown[index] = await vegaEmbed(place, spec, {
    mode: "vega-lite", renderer: "svg", ast: true, config: themes[theme], tooltip: { theme },
    actions: { export: true, source: false, compiled: false, editor: false },
  });
  accessible(place);
  place.dataset.drawn = theme;
}
// What Vega leaves without a name: the button of its menu, and the groups around marks, which are no images themselves.
function accessible(place) {
  for (const menu of place.querySelectorAll("summary")) menu.setAttribute("aria-label", "Save this picture");
  for (const group of place.querySelectorAll('[role="graphics-symbol"]:not([aria-label])')) group.removeAttribute("role");
}
function drawAll() {
  document.querySelectorAll(".chart").forEach((place) => {
    const index = Number(place.dataset.chart);
    draw(place, specs[index], index).catch((error) => {
      place.textContent = "The chart cannot be drawn: " + error.message + ". Its numbers are in the table.";
    });
  });
}
dark.addEventListener("change", drawAll);
drawAll();

// What is folded is printed too.
window.addEventListener("beforeprint", () => document.querySelectorAll("details").forEach((one) => (one.open = true)));

// Tables: where one is wider than the page, a line says so.
function hint() {
  for (const place of document.querySelectorAll(".scroll")) {
    place.parentElement.classList.toggle("cut", place.scrollWidth > place.clientWidth + 1);
  }
}
window.addEventListener("resize", hint);
document.addEventListener("toggle", hint, true);
hint();

// Tables: a column's button sorts by it, and a second press turns the order around. What has no number comes last.
function sort(button) {
  const head = button.closest("th"), table = button.closest("table"), body = table.tBodies[0];
  const column = head.cellIndex, up = head.getAttribute("aria-sort") !== "ascending";
  const key = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  const numbers = head.dataset.kind === "number";
  const rows = Array.from(body.rows);
  rows.sort((a, b) => {
    const x = key(a), y = key(b);
    if (numbers) {
      if (x === "" || y === "") return (x === "") - (y === "");
      return up ? x - y : y - x;
    }
    return (up ? 1 : -1) * x.localeCompare(y, undefined, { numeric: true });
  });
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "ascending" : "descending");
  body.append(...rows);
}
document.addEventListener("click", (event) => {
  const button = event.target.closest("th button");
  if (button) sort(button);
});
