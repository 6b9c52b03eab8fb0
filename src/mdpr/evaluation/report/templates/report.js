// Sorting and searching of the per-class table, and the closer look at a chart. Without scripts the table stands in
// order of index and both looks at a chart are shown.
(() => {
  const table = document.getElementById("classes");
  const body = table.tBodies[0];
  const rows = Array.from(body.rows);

  const value = (row, column) => {
    const cell = row.cells[column];
    return "value" in cell.dataset ? Number(cell.dataset.value || NaN) : cell.textContent.trim();
  };

  // Empty cells (NaN) stay last in both directions.
  const compare = (a, b, sign) => {
    if (typeof a === "string") return sign * a.localeCompare(b, undefined, { numeric: true });
    if (Number.isNaN(a) || Number.isNaN(b)) return Number.isNaN(a) - Number.isNaN(b);
    return sign * (a - b);
  };

  table.tHead.addEventListener("click", (event) => {
    const button = event.target.closest("button");
    if (!button) return;
    const head = button.closest("th");
    const descending = head.getAttribute("aria-sort") === "ascending";
    for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
    head.setAttribute("aria-sort", descending ? "descending" : "ascending");
    const sign = descending ? -1 : 1;
    rows
      .map((row) => [value(row, head.cellIndex), row])
      .sort((a, b) => compare(a[0], b[0], sign))
      .forEach((pair) => body.append(pair[1]));
  });

  searching(rows);
  for (const head of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
  }

  for (const views of document.querySelectorAll(".views")) {
    const panels = Array.from(views.children);
    const bar = document.createElement("div");
    bar.className = "switch";
    bar.setAttribute("role", "group");
    bar.setAttribute("aria-label", "View");
    const show = (index) => {
      panels.forEach((panel, other) => (panel.hidden = other !== index));
      Array.from(bar.children).forEach((button, other) => button.setAttribute("aria-pressed", String(other === index)));
    };
    ["Whole matrix", "Worst block"].forEach((title, index) => {
      const button = document.createElement("button");
      button.type = "button";
      button.textContent = title;
      button.addEventListener("click", () => show(index));
      bar.append(button);
    });
    views.before(bar);
    show(0);
  }
})();
