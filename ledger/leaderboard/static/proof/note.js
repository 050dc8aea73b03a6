// C2SP signed notes and checkpoints, as protocol/notes.py reads them.

import { Misfit, ascii, concat, equal, fromBase64, sha256, signatureHolds, text } from "./bytes.js";

export const MAX_NOTE_BYTES = 1 << 16;
const MAX_SIGNATURES = 64;
const ED25519 = Uint8Array.of(1);

/** Text and signatures of a note, nothing verified. */
export function splitNote(bytes) {
  if (bytes.length > MAX_NOTE_BYTES) throw new Misfit(`a note has at most ${MAX_NOTE_BYTES} bytes`);
  const note = text(bytes);
  if (/[\u0000-\u0009\u000b-\u001f]/.test(note)) throw new Misfit("a note holds no control characters");
  const cut = note.lastIndexOf("\n\n");
  if (cut < 0 || !note.endsWith("\n")) throw new Misfit("not a signed note: no signatures at its end");
  const lines = note.slice(cut + 2, -1).split("\n");
  if (lines.length > MAX_SIGNATURES) throw new Misfit("a note with too many signatures");
  const signatures = lines.map((line) => {
    const match = /^— (\S{1,255}) ([A-Za-z0-9+/=]{8,8192})$/u.exec(line);
    if (!match) throw new Misfit("not a signed note: malformed signature line");
    return { name: match[1], blob: fromBase64(match[2]) };
  });
  return { text: note.slice(0, cut + 1), signatures };
}

/** The head in a note: origin, size and root; and what was signed. */
export function readCheckpoint(bytes) {
  const note = splitNote(bytes);
  const lines = note.text.split("\n");
  if (lines.length < 4 || !lines[0] || lines.at(-1)) {
    throw new Misfit("a head is origin, size and root, each on its line");
  }
  const size = Number(lines[1]);
  if (!/^(0|[1-9][0-9]{0,18})$/.test(lines[1]) || !Number.isSafeInteger(size)) {
    throw new Misfit("its second line is not a number of leaves");
  }
  const root = fromBase64(lines[2]);
  if (root.length !== 32) throw new Misfit("a head's root has 32 bytes");
  return { origin: lines[0], size, root, note };
}

/** Id of a key in notes: the first 4 bytes of SHA-256(name || LF || type || key). */
export async function keyId(name, publicKey) {
  return (await sha256(concat(ascii(`${name}\n`), ED25519, publicKey))).subarray(0, 4);
}

/** Check that one of these public keys, under the head's origin as name, signed the head. */
export async function verifyCheckpoint(head, publicKeys) {
  let signer = null;
  for (const publicKey of publicKeys) {
    const id = await keyId(head.origin, publicKey);
    for (const { name, blob } of head.note.signatures) {
      if (name !== head.origin || !equal(blob.subarray(0, 4), id)) continue;
      if (!(await signatureHolds(publicKey, blob.subarray(4), ascii(head.note.text)))) {
        throw new Misfit("/checkpoint: the signature is not over this text: the head was changed");
      }
      signer = publicKey;
    }
  }
  if (signer === null) {
    throw new Misfit(
      "/checkpoint bears no signature of a log key that the root key vouches for " +
        `(it is signed as ${head.note.signatures.map(({ name }) => name).join(", ")})`,
    );
  }
  return signer;
}
