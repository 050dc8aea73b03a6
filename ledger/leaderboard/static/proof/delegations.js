// From the run's root key to the keys that may sign the log, as ledger/authority.py and
// protocol/trust.py have it: signed protobuf records in DSSE envelopes, read within bounds.

import {
  Misfit,
  ascii,
  concat,
  equal,
  fromBase64,
  fromHex,
  hex,
  keyOfPeerId,
  signatureHolds,
  text,
} from "./bytes.js";

export const MAX_DELEGATIONS_BYTES = 1 << 20;
const FORMAT = "barnraise-delegations/1";
const MAX_RECORDS = 1000;
const MAX_RECORD_BYTES = 1 << 20;
const KEY_PURPOSE_LOG = 2n;
const [VARINT, FIXED64, LENGTH, FIXED32] = [0, 1, 2, 5];

const SIGNATURE = { 1: ["sig", LENGTH], 2: ["keyid", LENGTH] };
const ENVELOPE = { 1: ["payload", LENGTH], 2: ["payloadType", LENGTH], 3: ["signatures", LENGTH] };
const DELEGATION = {
  1: ["runId", LENGTH],
  2: ["purpose", VARINT],
  3: ["publicKey", LENGTH],
  4: ["serial", VARINT],
  5: ["notBeforeS", VARINT],
  6: ["notAfterS", VARINT],
};
const REVOCATION = { 1: ["runId", LENGTH], 2: ["serial", VARINT] };

/** Fields of a protobuf message: every value that each has, in order; unknown ones are left out. */
export function readMessage(bytes, fields) {
  const found = {};
  let at = 0;
  const varint = () => {
    let value = 0n;
    for (let shift = 0n; shift < 70n; shift += 7n) {
      if (at >= bytes.length) throw new Misfit("a signed record is cut short");
      const byte = bytes[at++];
      value |= BigInt(byte & 0x7f) << shift;
      if (byte < 0x80) return BigInt.asUintN(64, value);
    }
    throw new Misfit("a number in a signed record is too long");
  };
  const take = (length) => {
    if (length > bytes.length - at) throw new Misfit("a signed record is cut short");
    at += length;
    return bytes.subarray(at - length, at);
  };
  while (at < bytes.length) {
    const tag = Number(varint());
    const wireType = tag % 8;
    let value;
    if (wireType === VARINT) value = varint();
    else if (wireType === LENGTH) value = take(Number(varint()));
    else if (wireType === FIXED64) value = take(8);
    else if (wireType === FIXED32) value = take(4);
    else throw new Misfit("a signed record is malformed");
    const [name, type] = fields[Math.floor(tag / 8)] ?? [];
    if (type === wireType) (found[name] ??= []).push(value);
  }
  return found;
}

const NOTHING = new Uint8Array();
const last = (values, missing) => (values === undefined ? missing : values.at(-1));

/** Payload, type, signer and signature of an envelope, unverified. */
export function readEnvelope(bytes) {
  if (bytes.length > MAX_RECORD_BYTES + 4096) throw new Misfit("a signed record is too large");
  const raw = readMessage(bytes, ENVELOPE);
  if (raw.signatures?.length !== 1) throw new Misfit("an envelope carries exactly one signature");
  const signature = readMessage(raw.signatures[0], SIGNATURE);
  return {
    payload: last(raw.payload, NOTHING),
    payloadType: text(last(raw.payloadType, NOTHING)),
    signer: text(last(signature.keyid, NOTHING)),
    signature: last(signature.sig, NOTHING),
  };
}

/** Check an envelope's signature; it names its signer's key itself. */
export async function verifyEnvelope(envelope) {
  const { payload, payloadType, signer, signature } = envelope;
  const kind = ascii(payloadType);
  const head = ascii(`DSSEv1 ${kind.length} ${payloadType} ${payload.length} `); // DSSE's PAE
  return signatureHolds(keyOfPeerId(signer), signature, concat(head, payload));
}

/** The records of /delegations, unverified. */
export function parseDelegations(bytes) {
  let raw;
  try {
    raw = JSON.parse(text(bytes));
  } catch {
    throw new Misfit("/delegations is not JSON");
  }
  if (raw?.format !== FORMAT) throw new Misfit(`/delegations is not ${FORMAT}`);
  const [delegations, revocations] = ["delegations", "revocations"].map((name) => {
    if (!Array.isArray(raw[name]) || raw[name].length > MAX_RECORDS) {
      throw new Misfit(`/delegations lists no ${name}, or more than ${MAX_RECORDS}`);
    }
    return raw[name].map((encoded, at) => named(`/delegations, ${name}[${at}]`, () =>
      ({ at, ...readEnvelope(fromBase64(encoded)) }),
    ));
  });
  return { runId: fromHex(raw.run_id), delegations, revocations };
}

function named(what, read) {
  try {
    return read();
  } catch (error) {
    if (error instanceof Misfit) throw new Misfit(`${what}: ${error.message}`);
    throw error;
  }
}

/** Public keys that the root key vouched for as signers of the log at `atS`. */
export async function logKeys(records, root, runId, atS) {
  const revoked = new Set();
  const bySerial = new Map(); // the later of two with one serial counts
  for (const envelope of records.revocations) {
    const record = await openOf(envelope, "revocation", REVOCATION, root, runId);
    revoked.add(last(record.serial, 0n));
  }
  for (const envelope of records.delegations) {
    const record = await openOf(envelope, "delegation", DELEGATION, root, runId);
    bySerial.set(last(record.serial, 0n), record);
  }
  let problem = "there is none";
  const keys = [];
  for (const [serial, record] of bySerial) {
    if (last(record.purpose, 0n) !== KEY_PURPOSE_LOG) continue;
    const [from, until] = [last(record.notBeforeS, 0n), last(record.notAfterS, 0n)];
    if (revoked.has(serial)) problem = `number ${serial} was revoked`;
    else if (BigInt(atS) < from) problem = `number ${serial} begins after the newest leaf`;
    else if (BigInt(atS) > until) problem = `number ${serial} had expired at the newest leaf`;
    else keys.push({ serial, publicKey: last(record.publicKey, NOTHING), from, until });
  }
  if (keys.length === 0) throw new Misfit(`/delegations: no key may sign this log: ${problem}`);
  return keys;
}

/** An envelope's record, once it is signed by the root, of that type and for that run. */
async function openOf(envelope, type, fields, root, runId) {
  const where = `/delegations, ${type} ${envelope.at}`;
  if (envelope.payloadType !== `application/vnd.barnraise.${type}+protobuf`) {
    throw new Misfit(`${where} is no ${type}`);
  }
  if (envelope.signer !== root) {
    throw new Misfit(`${where} is signed by ${envelope.signer}, not by the root key ${root}`);
  }
  if (!(await verifyEnvelope(envelope))) {
    throw new Misfit(`${where}: the root key's signature does not hold: it was changed`);
  }
  const record = named(where, () => readMessage(envelope.payload, fields));
  if (!equal(last(record.runId, NOTHING), runId)) {
    throw new Misfit(`${where} is for run ${hex(last(record.runId, NOTHING))}, not this one`);
  }
  return record;
}
