//! Choices out of bytes: what a fuzzer or a seed gives, in order. When the bytes are over, each choice is the first one.

pub struct Chance<'a> {
    bytes: &'a [u8],
}

impl<'a> Chance<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        Self { bytes }
    }

    pub fn is_over(&self) -> bool {
        self.bytes.is_empty()
    }

    /// The next `length` bytes, or what is left.
    pub fn take(&mut self, length: usize) -> &'a [u8] {
        let (taken, rest) = self.bytes.split_at(length.min(self.bytes.len()));
        self.bytes = rest;
        taken
    }

    pub fn byte(&mut self) -> u8 {
        self.take(1).first().copied().unwrap_or(0)
    }

    /// A number below `bound`, of as few bytes as it needs.
    pub fn below(&mut self, bound: u32) -> u32 {
        let width = match bound {
            0..=0x100 => 1,
            0x101..=0x1_0000 => 2,
            _ => 4,
        };
        let number = self.take(width).iter().fold(0, |number, byte| number << 8 | u32::from(*byte));
        number % bound.max(1)
    }

    /// Once in `times`.
    pub fn one_in(&mut self, times: u32) -> bool {
        self.below(times) + 1 == times
    }

    pub fn one_of<T: Copy>(&mut self, choices: &[T]) -> T {
        choices[self.below(choices.len() as u32) as usize]
    }
}

/// As many random bytes as `seed` says, up to `longest`.
pub fn random(seed: u64, longest: usize) -> Vec<u8> {
    let mut rng = fastrand::Rng::with_seed(seed);
    let mut bytes = vec![0; rng.usize(0..=longest)];
    rng.fill(&mut bytes);
    bytes
}
