// What is checked, one step after another. Every step is told as it goes: `tell(step)` is called
// when it starts and when it ends, with state "running", then "holds", "fails" or "open".

import {
  Misfit,
  Unchecked,
  ascii,
  canonical,
  equal,
  fromHex,
  hex,
  keyOfPeerId,
  sha256,
  text,
} from "./bytes.js";
import {
  MAX_DELEGATIONS_BYTES,
  logKeys,
  parseDelegations,
  readEnvelope,
  verifyEnvelope,
} from "./delegations.js";
import { MAX_NOTE_BYTES, readCheckpoint, verifyCheckpoint } from "./note.js";
import { Tiles } from "./tiles.js";
import { consistencyProof, inclusionProof, leafHash, verifyConsistency, verifyInclusion } from "./tree.js";

const MAX_ACT_BYTES = (1 << 20) + 4096;
const DONORS_ACTS = ["pledge", "team", "membership", "key_rotation", "merge"];
export const leaves = (count) => `${count.toLocaleString("en")} ${count === 1 ? "leaf" : "leaves"}`;

export class Checks {
  constructor(tell) {
    this.tell = tell;
    this.steps = [];
  }

  /** Run `work`, whose result is the step's detail; not at all while something it needs failed. */
  async step(title, work, needs = []) {
    const step = { title, state: "running", detail: "" };
    this.steps.push(step);
    this.tell(step);
    const missing = needs.find(({ state }) => state !== "holds");
    try {
      if (missing) throw new Unchecked(`it rests on “${missing.title}”`);
      step.detail = await work(step);
      step.state = "holds";
    } catch (error) {
      step.state = error instanceof Unchecked ? "open" : "fails";
      step.detail = error.message;
      if (!(error instanceof Unchecked || error instanceof Misfit)) throw error;
    } finally {
      this.tell(step);
    }
    return step;
  }

  /** "fails" if any step does, else "open" if any could not be checked, else "holds". */
  get outcome() {
    const has = (state) => this.steps.some((step) => step.state === state);
    return has("fails") ? "fails" : has("open") ? "open" : "holds";
  }
}

/** A leaf's fields, once its bytes are the one spelling of them. */
export function parseLeaf(bytes) {
  let leaf;
  try {
    leaf = JSON.parse(text(bytes));
    if (canonical(leaf) !== text(bytes)) throw new Misfit("not canonical JSON");
  } catch {
    throw new Misfit("the leaf is not JSON in canonical form: two readers may read it differently");
  }
  if (typeof leaf?.run_id !== "string" || !Number.isSafeInteger(leaf.at_s) || leaf.at_s < 0) {
    throw new Misfit("the leaf lacks its run or its time");
  }
  return leaf;
}

/** The fingerprint, and the run if any, in a pasted fingerprint or join link. */
export function readExpected(pasted) {
  const trimmed = pasted.trim();
  if (!trimmed) return { root: null, runId: null };
  const link = /^barnraise:\/\/[^/\s]+\/([0-9a-f]{64})\/?#root=([^&\s]+)$/.exec(trimmed);
  const root = link ? link[2] : trimmed.replace(/^#?root=/, "");
  try {
    keyOfPeerId(root);
  } catch {
    throw new Misfit("that is neither a root fingerprint (12D3KooW…) nor a join link");
  }
  return { root, runId: link ? link[1] : null };
}

/** The root key that this site names is the one that the reader knows from elsewhere. */
export async function checkRoot(checks, expected, named) {
  await checks.step("The root key is the one that you know", async () => {
    if (expected.root === null) {
      throw new Unchecked(`this page itself names ${named}: compare it with your join link, or paste that`);
    }
    if (expected.root !== named) {
      throw new Misfit(`this site's root key is ${named}; you know ${expected.root}: it is another run's`);
    }
    return expected.root;
  });
}

/**
 * The newest head: its tree, its signature, and whose key that is.
 *
 * `expected` is what the reader believes (readExpected), `named` the root that the page names.
 * Returns what later checks rest on: `{head, tiles, keys, newest, tree, signed}`.
 */
export async function checkHead(checks, site, expected, named) {
  const found = {};
  const read = await checks.step("The newest head can be read", async () => {
    found.head = readCheckpoint(await site.bytes("checkpoint", MAX_NOTE_BYTES));
    if (found.head.size === 0) throw new Misfit("it has no leaves");
    found.tiles = new Tiles(site, found.head);
    return `${found.head.origin}: ${leaves(found.head.size)}, root ${hex(found.head.root)}`;
  });
  found.tree = await checks.step(
    "The tiles lead to its root",
    async () => {
      const used = await found.tiles.edge();
      found.newest = parseLeaf(await found.tiles.leaf(found.head.size - 1));
      return `${[...used].join(", ")}; the newest leaf is of ${moment(found.newest.at_s)}`;
    },
    [read],
  );
  await checkRoot(checks, expected, named);
  const vouched = await checks.step(
    "The root key vouches for the log's key",
    async () => {
      const records = parseDelegations(await site.bytes("delegations", MAX_DELEGATIONS_BYTES));
      const { run_id: runId, at_s: atS } = found.newest;
      if (expected.runId !== null && expected.runId !== runId) {
        throw new Misfit(`your join link is of run ${expected.runId}, this record of ${runId}`);
      }
      found.keys = await logKeys(records, expected.root ?? named, fromHex(runId), atS);
      const { serial, until } = found.keys[0];
      return `delegation ${serial}, until ${moment(Number(until))}; judged at the newest leaf's time`;
    },
    [found.tree],
  );
  found.signed = await checks.step(
    "The head is signed by that key",
    async () => {
      const signer = await verifyCheckpoint(found.head, found.keys.map((key) => key.publicKey));
      return `Ed25519, by ${hex(signer).slice(0, 16)}…`;
    },
    [vouched],
  );
  return found;
}

/** A leaf, as the page shows it, and its place in the tree. */
export async function checkLeaf(checks, found, index, shown) {
  let bytes;
  const same = await checks.step(
    `Leaf ${index} is what this page shows`,
    async () => {
      bytes = await found.tiles.leaf(index);
      parseLeaf(bytes);
      if (!equal(bytes, ascii(shown))) {
        throw new Misfit(`the record has other bytes there than this page shows: ${text(bytes)}`);
      }
      return `${bytes.length} bytes, leaf hash ${hex(await leafHash(bytes))}`;
    },
    [found.tree],
  );
  await checks.step(
    "Its audit path leads to the head's root",
    async () => {
      const { size, root } = found.head;
      const path = await inclusionProof(index, size, (start, end) => found.tiles.subtree(start, end));
      await verifyInclusion(await leafHash(bytes), index, size, path, root);
      return `${path.length} steps, built from the tiles`;
    },
    [same],
  );
  return same;
}

/** The signed act that a leaf names by its digest, by whom the leaf says, if it does. */
export async function checkAct(checks, site, path, leafText, leafStep, root) {
  await checks.step(
    "The signed act is the one that it names",
    async () => {
      const envelope = readEnvelope(await site.bytes(path, MAX_ACT_BYTES));
      const digest = hex(await sha256(envelope.payload));
      const leaf = JSON.parse(leafText);
      const [named, signer] = [leaf.record_digest, signerOf(leaf, root)];
      if (digest !== named) throw new Misfit(`/${path} has the digest ${digest}; the leaf names ${named}`);
      if (signer !== null && envelope.signer !== signer) {
        throw new Misfit(`/${path} is signed by ${envelope.signer}, and not by ${signer}, whose act it is`);
      }
      if (!(await verifyEnvelope(envelope))) {
        throw new Misfit(`/${path}: the signature of ${envelope.signer} does not hold`);
      }
      return `signed by ${envelope.signer}${signer === null ? ": whether it might, the command checks" : ""}`;
    },
    [leafStep],
  );
}

/** Who signs the act behind a leaf; null: a key that the leaf does not name. */
function signerOf(leaf, root) {
  if (leaf.kind === "delegation") return root;
  return leaf.treasurer ?? (DONORS_ACTS.includes(leaf.kind) ? leaf.donor : null);
}

/** A head that was saved earlier is a beginning of this one. */
export async function checkSaved(checks, found, savedText) {
  await checks.step(
    "It extends the head that you saved",
    async () => {
      const saved = readCheckpoint(ascii(savedText.replaceAll("\r\n", "\n").trim() + "\n"));
      const { size, root, origin } = found.head;
      if (saved.origin !== origin) throw new Misfit(`you saved a head of ${saved.origin}, this is ${origin}`);
      await verifyCheckpoint(saved, found.keys.map((key) => key.publicKey)).catch((error) => {
        throw error instanceof Misfit ? new Misfit("the saved head is not signed by this log's key") : error;
      });
      await checkExtends(found, saved);
      const then = saved.size.toLocaleString("en");
      return `${leaves(size - saved.size)} more than the ${then} of then; root ${hex(root).slice(0, 16)}…`;
    },
    [found.tree, found.signed],
  );
}

/** Check that the tree of `found` extends an older head, by a proof built from the tiles. */
export async function checkExtends(found, old) {
  const { size, root } = found.head;
  if (old.size > size) {
    throw new Misfit(`the record shrank: it has ${leaves(size)}, that head has ${old.size.toLocaleString("en")}`);
  }
  const subtree = (start, end) => found.tiles.subtree(start, end);
  const proof = await consistencyProof(old.size, size, subtree);
  try {
    await verifyConsistency(old.size, old.root, size, root, proof);
  } catch (error) {
    if (!(error instanceof Misfit)) throw error;
    throw new Misfit(
      `the record was rewritten: its first ${leaves(old.size)} have root ` +
        `${hex(await subtree(0, old.size)).slice(0, 16)}…, that head has ${hex(old.root).slice(0, 16)}…`,
    );
  }
}

export function moment(seconds) {
  const date = new Date(Math.min(seconds, 253_402_300_799) * 1000);
  return `${date.toISOString().slice(0, 16).replace("T", " ")} UTC`;
}
