"use strict";
// Sliders: each picture is faded in over the one before it.
for (const slider of document.querySelectorAll("input[type=range]")) {
  const figure = slider.closest("figure");
  const images = figure.querySelectorAll("img");
  const buttons = figure.querySelectorAll("[data-stop]");
  const names = slider.dataset.stops.split("|");
  const show = () => {
    const value = Number(slider.value);
    images.forEach((image, i) => {
      image.style.opacity = i ? Math.min(Math.max(value - i + 1, 0), 1) : 1;
    });
    buttons.forEach((button, i) => button.setAttribute("aria-pressed", i === value));
    slider.setAttribute("aria-valuetext", names[Math.round(value)]);
  };
  slider.addEventListener("input", show);
  slider.addEventListener("move", show);
  buttons.forEach((button) => button.addEventListener("click", () => {
    slider.value = button.dataset.stop;
    show();
  }));
  show();
}
for (const button of document.querySelectorAll("[data-all]")) {
  button.addEventListener("click", () => {
    for (const slider of document.querySelectorAll("input[type=range]")) {
      slider.value = button.dataset.all;
      slider.dispatchEvent(new Event("move"));
    }
  });
}
// Tables: a click on a heading sorts the rows, a second click the other way round.
for (const button of document.querySelectorAll("th button")) {
  button.addEventListener("click", () => {
    const heading = button.closest("th");
    const column = heading.cellIndex;
    const body = heading.closest("table").tBodies[0];
    const falling = heading.getAttribute("aria-sort") !== "descending";
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", falling ? "descending" : "ascending");
    const key = (row) => {
      const cell = row.cells[column];
      if (cell.tagName === "TH") return cell.textContent;
      return cell.dataset.value === undefined ? NaN : Number(cell.dataset.value);
    };
    const order = (a, b) => {
      const [x, y] = [key(a), key(b)];
      if (typeof x === "string") return x.localeCompare(y) * (falling ? 1 : -1);
      if (Number.isNaN(x) || Number.isNaN(y)) return Number.isNaN(x) - Number.isNaN(y);
      return falling ? y - x : x - y;
    };
    body.append(...[...body.rows].sort(order));
  });
}
