//! Philox 4x32-10, the random numbers of dropout: no state, so that any element's number can be computed by
//! itself, in the forward pass and again in the backward one, in WGSL (`shaders/philox.wgsl`) and here.
//!
//! Source: Salmon, Moraes, Dror and Shaw 2011, *Parallel random numbers: as easy as 1, 2, 3*.

/// The WGSL of [`philox`].
pub(crate) const PART: &str = include_str!("../shaders/philox.wgsl");

/// Four words of noise for a counter and a key.
pub fn philox(counter: [u32; 4], key: [u32; 2]) -> [u32; 4] {
    const MULTIPLIER: [u32; 2] = [0xd251_1f53, 0xcd9e_8d57];
    const KEY_STEP: [u32; 2] = [0x9e37_79b9, 0xbb67_ae85];
    let ([mut a, mut b, mut c, mut d], mut key) = (counter, key);
    let wide = |multiplier: u32, x: u32| {
        let product = u64::from(multiplier) * u64::from(x);
        ((product >> 32) as u32, product as u32)
    };
    for _ in 0..10 {
        let (high_0, low_0) = wide(MULTIPLIER[0], a);
        let (high_1, low_1) = wide(MULTIPLIER[1], c);
        [a, b, c, d] = [high_1 ^ b ^ key[0], low_1, high_0 ^ d ^ key[1], low_0];
        key = [0, 1].map(|i| key[i].wrapping_add(KEY_STEP[i]));
    }
    [a, b, c, d]
}

/// The word of noise at or above which an element is kept: `probability` of all words lie below it.
pub fn threshold(probability: f32) -> u32 {
    (f64::from(probability) * 2f64.powi(32)).min(f64::from(u32::MAX)) as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `kat_vectors` of the authors' library Random123.
    #[test]
    fn known_answers() {
        for (counter, key, answer) in [
            (
                [0; 4],
                [0; 2],
                [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8],
            ),
            (
                [u32::MAX; 4],
                [u32::MAX; 2],
                [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd],
            ),
            (
                [0x243f_6a88, 0x85a3_08d3, 0x1319_8a2e, 0x0370_7344],
                [0xa409_3822, 0x299f_31d0],
                [0xd16c_fe09, 0x94fd_cceb, 0x5001_e420, 0x2412_6ea1],
            ),
        ] {
            assert_eq!(philox(counter, key), answer);
        }
    }

    #[test]
    fn thresholds_divide_the_words_as_asked() {
        assert_eq!(threshold(0.0), 0);
        assert_eq!(threshold(0.5), 1 << 31);
        assert_eq!(threshold(0.25), 1 << 30);
    }
}
