//! What one generator thread measures inside the measuring window: counts, latencies, both over time.
//!
//! Times are nanoseconds of the run's clock. `enter` is called once per batch with the batch's arrival
//! time; what arrives outside the window is not recorded (order and loss are checked all the same).

use hdrhistogram::Histogram;

/// Longest latency that is told apart, in nanoseconds (two minutes).
const LATENCY_NS_MAX: u64 = 120_000_000_000;

/// A histogram of nanoseconds with three significant digits.
pub fn histogram() -> Histogram<u64> {
    match Histogram::new_with_bounds(1, LATENCY_NS_MAX, 3) {
        Ok(histogram) => histogram,
        Err(error) => unreachable!("constant bounds are valid: {error}"),
    }
}

/// The measuring window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Span {
    /// First nanosecond.
    pub from_ns: u64,
    /// First nanosecond after it.
    pub to_ns: u64,
    /// Length of the intervals that it is cut into.
    pub interval_ns: u64,
}

impl Span {
    /// At most 60 intervals, none under 100 ms.
    pub fn new(from_ns: u64, duration_ns: u64) -> Self {
        let interval_ns = (duration_ns / 60).max(100_000_000).min(duration_ns.max(1));
        Self {
            from_ns,
            to_ns: from_ns + duration_ns,
            interval_ns,
        }
    }

    /// Index of the interval that holds `now_ns`.
    pub fn interval(&self, now_ns: u64) -> Option<usize> {
        (self.from_ns..self.to_ns)
            .contains(&now_ns)
            .then(|| ((now_ns - self.from_ns) / self.interval_ns) as usize)
    }
}

/// Deliveries and their latencies in one interval.
#[derive(Clone)]
pub struct Interval {
    /// Messages delivered.
    pub deliveries: u64,
    /// Connections made ready.
    pub connects: u64,
    /// From send to delivery.
    pub latency: Histogram<u64>,
}

impl Default for Interval {
    fn default() -> Self {
        Self {
            deliveries: 0,
            connects: 0,
            latency: histogram(),
        }
    }
}

/// Everything one thread measured.
#[derive(Clone)]
pub struct Meter {
    span: Span,
    active: Option<usize>,
    /// Per interval.
    pub intervals: Vec<Interval>,
    /// Messages published.
    pub published: u64,
    /// Acks received.
    pub acked: u64,
    /// From send to the last subscriber.
    pub completion: Histogram<u64>,
    /// From send to the publisher's ack, or the HTTP response.
    pub ack: Histogram<u64>,
    /// From connect (or when it was due) to ready.
    pub connect: Histogram<u64>,
}

impl Default for Meter {
    fn default() -> Self {
        Self {
            span: Span::default(),
            active: None,
            intervals: Vec::new(),
            published: 0,
            acked: 0,
            completion: histogram(),
            ack: histogram(),
            connect: histogram(),
        }
    }
}

impl Meter {
    /// Sets the window; what was recorded under another one is dropped.
    pub fn start(&mut self, span: Span) {
        let count = (span.to_ns - span.from_ns).div_ceil(span.interval_ns.max(1)) as usize;
        *self = Self {
            span,
            intervals: vec![Interval::default(); count],
            ..Self::default()
        };
    }

    /// The window.
    pub fn span(&self) -> Span {
        self.span
    }

    /// What follows happened at `now_ns`.
    pub fn enter(&mut self, now_ns: u64) {
        self.active = self.span.interval(now_ns);
    }

    /// A delivery with this latency.
    pub fn delivery(&mut self, latency_ns: u64) {
        if let Some(interval) = self.active.and_then(|index| self.intervals.get_mut(index)) {
            interval.deliveries += 1;
            interval.latency.saturating_record(latency_ns.max(1));
        }
    }

    /// A publish.
    pub fn publish(&mut self) {
        self.published += u64::from(self.active.is_some());
    }

    /// A message reached its last subscriber.
    pub fn completion(&mut self, latency_ns: u64) {
        if self.active.is_some() {
            self.completion.saturating_record(latency_ns.max(1));
        }
    }

    /// An ack or HTTP response.
    pub fn ack(&mut self, latency_ns: u64) {
        if self.active.is_some() {
            self.acked += 1;
            self.ack.saturating_record(latency_ns.max(1));
        }
    }

    /// A connection became ready.
    pub fn connect(&mut self, latency_ns: u64) {
        if let Some(interval) = self.active.and_then(|index| self.intervals.get_mut(index)) {
            interval.connects += 1;
            self.connect.saturating_record(latency_ns.max(1));
        }
    }

    /// Adds what another thread measured in the same window.
    pub fn merge(&mut self, other: &Self) {
        if self.intervals.len() < other.intervals.len() {
            self.intervals
                .resize(other.intervals.len(), Interval::default());
            self.span = other.span;
        }
        for (mine, theirs) in self.intervals.iter_mut().zip(&other.intervals) {
            mine.deliveries += theirs.deliveries;
            mine.connects += theirs.connects;
            mine.latency += &theirs.latency;
        }
        self.published += other.published;
        self.acked += other.acked;
        self.completion += &other.completion;
        self.ack += &other.ack;
        self.connect += &other.connect;
    }

    /// Latencies of the whole window.
    pub fn latency(&self) -> Histogram<u64> {
        let mut total = histogram();
        for interval in &self.intervals {
            total += &interval.latency;
        }
        total
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_window_counts() {
        let mut meter = Meter::default();
        meter.delivery(5);
        meter.start(Span::new(1_000_000_000, 1_000_000_000));
        for (now, latency) in [
            (999_999_999, 1),
            (1_000_000_000, 2),
            (1_950_000_000, 3),
            (2_000_000_000, 4),
        ] {
            meter.enter(now);
            meter.delivery(latency);
            meter.publish();
        }
        assert_eq!(
            meter
                .intervals
                .iter()
                .map(|i| i.deliveries)
                .collect::<Vec<_>>(),
            [1, 0, 0, 0, 0, 0, 0, 0, 0, 1]
        );
        assert_eq!(
            (
                meter.published,
                meter.latency().min(),
                meter.latency().max()
            ),
            (2, 2, 3)
        );
    }

    #[test]
    fn merging_adds_up() {
        let mut a = Meter::default();
        let mut b = Meter::default();
        b.start(Span::new(0, 1_000_000_000));
        b.enter(0);
        b.delivery(10);
        b.ack(7);
        a.merge(&b);
        a.merge(&b);
        assert_eq!(
            (a.latency().len(), a.acked, a.intervals[0].deliveries),
            (2, 2, 2)
        );
    }

    #[test]
    fn long_runs_have_sixty_intervals() {
        assert_eq!(Span::new(0, 120_000_000_000).interval_ns, 2_000_000_000);
        assert_eq!(Span::new(0, 50_000_000).interval_ns, 50_000_000);
    }
}
