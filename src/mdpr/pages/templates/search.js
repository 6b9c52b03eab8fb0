"use strict";
// What the scripts of all pages begin with. No storage, no network: works in a sandboxed frame.

// The field of search.html.j2, which stays hidden without scripts, hides those of `items` that lack one of its words or
// that `wanted` turns down by their index. Returns what applies both anew.
const searching = (items, wanted = () => true) => {
  const texts = items.map((item) => item.textContent.toLowerCase());
  const search = document.getElementById("search");
  const found = document.getElementById("found");
  const show = () => {
    const words = search.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    items.forEach((item, index) => {
      item.hidden = !wanted(index) || !words.every((word) => texts[index].includes(word));
      shown += !item.hidden;
    });
    found.textContent = `${shown} of ${items.length} classes`;
  };
  search.addEventListener("input", show);
  search.closest(".search").hidden = false;
  return show;
};
