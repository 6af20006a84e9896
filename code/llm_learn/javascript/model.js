/** The GPT of llm_learn.model, one token at a time, with a KV cache. */

import { add, gelu, layerNorm, linear, readSafetensors, softmax } from "./tensors.js";

export class GPT {
  /** @param {ArrayBuffer} buffer a file that `save_for_javascript` wrote */
  constructor(buffer) {
    const { tensors, metadata } = readSafetensors(buffer);
    this.tensors = tensors;
    this.config = JSON.parse(metadata.config);
    this.headDim = this.config.d_model / this.config.num_heads;
    this.disabled = new Set(); // heads whose output is left out, as "block.head"
    this.clear();
  }

  /** Forgets all tokens. */
  clear() {
    this.ids = [];
    this.cache = Array.from({ length: this.config.num_layers }, () => ({ keys: [], values: [] }));
  }

  /**
   * The logits (V) of the token after `ids`, and the attention weights of the last position: blocks of heads of weights.
   *
   * Only tokens after the longest common prefix with the last call are computed. Learned positions do not move, so
   * what exceeds the context length starts again with its last tokens.
   */
  logits(ids) {
    const context = ids.slice(-this.config.context_length);
    let kept = 0;
    while (kept < this.ids.length && kept < context.length - 1 && this.ids[kept] === context[kept]) kept++;
    this.ids.length = kept;
    for (const { keys, values } of this.cache) keys.length = values.length = kept;
    let last;
    for (const id of context.slice(kept)) last = this.step(id);
    return { logits: linear(last.x, this.tensors["token_embedding.weight"]), weights: last.weights };
  }

  /** The attention weights of every position: blocks of heads of rows. */
  attention(ids) {
    const rows = [];
    this.clear();
    for (const id of ids.slice(-this.config.context_length)) rows.push(this.step(id).weights);
    const { num_layers: L, num_heads: H } = this.config;
    return range(L).map((l) => range(H).map((h) => rows.map((row) => row[l][h])));
  }

  step(id) {
    const t = this.tensors;
    const position = this.ids.length;
    const row = (name, r) => t[name].data.slice(r * this.config.d_model, (r + 1) * this.config.d_model);
    let x = add(row("token_embedding.weight", id), row("position_embedding.weight", position));
    const weights = [];
    for (let l = 0; l < this.config.num_layers; l++) {
      const block = (name) => t[`blocks.${l}.${name}`];
      const norm = (n) => layerNorm(x, block(`norm_${n}.weight`), block(`norm_${n}.bias`));
      const layer = (input, name) => linear(input, block(`${name}.weight`), block(`${name}.bias`));
      const heads = this.heads(layer(norm(1), "attention.qkv"), l);
      weights.push(heads.weights);
      x = add(x, layer(heads.out, "attention.out"));
      x = add(x, layer(gelu(layer(norm(2), "mlp.up")), "mlp.down"));
    }
    this.ids.push(id);
    return { x: layerNorm(x, t["norm.weight"], t["norm.bias"]), weights };
  }

  /** Attention of the newest position to all positions so far: (3 C) -> out (C) and the weights of each head. */
  heads(qkv, l) {
    const { d_model: C, num_heads: H } = this.config;
    const D = this.headDim;
    const { keys, values } = this.cache[l];
    keys.push(qkv.slice(C, 2 * C));
    values.push(qkv.slice(2 * C));
    const out = new Float32Array(C);
    const weights = range(H).map((h) => {
      const from = h * D;
      const score = (key) => dot(qkv, key, from, D) / Math.sqrt(D);
      const row = softmax(keys.map(score));
      if (this.disabled.has(`${l}.${h}`)) return row;
      values.forEach((value, s) => {
        for (let i = from; i < from + D; i++) out[i] += row[s] * value[i];
      });
      return row;
    });
    return { out, weights };
  }
}

function dot(x, y, from, length) {
  let sum = 0;
  for (let i = from; i < from + length; i++) sum += x[i] * y[i];
  return sum;
}

export function range(length) {
  return Array.from({ length }, (_, i) => i);
}
