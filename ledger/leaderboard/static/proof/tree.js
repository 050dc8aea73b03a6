// RFC 6962 trees: hashes and proofs, as protocol/merkle.py and ledger/tree.py have them.
//
// Sizes go up to 2^53, so there are no 32-bit operators here. `subtree(start, end)` is a promise of
// the root over the leaves [start, end): how proofs read a tree.

import { Misfit, ascii, concat, equal, sha256 } from "./bytes.js";

const LEAF = Uint8Array.of(0);
const NODE = Uint8Array.of(1);
const half = (number) => Math.floor(number / 2);
const isOdd = (number) => number % 2 === 1;

export const leafHash = (data) => sha256(concat(LEAF, data));
export const nodeHash = (left, right) => sha256(concat(NODE, left, right));
export const emptyRoot = () => sha256(ascii(""));

/** Number of the highest bit of a positive number. */
function highestBit(number) {
  let bit = 0;
  for (let rest = number; rest > 1; rest = half(rest)) bit += 1;
  return bit;
}

/** The largest power of two below `size` (at least 2): where a tree is split. */
export const splitPoint = (size) => 2 ** highestBit(size - 1);

/** Complete subtrees `[level, position]` that make up the leaves [start, end), left to right. */
export function cover(start, end) {
  const nodes = [];
  for (let at = start; at < end; ) {
    const level = highestBit(end - at);
    nodes.push([level, Math.floor(at / 2 ** level)]);
    at += 2 ** level;
  }
  return nodes;
}

/** Root over a row of complete subtrees of falling size. */
export async function combine(hashes) {
  if (hashes.length === 0) return emptyRoot();
  let value = hashes.at(-1);
  for (const left of hashes.slice(0, -1).reverse()) value = await nodeHash(left, value);
  return value;
}

/** The next level of a row of nodes; one without a sibling is left out. */
export function parents(row) {
  const pairs = Array.from({ length: half(row.length) }, (_, at) => [row[2 * at], row[2 * at + 1]]);
  return Promise.all(pairs.map(([left, right]) => nodeHash(left, right)));
}

/** Audit path of leaf `index` in the tree of `size` leaves, leaf to root. */
export async function inclusionProof(index, size, subtree) {
  const path = [];
  let [start, end] = [0, size];
  while (end - start > 1) {
    const middle = start + splitPoint(end - start);
    const left = index < middle;
    path.push(await (left ? subtree(middle, end) : subtree(start, middle)));
    [start, end] = left ? [start, middle] : [middle, end];
  }
  return path.reverse();
}

/** Check an audit path of a leaf's hash (RFC 9162 section 2.1.3.2). */
export async function verifyInclusion(leaf, index, size, path, root) {
  if (!(index >= 0 && index < size)) throw new Misfit(`leaf ${index} is not in a tree of ${size}`);
  let [node, last, value] = [index, size - 1, leaf];
  for (const step of path) {
    if (last === 0) throw new Misfit("the audit path is too long");
    if (isOdd(node) || node === last) {
      value = await nodeHash(step, value);
      while (!isOdd(node) && node > 0) [node, last] = [half(node), half(last)];
    } else {
      value = await nodeHash(value, step);
    }
    [node, last] = [half(node), half(last)];
  }
  if (last !== 0 || !equal(value, root)) throw new Misfit("the audit path does not lead to the root");
}

/** Proof that the first `oldSize` leaves are a prefix of the first `size` (RFC 6962 section 2.1.2). */
export async function consistencyProof(oldSize, size, subtree) {
  if (oldSize === 0 || oldSize === size) return [];
  const proof = [];
  let [start, end, whole] = [0, size, true];
  while (oldSize !== end) {
    const middle = start + splitPoint(end - start);
    if (oldSize <= middle) {
      proof.push(await subtree(middle, end));
      end = middle;
    } else {
      proof.push(await subtree(start, middle));
      [start, whole] = [middle, false];
    }
  }
  if (!whole) proof.push(await subtree(start, end));
  return proof.reverse();
}

/** Check that the tree of `size` extends that of `oldSize` (RFC 9162 section 2.1.4.2). */
export async function verifyConsistency(oldSize, oldRoot, size, root, proof) {
  if (oldSize > size) throw new Misfit(`the record shrank from ${oldSize} to ${size} leaves`);
  if (oldSize === size || oldSize === 0) {
    const expected = oldSize === 0 ? await emptyRoot() : root;
    if (proof.length || !equal(oldRoot, expected)) throw new Misfit("two heads of one size differ");
    return;
  }
  const isPowerOfTwo = 2 ** highestBit(oldSize) === oldSize;
  const steps = isPowerOfTwo ? [oldRoot, ...proof] : [...proof];
  if (steps.length === 0) throw new Misfit("the consistency proof is too short");
  let [node, last] = [oldSize - 1, size - 1];
  while (isOdd(node)) [node, last] = [half(node), half(last)];
  let [oldValue, value] = [steps[0], steps[0]];
  for (const step of steps.slice(1)) {
    if (last === 0) throw new Misfit("the consistency proof is too long");
    if (isOdd(node) || node === last) {
      [oldValue, value] = await Promise.all([nodeHash(step, oldValue), nodeHash(step, value)]);
      while (!isOdd(node) && node > 0) [node, last] = [half(node), half(last)];
    } else {
      value = await nodeHash(value, step);
    }
    [node, last] = [half(node), half(last)];
  }
  if (last !== 0 || !equal(oldValue, oldRoot) || !equal(value, root)) {
    throw new Misfit("the new head does not extend the old one");
  }
}
