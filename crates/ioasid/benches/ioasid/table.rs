//! What was measured, what it is compared with, and what was to be reached.

use serde::Serialize;

/// Whether an operation waits for the one before it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Mode {
    Latency,
    Throughput,
}

/// What a row is to reach.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Goal {
    most: f64,
    of: Of,
}

#[derive(Clone, Copy, Debug)]
enum Of {
    Nanoseconds,
    Limit,
    Peer(&'static str),
}

impl Goal {
    pub(crate) const fn below(ns: f64) -> Self {
        Self { most: ns, of: Of::Nanoseconds }
    }

    pub(crate) const fn times_limit(times: f64) -> Self {
        Self { most: times, of: Of::Limit }
    }

    pub(crate) const fn times_peer(peer: &'static str, times: f64) -> Self {
        Self { most: times, of: Of::Peer(peer) }
    }
}

/// One operation's time, with its peers'.
#[derive(Clone, Debug)]
pub(crate) struct Row {
    name: &'static str,
    mode: Mode,
    size: usize,
    threads: usize,
    ns: f64,
    peers: Vec<(&'static str, f64)>,
    limit_ns: Option<f64>,
    goal: Option<Goal>,
}

impl Row {
    pub(crate) fn new(name: &'static str, mode: Mode, size: usize, ns: f64) -> Self {
        Self { name, mode, size, threads: 1, ns, peers: Vec::new(), limit_ns: None, goal: None }
    }

    pub(crate) fn threads(self, threads: usize) -> Self {
        Self { threads, ..self }
    }

    pub(crate) fn peers(self, peers: impl IntoIterator<Item = (&'static str, f64)>) -> Self {
        Self { peers: peers.into_iter().collect(), ..self }
    }

    pub(crate) fn limit(self, ns: f64) -> Self {
        Self { limit_ns: Some(ns), ..self }
    }

    pub(crate) fn goal(self, goal: Goal) -> Self {
        Self { goal: Some(goal), ..self }
    }

    fn time_of(&self, name: &str) -> Option<f64> {
        self.peers.iter().find(|(peer, _)| *peer == name).map(|&(_, ns)| ns)
    }

    /// What was reached in the goal's measure; `None` without a goal.
    fn reached(&self) -> Option<(f64, Goal)> {
        let goal = self.goal?;
        let value = match goal.of {
            Of::Nanoseconds => self.ns,
            Of::Limit => self.ns / self.limit_ns?,
            Of::Peer(peer) => self.ns / self.time_of(peer)?,
        };
        Some((value, goal))
    }

    fn misses(&self) -> bool {
        self.reached().is_some_and(|(value, goal)| value > goal.most)
    }

    fn verdict(&self) -> String {
        let Some((value, goal)) = self.reached() else { return String::new() };
        let met = if self.misses() { "MISSED" } else { "met" };
        match goal.of {
            Of::Nanoseconds => format!("at most {} ns: {met}", goal.most),
            Of::Limit => format!("{value:.2} of the limit, at most {}: {met}", goal.most),
            Of::Peer(peer) => format!("{value:.2} of {peer}, at most {}: {met}", goal.most),
        }
    }
}

/// All rows of a run.
#[derive(Debug, Default)]
pub(crate) struct Table(Vec<Row>);

/// One line of `--json`: a row beside one of its peers.
#[derive(Serialize)]
struct Record {
    name: &'static str,
    mode: Mode,
    size: usize,
    threads: usize,
    ns: f64,
    peer: Option<&'static str>,
    peer_ns: Option<f64>,
    limit_ns: Option<f64>,
}

impl Table {
    pub(crate) fn add(&mut self, row: Row) {
        self.0.push(row);
    }

    /// Rows that missed what they were to reach.
    pub(crate) fn missed(&self) -> usize {
        self.0.iter().filter(|row| row.misses()).count()
    }

    pub(crate) fn print(&self) {
        let head = ("operation", "mode", "live", "threads", "ns", "limit");
        println!(
            "{:<30} {:<10} {:>8} {:>7} {:>8} {:>8}  goal",
            head.0, head.1, head.2, head.3, head.4, head.5
        );
        for row in &self.0 {
            let mode = if row.mode == Mode::Latency { "latency" } else { "throughput" };
            let limit = row.limit_ns.map_or(String::new(), |ns| format!("{ns:.1}"));
            println!(
                "{:<30} {mode:<10} {:>8} {:>7} {:>8.1} {limit:>8}  {}",
                row.name,
                row.size,
                row.threads,
                row.ns,
                row.verdict()
            );
            let peers: Vec<_> =
                row.peers.iter().map(|(name, ns)| format!("{name} {ns:.1}")).collect();
            if !peers.is_empty() {
                println!("{:<30} {}", "", peers.join(", "));
            }
        }
    }

    pub(crate) fn print_json(&self) -> serde_json::Result<()> {
        let record = |row: &Row, peer: Option<(&'static str, f64)>| Record {
            name: row.name,
            mode: row.mode,
            size: row.size,
            threads: row.threads,
            ns: row.ns,
            peer: peer.map(|(name, _)| name),
            peer_ns: peer.map(|(_, ns)| ns),
            limit_ns: row.limit_ns,
        };
        let mut records = Vec::new();
        for row in &self.0 {
            if row.peers.is_empty() {
                records.push(record(row, None));
            }
            records.extend(row.peers.iter().map(|&peer| record(row, Some(peer))));
        }
        println!("{}", serde_json::to_string(&records)?);
        Ok(())
    }
}
