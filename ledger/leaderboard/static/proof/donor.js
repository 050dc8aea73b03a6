// A donor's totals, recomputed from the leaves that speak of its keys. The list of those leaves is
// the server's: each leaf is proven, but that none is missing only a replay of the log proves.

import { Misfit, Unchecked, canonical } from "./bytes.js";
import { leaves, parseLeaf } from "./checks.js";

export const MAX_LEAVES = 5000;
const TOO_MANY =
  `more than ${MAX_LEAVES.toLocaleString("en")} leaves speak of this donor: too many to check ` +
  "here; use the command, which replays them all";
const MAX_LIST_BYTES = 1 << 20;
const READ_AT_ONCE = 16;
const STATES = ["pending", "final", "forfeited", "unpaid"];
const amount = (microcredits) => `${microcredits.toLocaleString("en")} microcredits`;

/**
 * Recompute and compare. `shown` has the page's `keys`, its `size` in leaves, and microcredits: of
 * its own keys as `pending`, `final`, `forfeited`, `unpaid`; of money as `sponsored` and `given`.
 * `progress(done, total)` is told as leaves are read.
 */
export async function checkDonor(checks, site, found, shown, progress) {
  let read;
  const listed = await checks.step(
    "The leaves that speak of this donor are in the record",
    async () => {
      read = await readLeaves(site, found, shown, progress);
      return `${leaves(read.size)}, each with its place in the tree`;
    },
    [found.tree],
  );
  await checks.step("The keys are one person's", async () => checkJoined(read, shown.keys), [listed]);
  let totals;
  const folded = await checks.step(
    "The leaves contradict none before them",
    async () => {
      totals = foldCredit(read, new Set(shown.keys));
      const { credits, changes } = totals;
      return `${credits.toLocaleString("en")} credits, ${changes.toLocaleString("en")} changes of status`;
    },
    [listed],
  );
  for (const state of STATES) {
    await checks.step(
      `Sum of ${state === "final" ? "verified" : state} credit`,
      async () => {
        if (totals[state] !== shown[state]) {
          throw new Misfit(`the leaves give ${amount(totals[state])}, this page shows ${amount(shown[state])}`);
        }
        return amount(totals[state]);
      },
      [folded],
    );
  }
  if (shown.sponsored || shown.given) {
    await checks.step("What money moved", async () => {
      throw new Unchecked(
        `${amount(shown.sponsored)} sponsored and ${amount(shown.given)} given away follow from all ` +
          "donations and the whole pools' credit; the command recomputes them",
      );
    });
  }
}

async function readLeaves(site, found, shown, progress) {
  if (found.head.size < shown.size) {
    throw new Misfit(`this page counts ${leaves(shown.size)}, the head has only ${found.head.size}`);
  }
  const wanted = new Set();
  for (const key of shown.keys) {
    for (const index of await listOf(site, key, shown.size)) wanted.add(index);
    if (wanted.size > MAX_LEAVES) throw new Unchecked(TOO_MANY);
  }
  const indexes = [...wanted].sort((a, b) => a - b);
  const read = new Map();
  for (let first = 0; first < indexes.length; first += READ_AT_ONCE) {
    const part = indexes.slice(first, first + READ_AT_ONCE);
    const bytes = await Promise.all(part.map((index) => found.tiles.leaf(index)));
    part.forEach((index, at) => read.set(index, parseLeaf(bytes[at])));
    progress(read.size, indexes.length);
  }
  return read;
}

async function listOf(site, key, size) {
  const path = `api/v1/donors/${encodeURIComponent(key)}/leaves?size=${size}`;
  const answer = JSON.parse(new TextDecoder().decode(await site.bytes(path, MAX_LIST_BYTES)));
  if (answer.more) throw new Unchecked(TOO_MANY);
  if (!answer.leaves.every((index) => Number.isSafeInteger(index) && index >= 0 && index < size)) {
    throw new Misfit(`/${path} lists something that is no leaf under the head`);
  }
  return answer.leaves;
}

/** Every key but the first leads to the first by merges and rotations of keys. */
function checkJoined(read, keys) {
  const next = new Map();
  for (const leaf of read.values()) {
    if (leaf.kind === "merge") next.set(leaf.donor, leaf.into);
    if (leaf.kind === "key_rotation") next.set(leaf.donor, leaf.new);
  }
  for (const key of keys) {
    let at = key;
    for (let steps = 0; at !== keys[0]; steps += 1) {
      at = next.get(at);
      if (at === undefined || steps > keys.length) {
        throw new Misfit(`no leaf joins the key ${key} to this donor`);
      }
    }
  }
  return keys.length === 1 ? "one key" : `${keys.length} keys, joined by leaves of their own`;
}

/** Fold credit, final and reversal leaves, in order, into sums by status. */
export function foldCredit(read, keys) {
  const credits = new Map(); // leaf index -> {donor, microcredits, state}
  let changes = 0;
  for (const [index, leaf] of read) {
    if (leaf.kind === "credit" && keys.has(leaf.donor)) {
      credits.set(index, { donor: leaf.donor, microcredits: leaf.microcredits, state: "pending" });
    } else if ((leaf.kind === "final" || leaf.kind === "reversal") && keys.has(leaf.donor)) {
      changeState(read, credits, index, leaf);
      changes += 1;
    } else if (leaf.kind === "restore" && isPendingFrom(credits, leaf.log_size)) {
      throw new Unchecked(
        `the run was restored from a backup by leaf ${index}, which made credit of this donor ` +
          "final: what that did is not recomputed here; use the command",
      );
    }
  }
  const totals = { credits: credits.size, changes };
  for (const state of STATES) {
    const those = [...credits.values()].filter((credit) => credit.state === state);
    totals[state] = those.reduce((sum, { microcredits }) => sum + microcredits, 0);
  }
  return totals;
}

/** Whether credit from a leaf on is pending. */
const isPendingFrom = (credits, first) =>
  [...credits].some(([index, { state }]) => index >= first && state === "pending");

function changeState(read, credits, index, leaf) {
  const [from, to] = transition(read, index, leaf);
  let sum = 0;
  for (const at of leaf.credits) {
    const credit = credits.get(at);
    if (credit?.donor !== leaf.donor) {
      throw new Misfit(`leaf ${index} speaks of leaf ${at}, which is no credit of this donor`);
    }
    if (!from.includes(credit.state)) {
      throw new Misfit(`leaf ${index} changes the credit of leaf ${at}, which is ${credit.state}`);
    }
    credit.state = to;
    sum += credit.microcredits;
  }
  if (leaf.kind === "reversal" && sum !== leaf.microcredits) {
    throw new Misfit(`leaf ${index} counts ${amount(leaf.microcredits)}; its credits are ${amount(sum)}`);
  }
}

/** From which states to which a leaf takes credit. */
function transition(read, index, leaf) {
  if (leaf.kind === "final") return [["pending"], "final"];
  const verdict = read.get(leaf.verdict_leaf);
  if (verdict?.kind !== "verdict") {
    throw new Misfit(`leaf ${index} names leaf ${leaf.verdict_leaf}, which is no verdict`);
  }
  if (leaf.restored) return [["forfeited"], "pending"];
  if (verdict.verdict === "failed") return [["pending", "final"], "forfeited"];
  if (verdict.verdict === "unavailable") return [["pending"], "unpaid"];
  throw new Misfit(`leaf ${index} takes credit back by a verdict that is ${canonical(verdict.verdict)}`);
}
