// A receipt, checked without its being sent anywhere: protocol/tlog.py and ledger/receipts.py.

import { Misfit, Unchecked, ascii, equal, fromBase64, fromHex, hex, text } from "./bytes.js";
import { checkExtends, checkRoot, leaves, parseLeaf } from "./checks.js";
import { MAX_DELEGATIONS_BYTES, logKeys, parseDelegations } from "./delegations.js";
import { MAX_NOTE_BYTES, readCheckpoint, verifyCheckpoint } from "./note.js";
import { Tiles } from "./tiles.js";
import { leafHash, verifyInclusion } from "./tree.js";

const MAGIC = "c2sp.org/tlog-proof@v1";
export const MAX_PROOF_BYTES = 1 << 18;
const MAX_PATH = 64;

/** A tlog-proof file, taken apart; nothing verified. */
export function parseProof(file) {
  if (file.length > MAX_PROOF_BYTES) throw new Misfit(`a receipt has at most ${MAX_PROOF_BYTES} bytes`);
  const cut = file.indexOf("\n\n");
  const lines = file.slice(0, cut).split("\n");
  if (cut < 0 || lines.shift() !== MAGIC) throw new Misfit(`not a receipt: its first line is not ${MAGIC}`);
  let extra = null;
  if (lines[0]?.startsWith("extra ")) extra = fromBase64(lines.shift().slice("extra ".length));
  const index = /^index (0|[1-9][0-9]{0,18})$/.exec(lines.shift() ?? "")?.[1];
  if (index === undefined || !Number.isSafeInteger(Number(index))) {
    throw new Misfit("not a receipt: no index line");
  }
  if (lines.length > MAX_PATH) throw new Misfit("the receipt's proof is too long for any tree");
  const path = lines.map(fromBase64);
  if (path.some((step) => step.length !== 32)) throw new Misfit("its audit path holds what is no hash");
  return { index: Number(index), path, extra, head: readCheckpoint(ascii(file.slice(cut + 2))) };
}

/** The receipt alone, and then against the record of this site. Returns the leaf and its index. */
export async function checkReceipt(checks, site, leafText, proofText, expected, named) {
  const receipt = {};
  const bytes = ascii(leafText.trim());
  const read = await checks.step("The two files can be read", async () => {
    receipt.leaf = parseLeaf(bytes);
    Object.assign(receipt, parseProof(`${proofText.replaceAll("\r\n", "\n").trim()}\n`));
    return `a ${receipt.leaf.kind} leaf, number ${receipt.index} of ${leaves(receipt.head.size)}`;
  });
  await checks.step(
    "The audit path leads from the leaf to the head's root",
    async () => {
      const { index, head, path } = receipt;
      await verifyInclusion(await leafHash(bytes), index, head.size, path, head.root);
      return `${path.length} steps`;
    },
    [read],
  );
  await checkRoot(checks, expected, named);
  await checks.step(
    "The head is signed by a key that the root key vouches for",
    async () => {
      if (receipt.extra === null || receipt.extra.length > MAX_DELEGATIONS_BYTES) {
        throw new Unchecked("the receipt lacks the delegations: use the command, with --vkey");
      }
      const { run_id: runId, at_s: atS } = receipt.leaf;
      const records = parseDelegations(receipt.extra);
      const keys = await logKeys(records, expected.root ?? named, fromHex(runId), atS);
      await verifyCheckpoint(receipt.head, keys.map((key) => key.publicKey));
      return `root key ${expected.root ?? named}`;
    },
    [read],
  );
  await checks.step("This site's record still has it", () => compare(site, receipt, bytes), [read]);
  return receipt;
}

async function compare(site, receipt, bytes) {
  const head = readCheckpoint(await site.bytes("checkpoint", MAX_NOTE_BYTES));
  if (head.origin !== receipt.head.origin) {
    throw new Misfit(`the receipt is of ${receipt.head.origin}, this record of ${head.origin}`);
  }
  if (receipt.head.size > head.size) {
    throw new Misfit(
      `history was cut here: the receipt's head has ${leaves(receipt.head.size)}, this record ` +
        `${head.size}; keep the receipt`,
    );
  }
  const tiles = new Tiles(site, head);
  const held = await tiles.leaf(receipt.index);
  if (!equal(held, bytes)) {
    throw new Misfit(
      "history was rewritten here: this record holds another leaf in its place; keep the " +
        `receipt as evidence: ${text(held)}`,
    );
  }
  await checkExtends({ head, tiles }, receipt.head);
  return `leaf ${receipt.index} of ${leaves(head.size)}, root ${hex(head.root).slice(0, 16)}…`;
}
