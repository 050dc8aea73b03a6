"use strict";
// Keeps what is marked data-live fresh while somebody looks at the page. Without this script, or
// while the tab is hidden, nothing is asked for; a reload shows the same.
(() => {
  const EVERY_MS = 15000;
  const regions = [...document.querySelectorAll("[data-live][id]")];
  if (!window.htmx || regions.length === 0) return;

  // As the server sent them: what other scripts added since is no news.
  const seen = new Map(regions.map((region) => [region.id, region.cloneNode(true)]));
  const poller = document.createElement("div");
  poller.hidden = true;
  for (const [name, value] of Object.entries({
    "hx-get": location.pathname + location.search,
    "hx-trigger": "look",
    "hx-swap": "none",
    "hx-select-oob": regions.map((region) => `#${region.id}`).join(","),
  })) poller.setAttribute(name, value);
  document.body.append(poller);
  htmx.process(poller);

  let timer = 0;
  let asked = Date.now();
  let changed = [];

  function schedule() {
    clearTimeout(timer);
    if (document.visibilityState === "hidden") return;
    timer = setTimeout(() => {
      asked = Date.now();
      htmx.trigger(poller, "look");
      schedule();
    }, Math.max(0, asked + EVERY_MS - Date.now()));
  }

  function inUse(region) {
    const selection = document.getSelection();
    return region.contains(document.activeElement)
      || (selection && !selection.isCollapsed && selection.containsNode(region, true));
  }

  document.body.addEventListener("htmx:oobBeforeSwap", (event) => {
    const region = event.detail.target;
    const fresh = event.detail.fragment.querySelector(`#${CSS.escape(region.id)}`);
    const known = seen.get(region.id);
    if (!fresh || (known && known.isEqualNode(fresh)) || inUse(region)) {
      event.detail.shouldSwap = false; // no news, or it would take away what a person is at
      return;
    }
    seen.set(region.id, fresh.cloneNode(true));
    const open = region.querySelector("details[open]");
    if (open) fresh.querySelector("details")?.setAttribute("open", "");
    changed.push(region.id);
  });

  poller.addEventListener("htmx:afterRequest", () => {
    if (changed.length === 0) return;
    const said = changed.map((id) => document.getElementById(id)?.dataset.say).filter(Boolean);
    document.getElementById("live-status").textContent = said.join(" ");
    document.dispatchEvent(new CustomEvent("barnraise:changed", { detail: changed }));
    changed = [];
  });

  document.addEventListener("visibilitychange", schedule);
  schedule();
})();
