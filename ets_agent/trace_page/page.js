// Draws the run that the page holds.

const data = JSON.parse(document.getElementById("data").textContent);

document.getElementById("page").replaceChildren(...[head(), path(), steps()].filter((part) => part !== null));
document.title = `${[...data.prompt.at(-1).text].slice(0, 60).join("")} – a guided run`;
