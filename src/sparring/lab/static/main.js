// Start: what the server has, which view, light or dark.

import { AttackView } from "./attack.js";
import { $, api } from "./dom.js";
import { ResultsView } from "./results.js";

function theme() {
  $("theme").addEventListener("click", () => {
    const dark = document.documentElement.dataset.theme ? document.documentElement.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    document.documentElement.dataset.theme = dark ? "light" : "dark";
    localStorage.setItem("theme", dark ? "light" : "dark");
  });
}

async function begin() {
  theme();
  let state;
  try {
    state = await api("/api/state");
  } catch {
    setTimeout(() => location.reload(), 3000);
    return;
  }
  const views = { attack: new AttackView(state), results: new ResultsView(state) };
  const route = () => {
    const [view] = location.hash.slice(1).split("/");
    const name = view in views ? view : state.networks.length ? "attack" : "results";
    for (const one of Object.keys(views)) {
      $(`${one}-view`).hidden = one !== name;
      if (one === name) $(`tab-${one}`).setAttribute("aria-current", "page");
      else $(`tab-${one}`).removeAttribute("aria-current");
    }
    if (name === "results") views.results.show(location.hash.split("/").slice(1).map(decodeURIComponent)[0]);
  };
  addEventListener("hashchange", route);
  route();
  document.documentElement.dataset.ready = "yes";
}

begin();
