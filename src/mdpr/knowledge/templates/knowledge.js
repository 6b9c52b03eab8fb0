// Search in all classes, or only in those with findings.
(() => {
  const items = Array.from(document.querySelectorAll("#classes > li"));
  const flags = items.map((item) => item.querySelector(".finding") !== null);
  const flagged = document.getElementById("flagged");
  const show = searching(items, (index) => flags[index] || !flagged.checked);
  flagged.addEventListener("change", show);
  show();
})();
