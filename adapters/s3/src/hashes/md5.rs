//! MD5, of one stream or of several at a time.
//!
//! One stream is a serial chain: each step needs the one before, and most of a processor idles. Two
//! streams whose steps take turns cost as much as one. The lanes of a SIMD register take a stream each:
//! 16 (AVX-512) or 8 (AVX2) cost what two or four do in pairs. The rounds are written once, for
//! [`Words`]; [`pulp`] compiles them for each kind of register and tells which there is.
//!
//! Source: RFC 1321.

use pulp::{Arch, Simd, WithSimd};

pub(super) const BLOCK: usize = 64;

type Block = [u8; BLOCK];

type State = [u32; 4];

const START: State = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476];

/// `floor(2^32 * abs(sin(i + 1)))`.
#[rustfmt::skip]
const SINES: [u32; 64] = [
    0xd76a_a478, 0xe8c7_b756, 0x2420_70db, 0xc1bd_ceee, 0xf57c_0faf, 0x4787_c62a, 0xa830_4613, 0xfd46_9501,
    0x6980_98d8, 0x8b44_f7af, 0xffff_5bb1, 0x895c_d7be, 0x6b90_1122, 0xfd98_7193, 0xa679_438e, 0x49b4_0821,
    0xf61e_2562, 0xc040_b340, 0x265e_5a51, 0xe9b6_c7aa, 0xd62f_105d, 0x0244_1453, 0xd8a1_e681, 0xe7d3_fbc8,
    0x21e1_cde6, 0xc337_07d6, 0xf4d5_0d87, 0x455a_14ed, 0xa9e3_e905, 0xfcef_a3f8, 0x676f_02d9, 0x8d2a_4c8a,
    0xfffa_3942, 0x8771_f681, 0x6d9d_6122, 0xfde5_380c, 0xa4be_ea44, 0x4bde_cfa9, 0xf6bb_4b60, 0xbebf_bc70,
    0x289b_7ec6, 0xeaa1_27fa, 0xd4ef_3085, 0x0488_1d05, 0xd9d4_d039, 0xe6db_99e5, 0x1fa2_7cf8, 0xc4ac_5665,
    0xf429_2244, 0x432a_ff97, 0xab94_23a7, 0xfc93_a039, 0x655b_59c3, 0x8f0c_cc92, 0xffef_f47d, 0x8584_5dd1,
    0x6fa8_7e4f, 0xfe2c_e6e0, 0xa301_4314, 0x4e08_11a1, 0xf753_7e82, 0xbd3a_f235, 0x2ad7_d2bb, 0xeb86_d391,
];

/// The MD5 of a stream, so far.
#[derive(Clone, Debug)]
pub(crate) struct Md5 {
    state: State,
    /// Bytes so far. What of them makes no whole block lies at the start of `partial`.
    length: u64,
    partial: Block,
}

impl Md5 {
    pub(crate) fn new() -> Self {
        Self {
            state: START,
            length: 0,
            partial: [0; BLOCK],
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        let used = self.begin(bytes);
        let (blocks, tail) = bytes[used..].as_chunks();
        compress(&mut self.state, blocks);
        self.length += (blocks.len() * BLOCK) as u64;
        self.end(tail);
    }

    pub(crate) fn finish(mut self) -> [u8; 16] {
        let bits = self.length.wrapping_mul(8);
        let filled = self.filled();
        let mut padding = [0; 2 * BLOCK];
        padding[0] = 0x80;
        let zeroes = (2 * BLOCK - 8 - filled - 1) % BLOCK;
        padding[1 + zeroes..][..8].copy_from_slice(&bits.to_le_bytes());
        self.update(&padding[..1 + zeroes + 8]);
        let mut digest = [0; 16];
        for (bytes, word) in digest.as_chunks_mut().0.iter_mut().zip(self.state) {
            *bytes = word.to_le_bytes();
        }
        digest
    }

    fn filled(&self) -> usize {
        (self.length % BLOCK as u64) as usize
    }

    /// Completes the block that was begun with the first of `bytes`, and says how many those are.
    pub(super) fn begin(&mut self, bytes: &[u8]) -> usize {
        let filled = self.filled();
        if filled == 0 {
            return 0;
        }
        let used = bytes.len().min(BLOCK - filled);
        self.partial[filled..filled + used].copy_from_slice(&bytes[..used]);
        self.length += used as u64;
        if filled + used == BLOCK {
            compress(&mut self.state, &[self.partial]);
        }
        used
    }

    /// Keeps the last bytes, less than a block, between two blocks.
    pub(super) fn end(&mut self, tail: &[u8]) {
        if !tail.is_empty() {
            self.partial[..tail.len()].copy_from_slice(tail);
            self.length += tail.len() as u64;
        }
    }
}

/// How many streams [`update_all`] takes at a time.
pub(super) fn lanes() -> usize {
    lanes_of(Arch::new())
}

fn lanes_of(arch: Arch) -> usize {
    struct Lanes;
    impl WithSimd for Lanes {
        type Output = usize;
        #[inline(always)]
        fn with_simd<S: Simd>(self, _: S) -> usize {
            match S::U32_LANES {
                lanes @ (8 | 16) => lanes,
                _ => 2,
            }
        }
    }
    arch.dispatch(Lanes)
}

/// Hashes the next blocks of each stream: whole ones, of all streams as many, between whole blocks.
pub(super) fn update_all<'a>(streams: &mut [(&'a mut Md5, &'a [Block])]) {
    update_in(Arch::new(), streams);
}

fn update_in<'a>(arch: Arch, streams: &mut [(&'a mut Md5, &'a [Block])]) {
    let lanes = lanes_of(arch);
    // Fewer are done sooner in pairs.
    let worth_a_register = if lanes == 16 { 3 } else { 5 };
    for streams in streams.chunks_mut(lanes) {
        if streams.len() < worth_a_register {
            pairs(streams);
        } else {
            arch.dispatch(Together(streams));
        }
    }
    for (md5, blocks) in streams {
        debug_assert_eq!(md5.filled(), 0, "between whole blocks");
        md5.length += (blocks.len() * BLOCK) as u64;
    }
}

fn compress(state: &mut State, blocks: &[Block]) {
    [*state] = interleave([*state], [blocks]);
}

fn pairs(streams: &mut [(&mut Md5, &[Block])]) {
    for streams in streams.chunks_mut(2) {
        match streams {
            [(one, blocks), (other, others)] => {
                [one.state, other.state] = interleave([one.state, other.state], [blocks, others]);
            }
            [(md5, blocks)] => compress(&mut md5.state, blocks),
            _ => {}
        }
    }
}

/// The states after `blocks`, of streams whose steps take turns.
fn interleave<const N: usize>(states: [State; N], blocks: [&[Block]; N]) -> [State; N] {
    let count = blocks[0].len();
    let blocks = blocks.map(|blocks| &blocks[..count]);
    let mut state = std::array::from_fn(|word| std::array::from_fn(|i| states[i][word]));
    // Hidden from the compiler, which moves additions of known numbers to the end of a step, into the
    // chain that everything waits for.
    let sines = std::hint::black_box(&SINES);
    for at in 0..count {
        let blocks = blocks.map(|blocks| blocks[at].as_chunks::<4>().0);
        let word = |word| std::array::from_fn(|i| u32::from_le_bytes(blocks[i][word]));
        rounds::<[u32; N]>(word, sines, &mut state);
    }
    std::array::from_fn(|i| std::array::from_fn(|word| state[word][i]))
}

struct Together<'s, 'a>(&'s mut [(&'a mut Md5, &'a [Block])]);

impl WithSimd for Together<'_, '_> {
    type Output = ();

    #[inline(always)]
    fn with_simd<S: Simd>(self, simd: S) {
        match S::U32_LANES {
            16 => self.on::<S, 16>(simd),
            8 => self.on::<S, 8>(simd),
            _ => pairs(self.0),
        }
    }
}

impl Together<'_, '_> {
    /// Each stream in its lane. A lane without a stream does what the first does.
    #[inline(always)]
    fn on<S: Simd, const LANES: usize>(self, simd: S) {
        let count = self.0[0].1.len();
        let blocks: [&[Block]; LANES] =
            std::array::from_fn(|lane| &self.0.get(lane).unwrap_or(&self.0[0]).1[..count]);
        let mut state = std::array::from_fn(|word| {
            let lanes = std::array::from_fn(|lane| {
                let (md5, _) = self.0.get(lane).unwrap_or(&self.0[0]);
                md5.state[word]
            });
            Vector(simd, vector::<S, LANES>(lanes))
        });
        let low = std::array::from_fn(|stage| {
            let bits = std::array::from_fn(|lane| lane as u32 & 1 << stage);
            simd.equal_u32s(vector::<S, LANES>(bits), simd.splat_u32s(0))
        });
        let sines = std::hint::black_box(&SINES);
        for at in 0..count {
            let mut words = [simd.splat_u32s(0); 16];
            for (part, words) in words.chunks_exact_mut(LANES).enumerate() {
                for (word, blocks) in words.iter_mut().zip(&blocks) {
                    let bytes = &blocks[at][part * LANES * 4..][..LANES * 4];
                    *word = pulp::bytemuck::pod_read_unaligned(bytes);
                }
                transpose(simd, words, &low);
            }
            rounds(|word| Vector(simd, words[word]), sines, &mut state);
        }
        for (word, Vector(_, lanes)) in state.iter().enumerate() {
            let lanes: &[u32] = pulp::bytemuck::cast_slice(std::slice::from_ref(lanes));
            for ((md5, _), &lane) in self.0.iter_mut().zip(lanes) {
                md5.state[word] = lane;
            }
        }
    }
}

#[inline(always)]
fn vector<S: Simd, const LANES: usize>(lanes: [u32; LANES]) -> S::u32s {
    S::as_simd_u32s(&lanes).0[0]
}

/// Swaps rows and lanes: what was in row `i` of lane `k` is in row `k` of lane `i`. In `low[stage]` are
/// the lanes whose number lacks that bit.
#[inline(always)]
fn transpose<S: Simd>(simd: S, rows: &mut [S::u32s], low: &[S::m32s; 4]) {
    for (stage, &low) in low.iter().enumerate() {
        let apart = 1 << stage;
        for row in 0..rows.len() {
            if row & apart == 0 && row + apart < rows.len() {
                let (a, b) = (rows[row], rows[row + apart]);
                rows[row] = simd.select_u32s(low, a, simd.rotate_right_u32s(b, apart));
                rows[row + apart] = simd.select_u32s(low, simd.rotate_left_u32s(a, apart), b);
            }
        }
    }
}

/// The same word of several streams.
trait Words: Copy {
    fn add(self, other: Self) -> Self;
    fn add_number(self, number: u32) -> Self;
    fn and(self, other: Self) -> Self;
    fn or(self, other: Self) -> Self;
    fn xor(self, other: Self) -> Self;
    fn not(self) -> Self;
    fn rotate_left(self, bits: u32) -> Self;
}

impl<const N: usize> Words for [u32; N] {
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i].wrapping_add(other[i]))
    }
    #[inline(always)]
    fn add_number(self, number: u32) -> Self {
        self.map(|word| word.wrapping_add(number))
    }
    #[inline(always)]
    fn and(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] & other[i])
    }
    #[inline(always)]
    fn or(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] | other[i])
    }
    #[inline(always)]
    fn xor(self, other: Self) -> Self {
        std::array::from_fn(|i| self[i] ^ other[i])
    }
    #[inline(always)]
    fn not(self) -> Self {
        self.map(|word| !word)
    }
    #[inline(always)]
    fn rotate_left(self, bits: u32) -> Self {
        self.map(|word| word.rotate_left(bits))
    }
}

#[derive(Clone, Copy)]
struct Vector<S: Simd>(S, S::u32s);

impl<S: Simd> Words for Vector<S> {
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(self.0, self.0.add_u32s(self.1, other.1))
    }
    #[inline(always)]
    fn add_number(self, number: u32) -> Self {
        Self(self.0, self.0.add_u32s(self.1, self.0.splat_u32s(number)))
    }
    #[inline(always)]
    fn and(self, other: Self) -> Self {
        Self(self.0, self.0.and_u32s(self.1, other.1))
    }
    #[inline(always)]
    fn or(self, other: Self) -> Self {
        Self(self.0, self.0.or_u32s(self.1, other.1))
    }
    #[inline(always)]
    fn xor(self, other: Self) -> Self {
        Self(self.0, self.0.xor_u32s(self.1, other.1))
    }
    #[inline(always)]
    fn not(self) -> Self {
        Self(self.0, self.0.not_u32s(self.1))
    }
    #[inline(always)]
    fn rotate_left(self, bits: u32) -> Self {
        let Self(s, word) = self;
        let left = s.wrapping_dyn_shl_u32s(word, s.splat_u32s(bits));
        let right = s.wrapping_dyn_shr_u32s(word, s.splat_u32s(32 - bits));
        Self(s, s.or_u32s(left, right))
    }
}

/// RFC 1321, 3.4.
#[inline(always)]
fn rounds<W: Words>(word: impl Fn(usize) -> W, sines: &[u32; 64], state: &mut [W; 4]) {
    let [mut a, mut b, mut c, mut d] = *state;
    macro_rules! step {
        ($mix:expr, $step:expr, $word:expr, $shift:expr) => {{
            let known = word($word % 16).add_number(sines[$step]).add(a);
            let sum = known.add($mix(b, c, d));
            (a, d, c) = (d, c, b);
            b = b.add(sum.rotate_left($shift));
        }};
    }
    macro_rules! round {
        ($mix:expr, $round:expr, $first:expr, $stride:expr, $shifts:expr) => {
            round!(@ $mix, $round, $first, $stride, $shifts, 0, 4, 8, 12)
        };
        (@ $mix:expr, $round:expr, $first:expr, $stride:expr, $shifts:expr, $($four:expr),*) => {$(
            step!($mix, $round * 16 + $four, $first + $four * $stride, $shifts[0]);
            step!($mix, $round * 16 + $four + 1, $first + ($four + 1) * $stride, $shifts[1]);
            step!($mix, $round * 16 + $four + 2, $first + ($four + 2) * $stride, $shifts[2]);
            step!($mix, $round * 16 + $four + 3, $first + ($four + 3) * $stride, $shifts[3]);
        )*};
    }
    round!(
        |x: W, y: W, z: W| x.and(y).or(x.not().and(z)),
        0,
        0,
        1,
        [7, 12, 17, 22]
    );
    round!(
        |x: W, y: W, z: W| z.and(x).or(z.not().and(y)),
        1,
        1,
        5,
        [5, 9, 14, 20]
    );
    round!(|x: W, y: W, z: W| x.xor(y).xor(z), 2, 5, 3, [4, 11, 16, 23]);
    round!(
        |x: W, y: W, z: W| y.xor(x.or(z.not())),
        3,
        0,
        7,
        [6, 10, 15, 21]
    );
    *state = [
        state[0].add(a),
        state[1].add(b),
        state[2].add(c),
        state[3].add(d),
    ];
}

#[cfg(test)]
mod tests {
    use ::md5::{Digest as _, Md5 as Known};
    use proptest::prelude::*;

    use super::*;

    fn bytes(seed: u8, length: usize) -> Vec<u8> {
        (0..length)
            .map(|i| (i * 31 + usize::from(seed) * 7 + (i >> 8)) as u8)
            .collect()
    }

    fn known(bytes: &[u8]) -> [u8; 16] {
        Known::digest(bytes).into()
    }

    /// RFC 1321, A.5.
    #[test]
    fn digests_are_those_of_the_definition() {
        let digest = |text: &str| {
            let mut md5 = Md5::new();
            md5.update(text.as_bytes());
            crate::hashes::hex(&md5.finish())
        };
        assert_eq!(digest(""), "d41d8cd98f00b204e9800998ecf8427e");
        assert_eq!(digest("message digest"), "f96b697d7cb7938d525a2f31aaf161d0");
    }

    proptest! {
        #[test]
        fn a_stream_in_pieces_has_the_digest_of_the_whole(
            seed: u8,
            pieces in prop::collection::vec(0..200_usize, 0..12),
        ) {
            let whole = bytes(seed, pieces.iter().sum());
            let mut md5 = Md5::new();
            let mut rest = &whole[..];
            for piece in pieces {
                let (piece, after) = rest.split_at(piece);
                md5.update(piece);
                rest = after;
            }
            prop_assert_eq!(md5.finish(), known(&whole));
        }

        #[test]
        fn streams_together_have_the_digests_they_have_alone(
            starts in prop::collection::vec(0..5_usize, 1..40),
            steps in prop::collection::vec(1..9_usize, 1..4),
            tail in 0..200_usize,
        ) {
            for kernel in kernels() {
                let together: usize = steps.iter().sum();
                let whole: Vec<_> = starts
                    .iter()
                    .enumerate()
                    .map(|(seed, start)| bytes(seed as u8, (start + together) * BLOCK + tail))
                    .collect();
                let mut md5s = vec![Md5::new(); whole.len()];
                let mut at: Vec<_> = starts.iter().map(|start| start * BLOCK).collect();
                for ((md5, whole), at) in md5s.iter_mut().zip(&whole).zip(&at) {
                    md5.update(&whole[..*at]);
                }
                for step in &steps {
                    let pieces = whole.iter().zip(&at);
                    let pieces = pieces.map(|(whole, at)| whole[*at..][..step * BLOCK].as_chunks().0);
                    let mut streams: Vec<_> = md5s.iter_mut().zip(pieces).collect();
                    update_in(kernel, &mut streams);
                    at.iter_mut().for_each(|at| *at += step * BLOCK);
                }
                for ((mut md5, whole), at) in md5s.into_iter().zip(&whole).zip(at) {
                    md5.update(&whole[at..]);
                    prop_assert_eq!(md5.finish(), known(whole), "{:?}", kernel);
                }
            }
        }
    }

    /// One for each kind of register that this processor has, and none.
    fn kernels() -> Vec<Arch> {
        let mut kernels = vec![Arch::Scalar, Arch::new()];
        #[cfg(target_arch = "x86_64")]
        kernels.extend(pulp::x86::V3::try_new().map(Arch::V3));
        kernels
    }
}
