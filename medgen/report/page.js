const dialog = document.querySelector("dialog");
for (const image of document.querySelectorAll("main img")) {
  image.tabIndex = 0;
  const open = () => {
    dialog.querySelector("img").src = image.src;
    dialog.querySelector("p").textContent = image.alt;
    dialog.showModal();
  };
  image.addEventListener("click", open);
  image.addEventListener("keydown", (event) => event.key === "Enter" && open());
}
dialog.addEventListener("click", () => dialog.close());
addEventListener("beforeprint", () => {
  for (const part of document.querySelectorAll("details")) part.open = true;
});
