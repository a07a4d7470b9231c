//! The one microkernel of all convolutions, and the choice of instructions for all kernels.
//!
//! Kernels are plain loops over arrays of fixed length. They are compiled once for each instruction set, and the
//! compiler makes vector instructions of them; which one runs is decided when it is called.

/// Defines a function that is compiled for each instruction set.
macro_rules! multiversion {
    ($(#[$attribute:meta])* $vis:vis fn $name:ident($($arg:ident: $ty:ty),* $(,)?) $(-> $ret:ty)? $body:block) => {
        $(#[$attribute])*
        $vis fn $name($($arg: $ty),*) $(-> $ret)? {
            #[inline(always)]
            fn body($($arg: $ty),*) $(-> $ret)? $body
            #[cfg(target_arch = "x86_64")]
            {
                #[target_feature(enable = "avx2,fma")]
                fn avx2($($arg: $ty),*) $(-> $ret)? { body($($arg),*) }
                if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
                    // SAFETY: the processor has the instructions.
                    return unsafe { avx2($($arg),*) };
                }
            }
            body($($arg),*)
        }
    };
}
pub(crate) use multiversion;

/// `value` if `condition`, else 0, without a branch that would keep a loop from becoming vector instructions.
#[inline(always)]
pub(crate) fn keep_if(condition: bool, value: f32) -> f32 {
    f32::from_bits(value.to_bits() & u32::from(condition).wrapping_neg())
}

/// Output channels that are computed together.
pub const BLOCK: usize = 16;

/// Sums of products of scalars of `image` with rows of `panel`:
///
/// `sums[p][v] = sum over k of image[starts[p] + steps[k]] * panel[k][v]`
///
/// A row of `panel` has `L` values. The sum is taken in the order of `k`.
#[inline(always)]
fn tile<const P: usize, const L: usize, const FMA: bool>(
    image: &[f32],
    starts: &[u32; P],
    steps: &[u32],
    panel: &[f32],
) -> [[f32; L]; P] {
    let mut sums = [[0.0; L]; P];
    let (rows, _) = panel.as_chunks::<L>();
    for (&step, row) in steps.iter().zip(rows) {
        for p in 0..P {
            // SAFETY: `run` has compared the largest start plus the largest step with the length.
            let x = unsafe { *image.get_unchecked(starts[p] as usize + step as usize) };
            for v in 0..L {
                sums[p][v] = if FMA { x.mul_add(row[v], sums[p][v]) } else { x * row[v] + sums[p][v] };
            }
        }
    }
    sums
}

/// Where the sums of a tile go.
pub trait Sink {
    /// Takes the sums of the `starts` from number `first` on; `sums` may have more rows than there are starts.
    fn take<const P: usize, const L: usize>(&mut self, first: usize, sums: &[[f32; L]; P]);
}

/// Computes [`tile`]s for all `starts` and hands them to `sink`.
#[inline(always)]
fn tiles<const P: usize, const L: usize, const FMA: bool>(
    image: &[f32],
    starts: &[u32],
    steps: &[u32],
    panel: &[f32],
    sink: &mut impl Sink,
) {
    let mut first = 0;
    while first < starts.len() {
        let last = starts.len() - 1;
        let group: [u32; P] = std::array::from_fn(|p| starts[(first + p).min(last)]);
        let sums = tile::<P, L, FMA>(image, &group, steps, panel);
        sink.take(first, &sums);
        first += P;
    }
}

#[inline(always)]
fn by_lanes<const WIDE: usize, const NARROW: usize, const FMA: bool>(
    image: &[f32],
    starts: &[u32],
    steps: &[u32],
    panel: &[f32],
    lanes: usize,
    sink: &mut impl Sink,
) {
    match lanes {
        BLOCK => tiles::<WIDE, BLOCK, FMA>(image, starts, steps, panel, sink),
        _ => tiles::<NARROW, { BLOCK / 2 }, FMA>(image, starts, steps, panel, sink),
    }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn avx2(image: &[f32], starts: &[u32], steps: &[u32], panel: &[f32], lanes: usize, sink: &mut impl Sink) {
    by_lanes::<6, 12, true>(image, starts, steps, panel, lanes, sink);
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn avx512(image: &[f32], starts: &[u32], steps: &[u32], panel: &[f32], lanes: usize, sink: &mut impl Sink) {
    by_lanes::<12, 12, true>(image, starts, steps, panel, lanes, sink);
}

/// [`tile`]s of all `starts` with the fastest instructions there are.
///
/// # Panics
/// If a start plus a step is beyond the image.
pub fn run(image: &[f32], starts: &[u32], steps: &[u32], panel: &[f32], lanes: usize, sink: &mut impl Sink) {
    if starts.is_empty() || steps.is_empty() {
        return;
    }
    let reach = |indices: &[u32]| indices.iter().copied().max().unwrap_or(0) as usize;
    assert!(reach(starts) + reach(steps) < image.len(), "a tap is outside of the image");
    #[cfg(target_arch = "x86_64")]
    {
        if std::is_x86_feature_detected!("avx512f") {
            // SAFETY: the processor has the instructions.
            return unsafe { avx512(image, starts, steps, panel, lanes, sink) };
        }
        if std::is_x86_feature_detected!("avx2") && std::is_x86_feature_detected!("fma") {
            // SAFETY: the processor has the instructions.
            return unsafe { avx2(image, starts, steps, panel, lanes, sink) };
        }
    }
    #[cfg(target_arch = "aarch64")]
    by_lanes::<6, 12, true>(image, starts, steps, panel, lanes, sink);
    #[cfg(not(target_arch = "aarch64"))]
    by_lanes::<2, 4, false>(image, starts, steps, panel, lanes, sink);
}
