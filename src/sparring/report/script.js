"use strict";
// Sorting and filtering for the class tables; the page reads the same without it.
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const heads = [...table.tHead.rows[0].cells].filter((head) => head.textContent.trim());
  const key = (row, column) => {
    const cell = row.cells[column];
    const text = cell.dataset.value ?? cell.textContent.trim();
    const value = Number(text.replaceAll(",", ""));
    return column > 0 && !Number.isNaN(value) ? value : text;
  };
  heads.forEach((head, column) => {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = head.textContent;
    head.replaceChildren(button);
    button.addEventListener("click", () => {
      const down = head.getAttribute("aria-sort") === "ascending";
      heads.forEach((other) => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", down ? "descending" : "ascending");
      const rows = [...body.rows].sort((a, b) => {
        const [first, second] = [key(a, column), key(b, column)];
        const order = typeof first === "number" ? first - second : String(first).localeCompare(String(second));
        return down ? -order : order;
      });
      body.append(...rows);
    });
  });
  if (body.rows.length > 12 && table.id === "all-classes") {
    const input = document.createElement("input");
    input.type = "search";
    input.placeholder = "Filter classes";
    input.setAttribute("aria-label", "Filter classes by name");
    input.addEventListener("input", () => {
      const wanted = input.value.trim().toLowerCase();
      for (const row of body.rows) row.hidden = !row.cells[0].textContent.toLowerCase().includes(wanted);
    });
    table.parentElement.before(input);
  }
}
