//! Times of interleaved rounds, and ratios of them.

/// What one contender came to, a figure for each round.
pub struct Rounds(pub Vec<f64>);

impl Rounds {
    fn sorted(&self) -> Vec<f64> {
        let mut sorted = self.0.clone();
        sorted.sort_by(f64::total_cmp);
        sorted
    }

    pub fn median(&self) -> f64 {
        let sorted = self.sorted();
        let mid = sorted.len() / 2;
        if sorted.len() % 2 == 1 { sorted[mid] } else { (sorted[mid - 1] + sorted[mid]) / 2.0 }
    }

    /// Minimum, median and maximum.
    pub fn spread(&self) -> String {
        let sorted = self.sorted();
        let (low, high) = (sorted[0], sorted[sorted.len() - 1]);
        format!("{:.1} ({low:.1} to {high:.1})", self.median())
    }
}

/// Whether a ratio is to stay below its bar or above it.
#[derive(Clone, Copy)]
pub enum Bar {
    AtMost(f64),
    AtLeast(f64),
    /// Shown for comparison only.
    None,
}

impl Bar {
    fn verdict(self, ratio: f64) -> String {
        match self {
            Bar::AtMost(bar) if ratio <= bar => format!("<= {bar}, met"),
            Bar::AtMost(bar) => format!("<= {bar}, MISSED"),
            Bar::AtLeast(bar) if ratio >= bar => format!(">= {bar}, met"),
            Bar::AtLeast(bar) => format!(">= {bar}, MISSED"),
            Bar::None => String::new(),
        }
    }
}

/// Prints a contender's ratio to a peer: of the medians, and the range over rounds.
pub fn ratio(what: &str, ours: &Rounds, peer: &str, theirs: &Rounds, bar: Bar) {
    let of_rounds: Vec<f64> = ours.0.iter().zip(&theirs.0).map(|(a, b)| a / b).collect();
    let of_rounds = Rounds(of_rounds).sorted();
    let ratio = ours.median() / theirs.median();
    println!(
        "  {what:<44} {ratio:>6.3} x {peer:<22} ({:.3} to {:.3})  {}",
        of_rounds[0],
        of_rounds[of_rounds.len() - 1],
        bar.verdict(ratio)
    );
}

pub fn figure(name: &str, rounds: &Rounds, unit: &str) {
    println!("  {name:<24} {} {unit}", rounds.spread());
}
