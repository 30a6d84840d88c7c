/// The value tables of one code: the value of a state is `low[state & 15] + high[state >> 4]`.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Table {
    /// Values of the state's low nibble.
    pub low: [i8; 16],
    /// Values of the state's high nibble.
    pub high: [i8; 16],
    /// Value units of one standard deviation: Gaussian data of unit variance times `sigma` is what the tables fit.
    pub sigma: f32,
}

impl Table {
    /// The value of a state, in `-127..=127`.
    pub const fn value(&self, state: u8) -> i8 {
        self.low[(state & 15) as usize] + self.high[(state >> 4) as usize]
    }
}
