"use strict";
// Keeps what is marked data-live fresh while somebody looks at the page. Without this script, or
// while the tab is hidden, nothing is asked for; a reload shows the same. htmx is loaded with the
// first look at the record: who only glances at a page needs none of it.
(() => {
  const EVERY_MS = 15000;
  const HTMX = "/static/vendor/htmx.min.js";
  const regions = [...document.querySelectorAll("[data-live][id]")];
  if (regions.length === 0) return;

  // As the server sent them: what other scripts added since is no news.
  const seen = new Map(regions.map((region) => [region.id, region.cloneNode(true)]));
  let poller = null;
  let timer = 0;
  let asked = Date.now();
  let changed = [];

  function load() {
    return new Promise((resolve) => {
      const script = document.createElement("script");
      script.src = HTMX;
      script.addEventListener("load", () => {
        // It notes the path for a history that is switched off; this site keeps nothing in a browser.
        sessionStorage.removeItem("htmx-current-path-for-history");
        resolve();
      });
      document.head.append(script);
    });
  }

  async function look() {
    asked = Date.now();
    if (!poller) {
      poller = document.createElement("div");
      poller.hidden = true;
      for (const [name, value] of Object.entries({
        "hx-get": location.pathname + location.search,
        "hx-trigger": "look",
        "hx-swap": "none",
        "hx-select-oob": regions.map((region) => `#${region.id}`).join(","),
      })) poller.setAttribute(name, value);
      document.body.append(poller);
      poller.addEventListener("htmx:afterRequest", tell);
      await load();
      htmx.process(poller);
    }
    if (window.htmx) htmx.trigger(poller, "look");
  }

  function schedule() {
    clearTimeout(timer);
    if (document.visibilityState === "hidden") return;
    timer = setTimeout(() => {
      look();
      schedule();
    }, Math.max(0, asked + EVERY_MS - Date.now()));
  }

  function inUse(region) {
    const selection = document.getSelection();
    return region.contains(document.activeElement)
      || (selection && !selection.isCollapsed && selection.containsNode(region, true));
  }

  function keep(event) {
    const region = event.detail.target;
    const fresh = event.detail.fragment.querySelector(`#${CSS.escape(region.id)}`);
    const known = seen.get(region.id);
    if (!fresh || (known && known.isEqualNode(fresh)) || inUse(region)) {
      event.detail.shouldSwap = false; // no news, or it would take away what a person is at
      return;
    }
    seen.set(region.id, fresh.cloneNode(true));
    changed.push(region.id);
  }

  function tell() {
    if (changed.length === 0) return;
    const said = changed.map((id) => document.getElementById(id)?.dataset.say).filter(Boolean);
    document.getElementById("live-status").textContent = said.join(" ");
    document.dispatchEvent(new CustomEvent("barnraise:changed", { detail: changed }));
    changed = [];
  }

  document.body.addEventListener("htmx:oobBeforeSwap", keep);
  document.addEventListener("visibilitychange", schedule);
  schedule();
})();
