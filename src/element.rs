use crate::kernel::Constant;

/// How the elements of a tensor are stored. Kernels widen them to f32 when they load, and compute in f32.
///
/// Halves lie two to a 32-bit word, the first in the low bits, which is how they lie in memory; no device
/// feature is needed to read them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum ElementType {
    /// IEEE 754 single precision.
    #[default]
    F32,
    /// IEEE 754 half precision: 11 bits of precision, up to 65504.
    F16,
    /// The upper half of an f32: 8 bits of precision, f32's range.
    Bf16,
}

impl ElementType {
    /// All of them.
    pub const ALL: &[Self] = &[Self::F32, Self::F16, Self::Bf16];

    /// Bytes of an element.
    pub fn size(self) -> u64 {
        match self {
            Self::F32 => 4,
            Self::F16 | Self::Bf16 => 2,
        }
    }

    /// The name, as the program's `--dtype` takes it.
    pub fn name(self) -> &'static str {
        match self {
            Self::F32 => "f32",
            Self::F16 => "f16",
            Self::Bf16 => "bf16",
        }
    }

    /// `x` rounded to what this type can hold.
    pub fn round(self, x: f32) -> f32 {
        match self {
            Self::F32 => x,
            Self::F16 => half::f16::from_f32(x).to_f32(),
            Self::Bf16 => half::bf16::from_f32(x).to_f32(),
        }
    }

    /// `values` in 32-bit words, rounded; halves two to a word, the last word filled up with 0.
    pub fn words(self, values: &[f32]) -> Vec<u32> {
        let bits = |&x: &f32| -> u32 {
            match self {
                Self::F32 => x.to_bits(),
                Self::F16 => half::f16::from_f32(x).to_bits().into(),
                Self::Bf16 => half::bf16::from_f32(x).to_bits().into(),
            }
        };
        if self == Self::F32 {
            return values.iter().map(bits).collect();
        }
        let pair = |pair: &[f32]| bits(&pair[0]) | pair.get(1).map_or(0, bits) << 16;
        values.chunks(2).map(pair).collect()
    }

    /// The part for kernels whose tensors have several types, as constants name them.
    pub(crate) const ANY: &str = include_str!("../shaders/element_any.wgsl");

    /// What a kernel with [`ANY`](Self::ANY) calls this type.
    pub(crate) fn constant(self) -> Constant {
        Constant::U32(match self {
            Self::F32 => 0,
            Self::F16 => 1,
            Self::Bf16 => 2,
        })
    }

    /// The part of a kernel that widens four elements at once: `Word` and `elements`.
    pub(crate) fn vectors_part(self) -> &'static str {
        match self {
            Self::F32 => include_str!("../shaders/vectors_f32.wgsl"),
            Self::F16 => include_str!("../shaders/vectors_f16.wgsl"),
            Self::Bf16 => include_str!("../shaders/vectors_bf16.wgsl"),
        }
    }

    /// The part of a kernel that widens elements of this type: `Word`, `word_of` and `element`.
    pub(crate) fn part(self) -> &'static str {
        match self {
            Self::F32 => include_str!("../shaders/element_f32.wgsl"),
            Self::F16 => include_str!("../shaders/element_f16.wgsl"),
            Self::Bf16 => include_str!("../shaders/element_bf16.wgsl"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halves_lie_two_to_a_word_the_first_in_the_low_bits() {
        assert_eq!(
            ElementType::F16.words(&[1.0, -2.0, 0.5]),
            [0xc000_3c00, 0x3800]
        );
        assert_eq!(ElementType::Bf16.words(&[1.0, -2.0]), [0xc000_3f80]);
        assert_eq!(ElementType::F32.words(&[1.0]), [0x3f80_0000]);
        assert_eq!(ElementType::F16.round(0.1), 0.099_975_586);
    }
}
