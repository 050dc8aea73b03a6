// Bytes as text and back, and hashes of them. Every reader refuses a second spelling of a value.

/** What is served does not fit together. */
export class Misfit extends Error {}

/** What cannot be checked here: the network or this browser does not give what it takes. */
export class Unchecked extends Error {}

const BASE58 = "123456789ABCDEFGHJKLMNPQRSTUVWXYZabcdefghijkmnopqrstuvwxyz";
const PEER_ID_PREFIX = [0x00, 36, 0x08, 0x01, 0x12, 32]; // multihash, then libp2p's PublicKey

export const ascii = (text) => new TextEncoder().encode(text);

export function text(bytes) {
  try {
    return new TextDecoder("utf-8", { fatal: true, ignoreBOM: true }).decode(bytes);
  } catch {
    throw new Misfit("it is not UTF-8");
  }
}

export function concat(...parts) {
  const whole = new Uint8Array(parts.reduce((length, part) => length + part.length, 0));
  let offset = 0;
  for (const part of parts) {
    whole.set(part, offset);
    offset += part.length;
  }
  return whole;
}

export const equal = (a, b) => a.length === b.length && a.every((byte, at) => byte === b[at]);

export const hex = (bytes) =>
  Array.from(bytes, (byte) => byte.toString(16).padStart(2, "0")).join("");

export function fromHex(digits) {
  if (typeof digits !== "string" || !/^([0-9a-f]{2})*$/.test(digits)) throw new Misfit("not hex");
  return Uint8Array.from(digits.match(/../g) ?? [], (pair) => parseInt(pair, 16));
}

export const base64 = (bytes) => btoa(Array.from(bytes, (b) => String.fromCharCode(b)).join(""));

export function fromBase64(encoded) {
  let bytes;
  try {
    bytes = Uint8Array.from(atob(encoded), (character) => character.charCodeAt(0));
  } catch {
    throw new Misfit("not base64");
  }
  if (base64(bytes) !== encoded) throw new Misfit("not canonical base64");
  return bytes;
}

/** The Ed25519 key that a PeerID names. */
export function keyOfPeerId(peerId) {
  if (!/^[1-9A-HJ-NP-Za-km-z]{52}$/.test(peerId)) throw new Misfit("not the PeerID of a key");
  let value = 0n;
  for (const character of peerId) value = value * 58n + BigInt(BASE58.indexOf(character));
  const bytes = fromHex(value.toString(16).padStart(76, "0"));
  if (bytes.length !== 38 || !equal(bytes.subarray(0, 6), PEER_ID_PREFIX)) {
    throw new Misfit("not the PeerID of an Ed25519 key");
  }
  if (!peerId.startsWith("1") || peerId.startsWith("11")) throw new Misfit("not a PeerID");
  return bytes.subarray(6);
}

/** RFC 8785: the one spelling of a JSON value. */
export function canonical(value) {
  if (Array.isArray(value)) return `[${value.map(canonical).join(",")}]`;
  if (value === null || typeof value !== "object") return JSON.stringify(value);
  const fields = Object.keys(value).sort();
  return `{${fields.map((name) => `${JSON.stringify(name)}:${canonical(value[name])}`).join(",")}}`;
}

function subtle() {
  if (globalThis.crypto?.subtle) return globalThis.crypto.subtle;
  throw new Unchecked(
    "a browser lends its cryptography only to pages that come over HTTPS (or from this machine); " +
      "open this page over HTTPS, or use the command",
  );
}

export async function sha256(bytes) {
  return new Uint8Array(await subtle().digest("SHA-256", bytes));
}

/** Whether an Ed25519 signature holds. */
export async function signatureHolds(publicKey, signature, message) {
  let key;
  try {
    key = await subtle().importKey("raw", publicKey, "Ed25519", false, ["verify"]);
  } catch (error) {
    if (error.name !== "NotSupportedError") throw new Misfit("not an Ed25519 public key");
    throw new Unchecked("this browser cannot check Ed25519 signatures; use a newer one, or the command");
  }
  return subtle().verify("Ed25519", key, signature, message);
}
