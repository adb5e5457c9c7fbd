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
