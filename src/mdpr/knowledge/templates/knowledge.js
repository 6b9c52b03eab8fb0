"use strict";
// Searching the classes. No storage, no network: works in a sandboxed frame. Without scripts every class is shown.
(() => {
  const items = Array.from(document.querySelectorAll("#classes > li"));
  const texts = items.map((item) => item.textContent.toLowerCase());
  const flags = items.map((item) => item.querySelector(".finding") !== null);
  const search = document.getElementById("search");
  const flagged = document.getElementById("flagged");
  const found = document.getElementById("found");

  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    items.forEach((item, index) => {
      item.hidden = (flagged.checked && !flags[index]) || !words.every((word) => texts[index].includes(word));
      shown += !item.hidden;
    });
    found.textContent = `${shown} of ${items.length} classes`;
  };

  search.addEventListener("input", show);
  flagged.addEventListener("change", show);
  search.closest(".search").hidden = false;
  show();
})();
