// ONNX Runtime's WebGPU provider without a browser: `node benches/peers/ort_webgpu.mjs > FILE`
//
// Needs `ONNXRUNTIME_NODE_INSTALL=skip npm install onnxruntime-node` (1.30 or later; it brings Dawn) where Node finds
// it, and a Vulkan driver. Rows are those of `gatefold bench -o json`. A timed call is one `session.run` on inputs that
// it has not seen before: upload and download are in it, and for LSTM the projection of the inputs. Each result is
// compared with f64 first; `right` says how that went. A node that WebGPU cannot run is an error: no silent fallback
// to the CPU. `cpu_us` is the processor time of a call, all threads: on a software driver it counts where other
// programs take the cores away.
//
//     --provider webgpu|cpu   --seconds 5 (for each row)
//     --attention 512,1024    tokens; 8 heads of 64
//     --lstm 1x256,16x256,1x512   batch x size; 64 steps, input_size = hidden_size

import { createRequire } from "node:module";
import os from "node:os";
import { parseArgs } from "node:util";

// `createRequire` of the working directory, so that the package need not lie beside this file
const require = createRequire(process.cwd() + "/");
const ort = require("onnxruntime-node");

const { values: options } = parseArgs({
    options: {
        provider: { type: "string", default: "webgpu" },
        seconds: { type: "string", default: "5" },
        attention: { type: "string", default: "512,1024" },
        lstm: { type: "string", default: "1x256,16x256,1x512" },
    },
});

// ---- models, in ONNX's protobuf

const FLOAT = 1;
const INT_ATTRIBUTE = 2;

function varint(value) {
    const bytes = [];
    for (; value > 127; value = Math.floor(value / 128)) bytes.push((value % 128) + 128);
    return Buffer.from([...bytes, value]);
}
const number = (field, value) => Buffer.concat([varint(field * 8), varint(value)]);
const bytes = (field, value) => {
    const data = Buffer.from(value);
    return Buffer.concat([varint(field * 8 + 2), varint(data.length), data]);
};
const message = (field, ...parts) => bytes(field, Buffer.concat(parts));

function valueInfo(field, name, shape) {
    const dims = shape.map((len) => message(1, number(1, len)));
    return message(field, bytes(1, name), message(2, message(1, number(1, FLOAT), message(2, ...dims))));
}

function initializer(name, { shape, data }) {
    const raw = new Uint8Array(data.buffer, data.byteOffset, data.byteLength);
    return message(5, ...shape.map((len) => number(1, len)), number(2, FLOAT), bytes(8, name), bytes(9, raw));
}

function node({ op, domain = "", attributes = {}, inputs, output }) {
    return message(
        1,
        ...inputs.map((name) => bytes(1, name)),
        bytes(2, output),
        bytes(4, op),
        ...Object.entries(attributes).map(([name, value]) =>
            message(5, bytes(1, name), number(3, value), number(20, INT_ATTRIBUTE)),
        ),
        bytes(7, domain),
    );
}

function model({ nodes, inputs, constants = {}, output }) {
    const graph = message(
        7,
        ...nodes.map(node),
        bytes(2, "graph"),
        ...Object.entries(constants).map(([name, tensor]) => initializer(name, tensor)),
        ...Object.entries(inputs).map(([name, shape]) => valueInfo(11, name, shape)),
        valueInfo(12, output.name, output.shape),
    );
    // the WebGPU provider has LSTM up to opset 21
    const opsets = [message(8, bytes(1, ""), number(2, 21)), message(8, bytes(1, "com.microsoft"), number(2, 1))];
    return Buffer.concat([number(1, 10), graph, ...opsets]);
}

// ---- what is measured

const elements = (shape) => shape.reduce((product, len) => product * len, 1);

function random(shape, spread) {
    const data = new Float32Array(elements(shape));
    // normal enough: the sum of four uniform numbers
    for (let i = 0; i < data.length; i++) {
        data[i] = spread * Math.sqrt(3) * (Math.random() + Math.random() + Math.random() + Math.random() - 2);
    }
    return { shape, data };
}

/** Of query i and head h the scores of all keys, in f64, and what they make of the values. */
function attentionTruth(tokens, heads, dim, queryAt, keyAt, scale, { query, key, value }) {
    const output = new Float64Array(heads * tokens * dim);
    for (let head = 0; head < heads; head++) {
        for (let i = 0; i < tokens; i++) {
            const weights = new Float64Array(tokens);
            for (let j = 0; j < tokens; j++) {
                let score = 0;
                for (let d = 0; d < dim; d++) score += query[queryAt(head, i, d)] * key[keyAt(head, j, d)];
                weights[j] = scale * score;
            }
            const maximum = weights.reduce((a, b) => Math.max(a, b));
            let sum = 0;
            for (let j = 0; j < tokens; j++) sum += weights[j] = Math.exp(weights[j] - maximum);
            for (let j = 0; j < tokens; j++) {
                const weight = weights[j] / sum;
                for (let d = 0; d < dim; d++) output[queryAt(head, i, d)] += weight * value[queryAt(head, j, d)];
            }
        }
    }
    return output;
}

function attentionJob(name, tokens, heads, dim, rest) {
    return {
        op: "attention",
        name,
        shape: { batch: 1, heads, kv_heads: heads, q_len: tokens, kv_len: tokens, head_dim: dim, value_dim: dim },
        flops: 4 * heads * tokens * tokens * dim,
        rowLength: dim,
        ...rest,
    };
}

/** com.microsoft.MultiHeadAttention, the operator that the provider fuses; tensors [batch, tokens, heads * dim]. */
function fusedAttention(tokens, heads = 8, dim = 64) {
    const shape = [1, tokens, heads * dim];
    const inputs = { query: shape, key: shape, value: shape };
    const at = (head, token, d) => (token * heads + head) * dim + d;
    return attentionJob("fused", tokens, heads, dim, {
        model: {
            nodes: [
                {
                    op: "MultiHeadAttention",
                    domain: "com.microsoft",
                    attributes: { num_heads: heads },
                    inputs: Object.keys(inputs),
                    output: "output",
                },
            ],
            inputs,
            output: { name: "output", shape },
        },
        truth: (tensors) => attentionTruth(tokens, heads, dim, at, at, 1 / Math.sqrt(dim), tensors),
    });
}

/** MatMul, Softmax, MatMul; the key comes transposed and nothing is scaled, which is less than the fused one does. */
function unfusedAttention(tokens, heads = 8, dim = 64) {
    const shape = [1, heads, tokens, dim];
    const inputs = { query: shape, key: [1, heads, dim, tokens], value: shape };
    const at = (head, token, d) => (head * tokens + token) * dim + d;
    const transposed = (head, token, d) => (head * dim + d) * tokens + token;
    return attentionJob("unfused", tokens, heads, dim, {
        // as large as scaled scores are
        spreads: { query: 1 / Math.sqrt(dim) },
        model: {
            nodes: [
                { op: "MatMul", inputs: ["query", "key"], output: "scores" },
                { op: "Softmax", inputs: ["scores"], output: "weights" },
                { op: "MatMul", inputs: ["weights", "value"], output: "output" },
            ],
            inputs,
            output: { name: "output", shape },
        },
        truth: (tensors) => attentionTruth(tokens, heads, dim, at, transposed, 1, tensors),
    });
}

function lstm(batch, size, steps = 64) {
    const bound = Math.sqrt(1 / size);
    const constants = {
        W: random([1, 4 * size, size], bound),
        R: random([1, 4 * size, size], bound),
        B: random([1, 8 * size], bound),
    };
    const sigmoid = (x) => 1 / (1 + Math.exp(-x));
    return {
        op: "lstm",
        name: "operator",
        shape: { batch, seq_len: steps, input_size: size, hidden_size: size, layers: 1 },
        flops: 2 * batch * steps * 4 * size * 2 * size,
        steps,
        model: {
            nodes: [{ op: "LSTM", attributes: { hidden_size: size }, inputs: ["X", "W", "R", "B"], output: "Y" }],
            inputs: { X: [steps, batch, size] },
            constants,
            output: { name: "Y", shape: [steps, 1, batch, size] },
        },
        rowLength: size,
        truth({ X }) {
            const [W, R, B] = ["W", "R", "B"].map((name) => constants[name].data);
            const output = new Float64Array(steps * batch * size);
            for (let row = 0; row < batch; row++) {
                let h = new Float64Array(size);
                const c = new Float64Array(size);
                for (let step = 0; step < steps; step++) {
                    const at = (step * batch + row) * size;
                    // ONNX has the gates in the order i, o, f, c
                    const gates = new Float64Array(4 * size);
                    for (let gate = 0; gate < 4 * size; gate++) {
                        let sum = B[gate] + B[4 * size + gate];
                        for (let k = 0; k < size; k++) {
                            sum += X[at + k] * W[gate * size + k] + h[k] * R[gate * size + k];
                        }
                        gates[gate] = sum;
                    }
                    h = new Float64Array(size);
                    for (let unit = 0; unit < size; unit++) {
                        const [i, o, f] = [0, 1, 2].map((gate) => sigmoid(gates[gate * size + unit]));
                        c[unit] = f * c[unit] + i * Math.tanh(gates[3 * size + unit]);
                        h[unit] = o * Math.tanh(c[unit]);
                    }
                    output.set(h, at);
                }
            }
            return output;
        },
    };
}

// ---- measuring

/** The worst error of an element, relative to its row. */
function worst(got, want, rowLength) {
    let error = 0;
    for (let row = 0; row < want.length; row += rowLength) {
        let [difference, scale] = [0, 0];
        for (let i = row; i < row + rowLength; i++) {
            // a NaN must not be lost
            if (!(Math.abs(got[i] - want[i]) <= difference)) difference = Math.abs(got[i] - want[i]);
            scale = Math.max(scale, Math.abs(want[i]));
        }
        if (!(difference / scale <= error)) error = difference / scale;
    }
    return error;
}

async function measure(job) {
    const session = await ort.InferenceSession.create(model(job.model), {
        executionProviders: [options.provider],
        extra: options.provider === "cpu" ? {} : { session: { disable_cpu_ep_fallback: "1" } },
    });
    const fresh = () => {
        const inputs = Object.entries(job.model.inputs);
        const tensors = inputs.map(([name, shape]) => [name, random(shape, job.spreads?.[name] ?? 1).data]);
        const feeds = tensors.map(([name, data]) => [name, new ort.Tensor("float32", data, job.model.inputs[name])]);
        return [Object.fromEntries(tensors), Object.fromEntries(feeds)];
    };
    const [tensors, feeds] = fresh();
    const got = (await session.run(feeds))[job.model.output.name].data;
    const error = worst(got, job.truth(tensors), job.rowLength);
    const right = error < 1e-4;

    for (let i = 0; i < 3; i++) await session.run(fresh()[1]);
    const times = [];
    let cpu = 0;
    const end = performance.now() + 1000 * Number(options.seconds);
    while (times.length < 10 || performance.now() < end) {
        const feeds = fresh()[1];
        const [start, before] = [performance.now(), process.cpuUsage()];
        await session.run(feeds);
        times.push(1000 * (performance.now() - start));
        const { user, system } = process.cpuUsage(before);
        cpu += user + system;
    }
    times.sort((a, b) => a - b);
    const rank = (share) => times[Math.round(share * (times.length - 1))];
    await session.release();
    return {
        op: job.op,
        shape: job.shape,
        dtype: "f32",
        variant: `onnxruntime-${options.provider}, ${job.name}`,
        median_us: rank(0.5),
        p5_us: rank(0.05),
        p95_us: rank(0.95),
        us_per_step: job.steps ? rank(0.5) / job.steps : null,
        gflops: job.flops / rank(0.5) / 1e3,
        error,
        // a wrong result says nothing about speed
        right,
        clock: "wall",
        cpu_us: cpu / times.length,
        runs: times.length,
        load: os.loadavg()[0],
    };
}

const list = (text) => text.split(",").filter((part) => part !== "");
const jobs = [
    ...list(options.attention).flatMap((tokens) => [
        fusedAttention(Number(tokens)),
        unfusedAttention(Number(tokens)),
    ]),
    ...list(options.lstm).map((pair) => lstm(...pair.split("x").map(Number))),
];
const rows = [];
for (const job of jobs) {
    const row = await measure(job);
    const figures = `${Math.round(row.median_us)} us, error ${row.error.toExponential(1)}`;
    console.error(`${row.op}, ${row.variant} ${JSON.stringify(row.shape)}: ${figures}`);
    rows.push(row);
}
const { version } = require("onnxruntime-node/package.json");
console.log(JSON.stringify({ schema: 1, onnxruntime: version, rows }, null, 1));
