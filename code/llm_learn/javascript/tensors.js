/** Named arrays: reading safetensors, and the operations of a Transformer on vectors and matrices. */

/** The bytes of half of a float32 are not needed here: a file holds F32, I32, U16 and I8. */
const READERS = { F32: Float32Array, I32: Int32Array, U16: Uint16Array, I8: Int8Array };

/**
 * Reads a safetensors file: {tensors: {name: {shape, data}}, metadata}.
 *
 * Codes of 8 bits become float32: row r of the matrix `name` is multiplied by entry r of `name.scale`.
 */
export function readSafetensors(buffer) {
  const length = Number(new DataView(buffer).getBigUint64(0, true));
  const header = JSON.parse(new TextDecoder().decode(new Uint8Array(buffer, 8, length)));
  const tensors = {};
  for (const [name, entry] of Object.entries(header)) {
    if (name === "__metadata__") continue;
    const [from, to] = entry.data_offsets.map((offset) => 8 + length + offset);
    const data = new READERS[entry.dtype](buffer.slice(from, to));
    tensors[name] = { shape: entry.shape, data };
  }
  for (const name of Object.keys(tensors).filter((key) => `${key}.scale` in tensors)) {
    const { shape, data } = tensors[name];
    tensors[name] = { shape, data: dequantize(data, tensors[`${name}.scale`].data, shape[1]) };
    delete tensors[`${name}.scale`];
  }
  return { tensors, metadata: header.__metadata__ ?? {} };
}

function dequantize(codes, scales, columns) {
  const values = new Float32Array(codes.length);
  for (let i = 0; i < codes.length; i++) values[i] = codes[i] * scales[Math.floor(i / columns)];
  return values;
}

/** torch.nn.functional.linear of one vector: weight (R, C), x (C) -> (R). Sums are in float64. */
export function linear(x, weight, bias) {
  const [rows, columns] = weight.shape;
  const out = new Float32Array(rows);
  for (let r = 0, i = 0; r < rows; r++) {
    let sum = bias ? bias.data[r] : 0;
    for (let c = 0; c < columns; c++) sum += weight.data[i++] * x[c];
    out[r] = sum;
  }
  return out;
}

/** torch.nn.functional.layer_norm of one vector. */
export function layerNorm(x, weight, bias, epsilon = 1e-5) {
  let mean = 0;
  let variance = 0;
  for (const value of x) mean += value / x.length;
  for (const value of x) variance += (value - mean) ** 2 / x.length;
  const scale = 1 / Math.sqrt(variance + epsilon);
  return x.map((value, i) => (value - mean) * scale * weight.data[i] + bias.data[i]);
}

/** torch.nn.functional.gelu with approximate="tanh". */
export function gelu(x) {
  const inside = (value) => Math.sqrt(2 / Math.PI) * (value + 0.044715 * value ** 3);
  return x.map((value) => 0.5 * value * (1 + Math.tanh(inside(value))));
}

/** torch.softmax; entries of -Infinity get 0. */
export function softmax(scores) {
  let largest = -Infinity;
  for (const score of scores) largest = Math.max(largest, score);
  const weights = Float64Array.from(scores, (score) => Math.exp(score - largest));
  let sum = 0;
  for (const weight of weights) sum += weight;
  return weights.map((weight) => weight / sum);
}

export function add(x, y) {
  return x.map((value, i) => value + y[i]);
}
