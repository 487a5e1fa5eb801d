//! Processes that take a whole CPU for a long time, as a miner does.

use std::collections::HashMap;

use crate::processes::{self, Processes};

/// Of one CPU, in every interval of the window.
const BUSY_PERCENT: u64 = 90;
const INTERVALS: u64 = 6;
/// A process is told again after so many windows.
const SILENT_WINDOWS: u64 = 10;
const TICK_NS: u64 = 10_000_000;

/// A process that was busy for the whole window.
#[derive(Debug, PartialEq, Eq)]
pub struct Busy {
    pub pid: i32,
    pub percent: u64,
    pub seconds: u64,
}

struct Seen {
    ticks: u64,
    at_ns: u64,
    first_ticks: u64,
    first_ns: u64,
    intervals: u64,
    silent_until_ns: u64,
}

/// Looks at all processes that were started, a few times in each window.
pub struct Load {
    window_ns: u64,
    next_ns: Option<u64>,
    seen: HashMap<i32, Seen>,
}

impl Load {
    /// `window_s`: how long a process must be busy, in seconds.
    pub fn new(window_s: u64) -> Load {
        Load { window_ns: window_s * 1_000_000_000, next_ns: None, seen: HashMap::new() }
    }

    /// When to look next; None while there is no process.
    pub fn deadline_ns(&self) -> Option<u64> {
        self.next_ns
    }

    /// Looks, if it is time. Who was busy for a window.
    pub fn sample(&mut self, now_ns: u64, known: &mut Processes) -> Vec<Busy> {
        match self.next_ns {
            Some(at) if at > now_ns => return Vec::new(),
            _ => {}
        }
        // Who has ended need not be looked at again.
        known.forget_ended();
        let times: Vec<(i32, u64)> =
            known.pids().filter_map(|pid| processes::cpu_ticks(pid).map(|ticks| (pid, ticks))).collect();
        self.next_ns = if times.is_empty() { None } else { Some(now_ns + self.window_ns / INTERVALS) };
        self.compare(now_ns, &times)
    }

    fn compare(&mut self, now_ns: u64, times: &[(i32, u64)]) -> Vec<Busy> {
        self.seen.retain(|pid, _| times.iter().any(|(p, _)| p == pid));
        let mut busy = Vec::new();
        for (pid, ticks) in times {
            let fresh = Seen {
                ticks: *ticks,
                at_ns: now_ns,
                first_ticks: *ticks,
                first_ns: now_ns,
                intervals: 0,
                silent_until_ns: 0,
            };
            let seen = self.seen.entry(*pid).or_insert(fresh);
            if seen.at_ns == now_ns {
                continue;
            }
            let percent = percent(ticks.saturating_sub(seen.ticks), now_ns - seen.at_ns);
            seen.ticks = *ticks;
            seen.at_ns = now_ns;
            if percent < BUSY_PERCENT {
                seen.intervals = 0;
                seen.first_ticks = *ticks;
                seen.first_ns = now_ns;
                continue;
            }
            seen.intervals += 1;
            if seen.intervals >= INTERVALS && seen.silent_until_ns <= now_ns {
                let window_ns = now_ns - seen.first_ns;
                let percent = self::percent(ticks - seen.first_ticks, window_ns);
                busy.push(Busy { pid: *pid, percent, seconds: window_ns / 1_000_000_000 });
                seen.silent_until_ns = now_ns + SILENT_WINDOWS * self.window_ns;
            }
        }
        busy
    }
}

fn percent(ticks: u64, ns: u64) -> u64 {
    ticks.saturating_mul(TICK_NS).saturating_mul(100) / ns.max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_is_busy_all_the_time_is_told_and_once() {
        let mut load = Load::new(60);
        let mut told = Vec::new();
        for interval in 0..40u64 {
            let now = (interval + 1) * 10_000_000_000;
            let pauses = if interval % 5 == 0 { 0 } else { 1000 };
            let times = [(1, interval * 1000), (2, 5), (3, interval * pauses)];
            told.extend(load.compare(now, &times));
        }
        assert_eq!(told, vec![Busy { pid: 1, percent: 100, seconds: 60 }]);
    }

    #[test]
    fn a_process_that_ends_is_forgotten() {
        let mut load = Load::new(60);
        load.compare(1, &[(1, 0)]);
        load.compare(2, &[]);
        assert!(load.seen.is_empty());
    }
}
