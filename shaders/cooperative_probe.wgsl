// cooperative_probe: whether matrices that a subgroup holds together are multiplied and added up
// right: product = left right + (left right + 1), where the second sum comes back from workgroup
// memory; exact in integers small enough for f16.
//
// Layout      words   how many elements of the product are right
// Grid        one workgroup
// Workgroup   one subgroup
// Memory      wg_left, wg_right: two factors of EDGE x EDGE; wg_product: all with longer rows, as
//             in the kernels that use such matrices
// Holds       the subgroup size is SUBGROUP_SIZE; words are 0 before
// Precision   exact
// Parts       common.wgsl, cooperative_*.wgsl

@group(0) @binding(1) var<storage, read_write> words: array<atomic<u32>>;

const PITCH: u32 = EDGE + 8u;
const PRODUCT_PITCH: u32 = EDGE + 4u;

var<workgroup> wg_left: array<f16, EDGE * PITCH>;
var<workgroup> wg_right: array<f16, EDGE * PITCH>;
var<workgroup> wg_product: array<f32, EDGE * PRODUCT_PITCH>;

// -5 to 5, in an order that no transposition or shift repeats
fn element_of(i: u32, times: u32) -> f32 {
    return f32((i * times + i * i / 7u) % 11u) - 5.0;
}

@diagnostic(off, derivative_uniformity)
@compute @workgroup_size(SUBGROUP_SIZE)
fn cooperative_probe(@builtin(local_invocation_index) lane: u32) {
    for (var i = lane; i < EDGE * EDGE; i += SUBGROUP_SIZE) {
        let at = i / EDGE * PITCH + i % EDGE;
        wg_left[at] = f16(element_of(i, 7u));
        wg_right[at] = f16(element_of(i, 5u));
    }
    // wg_left and wg_right are visible
    workgroupBarrier();
    let left = coopLoadT<Left>(&wg_left[0], PITCH);
    // by columns, as keys are read
    let right = coopLoad<Right>(&wg_right[0], PITCH);
    coopStoreT(coopMultiplyAdd(left, right, Sum()), &wg_product[0], PRODUCT_PITCH);
    // wg_product is visible
    workgroupBarrier();
    for (var i = lane; i < EDGE * EDGE; i += SUBGROUP_SIZE) {
        wg_product[i / EDGE * PRODUCT_PITCH + i % EDGE] += 1.0;
    }
    // wg_product is visible
    workgroupBarrier();
    let before = coopLoadT<Sum>(&wg_product[0], PRODUCT_PITCH);
    // wg_product is free
    workgroupBarrier();
    coopStoreT(coopMultiplyAdd(left, right, before), &wg_product[0], PRODUCT_PITCH);
    // wg_product is visible
    workgroupBarrier();
    for (var i = lane; i < EDGE * EDGE; i += SUBGROUP_SIZE) {
        var expected = 1.0;
        for (var k = 0u; k < EDGE; k++) {
            let left = element_of(i / EDGE * EDGE + k, 7u);
            expected += 2.0 * left * element_of(i % EDGE * EDGE + k, 5u);
        }
        if (wg_product[i / EDGE * PRODUCT_PITCH + i % EDGE] == expected) {
            atomicAdd(&words[0], 1u);
        }
    }
}
