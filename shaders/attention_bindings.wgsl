// attention_bindings: the tensors of the forward kernels.

@group(0) @binding(1) var<storage, read>       query:       array<Word>;
@group(0) @binding(2) var<storage, read>       key:         array<Word>;
@group(0) @binding(3) var<storage, read>       value:       array<Word>;
@group(0) @binding(4) var<storage, read>       bias:        array<u32>;
@group(0) @binding(5) var<storage, read>       aux:         array<u32>;
@group(0) @binding(6) var<storage, read_write> output:      array<f32>;
@group(0) @binding(7) var<storage, read_write> log_sum_exp: array<u32>;

fn output_row(tile: Tile, row: u32) -> u32 {
    let head = head_of(tile, row) * params.output_head + tile.split * params.output_split;
    return tile.output + head + query_of(tile, row) * params.output_token;
}

fn store_log_sum_exp(tile: Tile, row: u32, bits: u32) {
    let head = head_of(tile, row) * params.log_sum_exp_head;
    let first = tile.log_sum_exp + head + tile.split * params.log_sum_exp_split;
    log_sum_exp[first + query_of(tile, row)] = bits;
}
