const dialog = document.querySelector("dialog");
const images = [...document.querySelectorAll("main img")];
let shown = 0;

function show(place) {
  shown = (place + images.length) % images.length;
  dialog.querySelector("img").src = images[shown].src;
  dialog.querySelector("p").textContent = images[shown].alt;
}

images.forEach((image, place) => {
  image.tabIndex = 0;
  const open = () => {
    show(place);
    dialog.showModal();
  };
  image.addEventListener("click", open);
  image.addEventListener("keydown", (event) => event.key === "Enter" && open());
});
dialog.addEventListener("click", () => dialog.close());
dialog.addEventListener("keydown", (event) => {
  if (event.key === "ArrowRight") show(shown + 1);
  if (event.key === "ArrowLeft") show(shown - 1);
});

const tiles = [...document.querySelectorAll(".quiz li")];
const score = document.querySelector(".quizscore");
for (const tile of tiles) {
  const choices = tile.querySelector(".choices");
  choices.hidden = false;
  choices.addEventListener("click", (event) => {
    const choice = event.target.closest("button");
    if (!choice || tile.dataset.answer) return;
    tile.dataset.answer = choice.value === tile.dataset.real ? "right" : "wrong";
    const truth = tile.dataset.real === "1" ? "Real" : "Synthetic";
    choices.textContent = (tile.dataset.answer === "right" ? "\u2713 " : "\u2717 ") + truth;
    const done = tiles.filter((other) => other.dataset.answer);
    const right = done.filter((other) => other.dataset.answer === "right");
    score.hidden = false;
    score.textContent = `${right.length} of ${done.length} right; ${tiles.length - done.length} to go.`;
  });
}

addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
