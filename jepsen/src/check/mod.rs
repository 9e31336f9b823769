//! Checkers: from a history to a verdict, with what is wrong shown as small as it can be.

pub mod append;
pub mod bank;
pub mod counter;
pub mod deadline;
pub mod graph;
pub mod linear;
pub mod listing;
pub mod queue;
pub mod register;
pub mod set;
pub mod ttl;
pub mod wr;

#[cfg(test)]
mod tests;

/// What a history says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Validity {
    Valid,
    Invalid,
    /// The search was cut off, or there was too little to look at.
    Unknown,
}

/// One thing that must not be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Anomaly {
    /// The name that the literature has for it, where it has one.
    pub class: String,
    /// One sentence.
    pub summary: String,
    /// The operations that prove it, in order.
    pub evidence: Vec<String>,
}

/// What one checker found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub anomalies: Vec<Anomaly>,
    /// Operations that were looked at.
    pub checked: usize,
    /// What could not be decided.
    pub undecided: Vec<String>,
    /// Figures worth printing.
    pub notes: Vec<String>,
}

impl Verdict {
    #[must_use]
    pub fn validity(&self) -> Validity {
        if !self.anomalies.is_empty() {
            Validity::Invalid
        } else if self.undecided.is_empty() {
            Validity::Valid
        } else {
            Validity::Unknown
        }
    }

    /// Joins what two checkers found in one history.
    #[must_use]
    pub fn and(mut self, other: Self) -> Self {
        self.anomalies.extend(other.anomalies);
        self.checked = self.checked.max(other.checked);
        self.undecided.extend(other.undecided);
        self.notes.extend(other.notes);
        self
    }

    pub(crate) fn found(
        &mut self,
        class: &str,
        summary: impl Into<String>,
        evidence: impl IntoIterator<Item = String>,
    ) {
        /// As many of one class as anybody reads.
        const OF_ONE_CLASS: usize = 5;
        let same = self
            .anomalies
            .iter()
            .filter(|anomaly| anomaly.class == class)
            .count();
        if same < OF_ONE_CLASS {
            self.anomalies.push(Anomaly {
                class: class.to_owned(),
                summary: summary.into(),
                evidence: evidence.into_iter().collect(),
            });
        }
    }

    /// Whether an anomaly of this class was found.
    #[must_use]
    pub fn has(&self, class: &str) -> bool {
        self.anomalies.iter().any(|anomaly| anomaly.class == class)
    }
}
