// Runs once for each of our components: what carries data-do asks the server for it, by keyboard as by pointer.
const ask = (what, value) => trigger("select", { do: what, value: value });
element.addEventListener("click", (event) => {
  const asked = event.target.closest("[data-do]:not(form):not(select)");
  if (asked) ask(asked.dataset.do, asked.dataset.value || "");
});
element.addEventListener("change", (event) => {
  if (event.target.matches("select[data-do]")) ask(event.target.dataset.do, event.target.value);
});
element.addEventListener("submit", (event) => {
  event.preventDefault();
  const field = event.target.querySelector("input");
  if (field.value.trim()) ask(event.target.dataset.do, field.value);
  field.value = "";
});

// A film repeats by itself, but for people who asked their system for less motion.
const still = matchMedia("(prefers-reduced-motion: reduce)").matches;
const play = () => element.querySelectorAll("video").forEach((film) => {
  if (film.dataset.shown === film.src) return;  // the same film goes on when words change
  film.dataset.shown = film.src;
  film.load();
  if (!still) film.play().catch(() => {});
});

// A file that the server made goes to the folder of downloads.
let saved = "";
const save = () => element.querySelectorAll("[data-file]").forEach((made) => {
  if (made.dataset.number === saved) return;
  saved = made.dataset.number;
  const bytes = Uint8Array.from(atob(made.dataset.content), (letter) => letter.charCodeAt(0));
  const link = document.createElement("a");
  link.href = URL.createObjectURL(new Blob([bytes]));
  link.download = made.dataset.file;
  link.click();
  setTimeout(() => URL.revokeObjectURL(link.href), 60000);
});
watch("value", () => { play(); save(); });
play();

// A map: buttons and pinching zoom, dragging moves, pointing at a mark shows its phrase.
const box = (map) => map.getAttribute("viewBox").split(" ").map(Number);
const place = (map, left, top, wide, high) => {
  const [, , most] = map.dataset.all.split(" ").map(Number);
  map.setAttribute("viewBox", [left, top, wide, high].join(" "));
  map.style.setProperty("--k", wide / most);
};
const zoom = (map, factor, x, y) => {
  map.dataset.all ||= map.getAttribute("viewBox");
  const all = map.dataset.all.split(" ").map(Number), [left, top, width, height] = box(map);
  if (!factor) return place(map, ...all);
  const wide = Math.min(all[2], Math.max(all[2] / 30, width * factor)), high = wide * height / width;
  place(map, left + x * (width - wide), top + y * (height - high), wide, high);
};
element.addEventListener("click", (event) => {
  const pressed = event.target.closest("[data-zoom]");
  if (pressed) zoom(pressed.closest("figure").querySelector("svg"), Number(pressed.dataset.zoom), 0.5, 0.5);
});
element.addEventListener("wheel", (event) => {
  const map = event.target.closest("svg.ace-map");
  if (!map || !event.ctrlKey) return;  // without it the page scrolls
  event.preventDefault();
  const shown = map.getBoundingClientRect();
  zoom(map, event.deltaY < 0 ? 0.8 : 1.25, (event.clientX - shown.left) / shown.width,
    (event.clientY - shown.top) / shown.height);
}, { passive: false });
let dragged = null;
element.addEventListener("pointerdown", (event) => { dragged = event.target.closest("svg.ace-map"); });
addEventListener("pointerup", () => { dragged = null; });
element.addEventListener("pointermove", (event) => {
  const map = event.target.closest("svg.ace-map");
  if (!map || map !== dragged || !map.dataset.all || event.pointerType === "touch") return;
  const [left, top, wide, high] = box(map), scale = wide / map.getBoundingClientRect().width;
  place(map, left - event.movementX * scale, top - event.movementY * scale, wide, high);
});
element.addEventListener("pointerover", (event) => {
  const map = event.target.closest("svg.ace-map");
  if (!map) return;
  const tip = map.parentElement.querySelector(".ace-tip"), words = event.target.dataset.tip;
  tip.hidden = !words;
  if (!words) return;
  tip.textContent = words;
  const frame = map.parentElement.getBoundingClientRect(), mark = event.target.getBoundingClientRect();
  const room = frame.width - tip.offsetWidth - 8;
  tip.style.left = `${Math.max(8, Math.min(room, mark.x - frame.x + 12))}px`;
  tip.style.top = `${mark.y - frame.y + 18}px`;
});
