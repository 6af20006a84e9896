/** Byte-level BPE as in llm_learn.tokenizers: the same tokens for the same text. */

import { range } from "./model.js";

// GPT4_PATTERN in JavaScript: \s lacks U+0085 and has U+FEFF, and (?i:…) is missing in many browsers; the long s is an s.
const S = "\\p{White_Space}";
const CONTRACTIONS = "'(?:[sS\\u017F]|[tT]|[rR][eE]|[vV][eE]|[mM]|[lL][lL]|[dD])";
const PATTERN = new RegExp(
  `${CONTRACTIONS}|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}` +
    `| ?[^${S}\\p{L}\\p{N}]+[\\r\\n]*|${S}*[\\r\\n]+|${S}+(?!(?!${S})[^])|${S}+`,
  "gu",
);

// IDs 0-255 are the bytes, printable ones first: BYTE_ORDER.
const PRINTABLE = [...range(94).map((i) => 33 + i), ...range(12).map((i) => 161 + i), ...range(82).map((i) => 174 + i)];
const BYTE_ORDER = [...PRINTABLE, ...range(256).filter((byte) => !PRINTABLE.includes(byte))];
const BYTE_IDS = range(256).map((byte) => BYTE_ORDER.indexOf(byte));

export class BPETokenizer {
  /** @param {ArrayLike<number>} merges the pairs, one after the other */
  constructor(merges) {
    this.ranks = new Map();
    this.tokenBytes = BYTE_ORDER.map((byte) => [byte]);
    for (let i = 0; i < merges.length; i += 2) {
      this.ranks.set(merges[i] * 65536 + merges[i + 1], i / 2);
      this.tokenBytes.push([...this.tokenBytes[merges[i]], ...this.tokenBytes[merges[i + 1]]]);
    }
  }

  /** The chunks of a text, each a list of states: tokens before the first merge, after it, and so on. */
  merges(text) {
    const wellFormed = text.replace(/\p{Cs}/gu, "\uFFFD");
    return (wellFormed.match(PATTERN) ?? []).map((chunk) => {
      let ids = Array.from(new TextEncoder().encode(chunk), (byte) => BYTE_IDS[byte]);
      const states = [ids];
      for (;;) {
        const ranks = ids.slice(1).map((id, i) => this.ranks.get(ids[i] * 65536 + id) ?? Infinity);
        const rank = ranks.reduce((a, b) => Math.min(a, b), Infinity);
        if (rank === Infinity) return states;
        const merged = [];
        for (let i = 0; i < ids.length; i++) merged.push(ranks[i] === rank ? (i++, 256 + rank) : ids[i]);
        states.push((ids = merged));
      }
    });
  }

  encode(text) {
    return this.merges(text).flatMap((states) => states.at(-1));
  }

  /** The text of one token; bytes that form no character are written as <0xF0>. */
  name(id) {
    const text = this.decode([id]);
    const hex = (byte) => `<0x${byte.toString(16).toUpperCase().padStart(2, "0")}>`;
    return text.includes("\uFFFD") ? this.tokenBytes[id].map(hex).join("") : text;
  }

  /** The text of these tokens; bytes that form no character become U+FFFD. */
  decode(ids) {
    const bytes = Uint8Array.from(ids.flatMap((id) => this.tokenBytes[id]));
    return new TextDecoder("utf-8", { ignoreBOM: true }).decode(bytes);
  }
}
