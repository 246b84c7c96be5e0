"use strict";
// before the first paint, so that nobody's dark page flashes white
{
  const chosen = localStorage.getItem("theme");
  if (chosen === "light" || chosen === "dark") document.documentElement.dataset.theme = chosen;
}
