// C2SP tlog-tiles, read from the site and believed only as far as they lead to one head's root.

import { Misfit, Unchecked, equal, hex } from "./bytes.js";
import { combine, cover, leafHash, parents } from "./tree.js";

const WIDTH = 256;
const HASH_BYTES = 32;
const MAX_BUNDLE_BYTES = WIDTH * (2 + 65_535);
const short = (hash) => hex(hash).slice(0, 16);

/** Path of a tile of hashes, or of a bundle of entries (`level` "entries"). */
export function tilePath(level, index, width = WIDTH) {
  const digits = String(index);
  const padded = digits.padStart(Math.ceil(digits.length / 3) * 3, "0");
  const groups = padded.match(/.{3}/g);
  const number = groups.map((group, at) => (at < groups.length - 1 ? `x${group}` : group)).join("/");
  return `tile/${level}/${number}${width === WIDTH ? "" : `.p/${width}`}`;
}

/** The entries of a bundle that must hold `width` of them. */
export function unpackEntries(bundle, width) {
  const entries = [];
  let offset = 0;
  while (entries.length < width) {
    if (offset + 2 > bundle.length) {
      throw new Misfit(`the bundle ends after ${entries.length} of ${width} entries`);
    }
    const end = offset + 2 + bundle[offset] * 256 + bundle[offset + 1];
    entries.push(bundle.subarray(offset + 2, end));
    offset = end;
  }
  if (offset !== bundle.length) throw new Misfit("the bundle is cut short, or longer than its entries");
  return entries;
}

/** A site's files, each read up to a bound. */
export class Site {
  /** `path` as bytes; null where the site has no such file. */
  async find(path, maxBytes) {
    let response;
    try {
      response = await fetch(`/${path}`, { credentials: "omit", redirect: "error" });
      if (response.status === 404) return null;
      if (!response.ok) throw new Misfit(`the site answers ${response.status} to /${path}`);
      return await readUpTo(response, path, maxBytes);
    } catch (error) {
      if (error instanceof Misfit) throw error;
      throw new Unchecked(`/${path} could not be read: no connection, or the site redirects it`);
    }
  }

  async bytes(path, maxBytes) {
    const found = await this.find(path, maxBytes);
    if (found === null) throw new Misfit(`the site does not serve /${path}`);
    return found;
  }
}

async function readUpTo(response, path, maxBytes) {
  const parts = [];
  let total = 0;
  const reader = response.body.getReader();
  for (let part = await reader.read(); !part.done; part = await reader.read()) {
    total += part.value.length;
    if (total > maxBytes) {
      await reader.cancel();
      throw new Misfit(`/${path} is larger than the ${maxBytes} bytes that it may have`);
    }
    parts.push(part.value);
  }
  return new Uint8Array(await new Blob(parts).arrayBuffer());
}

/**
 * The tree under one head. Each tile is compared with the hash that its parent has of it, up to the
 * right edge, which is compared with the head's root: what does not fit is named.
 */
export class Tiles {
  #site;
  #rows = new Map(); // path of a tile -> promise of its rows of nodes, each half as long
  #bundles = new Map(); // path -> promise of entries
  #edge = null;

  constructor(site, head) {
    this.#site = site;
    this.head = head;
  }

  /** Root over the leaves [start, end), from authenticated tiles. */
  async subtree(start, end) {
    return combine(await Promise.all(cover(start, end).map(([level, at]) => this.node(level, at))));
  }

  /** Hash of a complete subtree of 2^level leaves. */
  async node(level, position) {
    const tileLevel = Math.floor(level / 8);
    const row = level % 8;
    const first = position * 2 ** row; // among the hashes of the tile's level
    const rows = await this.#authenticated(tileLevel, Math.floor(first / WIDTH));
    return rows[row][position % (WIDTH / 2 ** row)];
  }

  /** Bytes of a leaf, whose hash is the one that the tree has in its place. */
  async leaf(index) {
    const bundle = this.#at("entries", Math.floor(index / WIDTH));
    const entry = (await this.#entries(bundle))[index % WIDTH];
    const found = await leafHash(entry);
    const expected = await this.node(0, index);
    if (!equal(found, expected)) {
      throw new Misfit(
        `entry ${index % WIDTH} of ${bundle.path} is not the leaf that the head signs: it hashes to ` +
          `${short(found)}…, the tree has ${short(expected)}… in place ${index}`,
      );
    }
    return entry;
  }

  /** Check that the tiles at the right edge lead to the head's root. */
  edge() {
    this.#edge ??= this.#checkEdge();
    return this.#edge;
  }

  async #checkEdge() {
    const { size, root } = this.head;
    const used = new Set();
    const hashes = await Promise.all(
      cover(0, size).map(async ([level, position]) => {
        const row = level % 8;
        const index = Math.floor((position * 2 ** row) / WIDTH);
        const tile = this.#at(Math.floor(level / 8), index);
        used.add(tile.path);
        return (await this.#read(tile))[row][position % (WIDTH / 2 ** row)];
      }),
    );
    const found = await combine(hashes);
    if (!equal(found, root)) {
      throw new Misfit(
        `${[...used].join(" and ")} and the head do not fit together: the hashes lead to root ` +
          `${short(found)}…, the head has ${short(root)}…`,
      );
    }
    return used;
  }

  async #authenticated(level, index) {
    const tile = this.#at(level, index);
    if (tile.width < WIDTH) {
      await this.edge();
      return this.#read(tile);
    }
    const [rows, expected] = await Promise.all([this.#read(tile), this.node(8 * (level + 1), index)]);
    if (!equal(rows[8][0], expected)) {
      const parent = this.#at(level + 1, Math.floor(index / WIDTH));
      throw new Misfit(
        `${tile.path} does not fit: its hashes lead to ${short(rows[8][0])}…, ` +
          `${parent.path} has ${short(expected)}… for it`,
      );
    }
    return rows;
  }

  /** The tile that holds hash 256 * `index` of a level, as wide as it is under the head. */
  #at(level, index) {
    const nodes = Math.floor(this.head.size / 2 ** (level === "entries" ? 0 : 8 * level));
    const width = Math.min(WIDTH, nodes - index * WIDTH);
    if (width <= 0) throw new Misfit(`a record of ${this.head.size} leaves does not reach that far`);
    return { level, index, width, path: tilePath(level, index, width) };
  }

  #read(tile) {
    return cached(this.#rows, tile.path, async () => {
      const bytes = await this.#whole(tile, WIDTH * HASH_BYTES, (all) =>
        all.subarray(0, tile.width * HASH_BYTES),
      );
      if (bytes.length !== tile.width * HASH_BYTES) {
        throw new Misfit(`${tile.path} has ${bytes.length} bytes, not ${tile.width * HASH_BYTES}`);
      }
      const rows = [
        Array.from({ length: tile.width }, (_, at) => bytes.subarray(at * HASH_BYTES, (at + 1) * HASH_BYTES)),
      ];
      while (rows.at(-1).length > 1) rows.push(await parents(rows.at(-1)));
      return rows;
    });
  }

  #entries(tile) {
    return cached(this.#bundles, tile.path, async () => {
      try {
        const bundle = await this.#site.find(tile.path, MAX_BUNDLE_BYTES);
        if (bundle !== null) return unpackEntries(bundle, tile.width);
        const full = await this.#site.bytes(tilePath("entries", tile.index), MAX_BUNDLE_BYTES);
        return unpackEntries(full, WIDTH).slice(0, tile.width);
      } catch (error) {
        if (error instanceof Misfit) throw new Misfit(`${tile.path}: ${error.message}`);
        throw error;
      }
    });
  }

  /** A partial tile may be gone once the full one is there: then its first part is the same. */
  async #whole(tile, maxBytes, firstPart) {
    const found = await this.#site.find(tile.path, maxBytes);
    if (found !== null) return found;
    if (tile.width === WIDTH) throw new Misfit(`the site does not serve /${tile.path}`);
    return firstPart(await this.#site.bytes(tilePath(tile.level, tile.index), maxBytes));
  }
}

function cached(map, key, make) {
  if (!map.has(key)) map.set(key, make());
  return map.get(key);
}
