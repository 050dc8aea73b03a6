// The panel that checks this page in the browser. Without it the page says how to check by command.

import { Misfit } from "./bytes.js";
import { Checks, checkAct, checkHead, checkLeaf, checkSaved, readExpected } from "./checks.js";
import { checkDonor } from "./donor.js";
import { MAX_PROOF_BYTES, checkReceipt } from "./receipt.js";
import { Site } from "./tiles.js";

const WORDS = {
  running: ["…", "checking"],
  holds: ["✓", "holds"],
  fails: ["✗", "does not hold"],
  open: ["–", "not checked"],
};
const OUTCOMES = {
  holds: "All of this holds.",
  open: "What could be checked holds; the rest is for you, or for the command.",
  fails: "Something does not hold. Do not believe this page; keep what you have as evidence.",
};
const RECEIPT_OUTCOMES = { holds: "Genuine", open: "Genuine as far as it was checked", fails: "Not genuine" };
const MAX_FILE_BYTES = MAX_PROOF_BYTES;

const panel = document.querySelector("[data-check]");
const form = panel.querySelector("form");
const list = panel.querySelector(".steps");
const outcome = panel.querySelector(".outcome");
const progress = panel.querySelector(".progress");
const items = new Map();

/** Show a step as it starts and ends: a mark, words, and what was found. */
function tell(step) {
  if (!items.has(step)) {
    const item = document.createElement("li");
    for (const name of ["mark", "title", "state", "detail"]) {
      const part = document.createElement("span");
      part.className = name;
      item.append(part, " ");
    }
    item.querySelector(".mark").ariaHidden = "true";
    items.set(step, item);
    list.append(item);
  }
  const item = items.get(step);
  const [mark, word] = WORDS[step.state];
  item.dataset.state = step.state;
  const parts = { mark, title: step.title, state: word, detail: step.detail };
  for (const [name, said] of Object.entries(parts)) item.querySelector(`.${name}`).textContent = said;
}

async function contents(field) {
  const file = panel.querySelector(`[name="${field}_file"]`)?.files[0];
  if (!file) return panel.querySelector(`[name="${field}"]`)?.value ?? "";
  if (file.size > MAX_FILE_BYTES) throw new Misfit(`${file.name} is larger than any such file`);
  return file.text();
}

async function check(checks) {
  const { check: kind, root: named } = panel.dataset;
  const site = new Site();
  let expected;
  const understood = await checks.step("What you gave can be read", async () => {
    expected = readExpected(panel.querySelector('[name="root"]').value);
    return expected.root === null ? "no fingerprint: this page's own is used" : "a root fingerprint";
  });
  if (understood.state !== "holds") return;
  if (kind === "receipt") {
    await checkReceipt(checks, site, await contents("leaf"), await contents("proof"), expected, named);
    return;
  }
  const found = await checkHead(checks, site, expected, named);
  if (kind === "leaf") {
    const shown = document.getElementById("leaf-bytes").textContent;
    const leaf = await checkLeaf(checks, found, Number(panel.dataset.index), shown);
    const { act } = panel.dataset;
    if (act) await checkAct(checks, site, act, shown, leaf, expected.root ?? named);
  }
  if (kind === "donor") await checkDonor(checks, site, found, shownTotals(), showProgress);
  const saved = await contents("saved");
  if (saved.trim()) await checkSaved(checks, found, saved);
}

function shownTotals() {
  const { keys, ...numbers } = panel.dataset;
  const names = ["size", "pending", "final", "forfeited", "unpaid", "sponsored", "given"];
  const shown = Object.fromEntries(names.map((name) => [name, Number(numbers[name])]));
  return { ...shown, keys: keys.split(" ") };
}

function showProgress(done, total) {
  progress.hidden = done === total;
  progress.max = total;
  progress.value = done;
}

async function run() {
  const button = form.querySelector("button");
  if (button.disabled) return;
  button.disabled = true;
  list.replaceChildren();
  items.clear();
  delete outcome.dataset.state;
  outcome.textContent = "Checking…";
  const checks = new Checks(tell);
  try {
    await check(checks);
  } catch (error) {
    if (!(error instanceof Misfit)) throw error;
    checks.steps.push({ state: "fails" });
    tell({ title: "What you gave can be read", state: "fails", detail: error.message });
  } finally {
    button.disabled = false;
    progress.hidden = true;
    outcome.dataset.state = checks.outcome;
    outcome.textContent = (panel.dataset.check === "receipt" ? RECEIPT_OUTCOMES : OUTCOMES)[checks.outcome];
  }
}

/** A link may bring the fingerprint along: #root=12D3KooW… */
function takeFragment() {
  const given = new URLSearchParams(location.hash.slice(1)).get("root");
  if (!given) return;
  panel.querySelector('[name="root"]').value = given;
  if (panel.dataset.check !== "receipt") run();
}

for (const hidden of panel.querySelectorAll("[data-needs-script]")) hidden.hidden = false;
form.addEventListener("submit", (event) => {
  event.preventDefault();
  run();
});
addEventListener("hashchange", takeFragment);
takeFragment();
