//! Is a history of a register linearizable? Wing and Gong's search with Lowe's memory (*Testing for
//! linearizability*, 2017): try each operation that may come next, remember what was tried.

use std::collections::HashSet;
use std::time::Duration;

use crate::history::{Action, Ended, Event};

/// Checks one key's history, an absent register at first. `Ok(false)`: not linearizable.
///
/// # Errors
/// The search went beyond `limit` states: no verdict.
pub(crate) fn linearizable(events: &[Event], limit: usize) -> Result<bool, String> {
    // A refused operation did nothing; a read of unknown outcome says nothing.
    let mut events: Vec<Event> = events
        .iter()
        .filter(|event| match (event.ended, event.action) {
            (Ended::Fail, _) | (Ended::Info, Action::Read(_)) => false,
            (Ended::Ok, _) | (Ended::Info, Action::Write(_)) => true,
        })
        .copied()
        .collect();
    for event in &mut events {
        if event.ended == Ended::Info {
            // It may take effect at any time, or never.
            event.returned = Duration::MAX;
        }
    }
    events.sort_by_key(|event| event.called);
    let required = events
        .iter()
        .filter(|event| event.ended == Ended::Ok)
        .count();
    let mut search = Search {
        events: &events,
        tried: HashSet::new(),
        limit,
        required,
    };
    search.run()
}

struct Search<'a> {
    events: &'a [Event],
    /// Operations done (as bits) and the register's value.
    tried: HashSet<(Vec<u64>, Option<u64>)>,
    limit: usize,
    required: usize,
}

struct Frame {
    done: Vec<u64>,
    acknowledged: usize,
    value: Option<u64>,
    /// The next operation to try from here.
    next: usize,
}

fn is_done(done: &[u64], nth: usize) -> bool {
    done[nth / 64] >> (nth % 64) & 1 == 1
}

impl Search<'_> {
    fn run(&mut self) -> Result<bool, String> {
        let start = Frame {
            done: vec![0; self.events.len().div_ceil(64).max(1)],
            acknowledged: 0,
            value: None,
            next: 0,
        };
        let mut stack = vec![start];
        while let Some(top) = stack.last_mut() {
            if top.acknowledged == self.required {
                return Ok(true);
            }
            let Some((nth, value)) = self.candidate(top) else {
                stack.pop();
                continue;
            };
            top.next = nth + 1;
            let mut done = top.done.clone();
            done[nth / 64] |= 1 << (nth % 64);
            let acknowledged = top.acknowledged + usize::from(self.events[nth].ended == Ended::Ok);
            if self.tried.insert((done.clone(), value)) {
                if self.tried.len() > self.limit {
                    return Err(format!("no verdict within {} states", self.limit));
                }
                stack.push(Frame {
                    done,
                    acknowledged,
                    value,
                    next: 0,
                });
            }
        }
        Ok(false)
    }

    /// The next operation that may come first of those not done, and the value after it.
    fn candidate(&self, frame: &Frame) -> Option<(usize, Option<u64>)> {
        let open = || {
            self.events
                .iter()
                .enumerate()
                .filter(|(nth, _)| !is_done(&frame.done, *nth))
        };
        // Nothing may come before an operation that had returned when it was called.
        let first_return = open().map(|(_, event)| event.returned).min()?;
        open()
            .filter(|(nth, event)| *nth >= frame.next && event.called <= first_return)
            .find_map(|(nth, event)| match event.action {
                Action::Write(value) => Some((nth, Some(value))),
                Action::Read(value) => (value == frame.value).then_some((nth, value)),
            })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn event(action: Action, called: u64, returned: u64, ended: Ended) -> Event {
        let (called, returned) = (
            Duration::from_millis(called),
            Duration::from_millis(returned),
        );
        Event {
            process: 0,
            key: 0,
            action,
            called,
            returned,
            ended,
        }
    }

    #[test]
    fn a_stale_read_after_an_acknowledged_write_is_found() {
        let history = [
            event(Action::Write(1), 0, 10, Ended::Ok),
            event(Action::Write(2), 20, 30, Ended::Ok),
            event(Action::Read(Some(1)), 40, 50, Ended::Ok),
        ];
        assert_eq!(linearizable(&history, 1000), Ok(false));
    }

    #[test]
    fn concurrent_writes_may_take_either_order_but_reads_must_agree() {
        let mut history = vec![
            event(Action::Write(1), 0, 30, Ended::Ok),
            event(Action::Write(2), 0, 30, Ended::Ok),
            event(Action::Read(Some(2)), 40, 50, Ended::Ok),
        ];
        assert_eq!(linearizable(&history, 1000), Ok(true));
        history.push(event(Action::Read(Some(1)), 60, 70, Ended::Ok));
        assert_eq!(linearizable(&history, 1000), Ok(false));
    }

    #[test]
    fn an_unknown_write_may_take_effect_late_or_never_but_a_refused_one_not_at_all() {
        let late = [
            event(Action::Write(1), 0, 10, Ended::Info),
            event(Action::Read(None), 20, 30, Ended::Ok),
            event(Action::Read(Some(1)), 40, 50, Ended::Ok),
        ];
        assert_eq!(linearizable(&late, 1000), Ok(true));
        assert_eq!(linearizable(&late[..2], 1000), Ok(true));
        let refused = [
            event(Action::Write(1), 0, 10, Ended::Fail),
            event(Action::Read(Some(1)), 40, 50, Ended::Ok),
        ];
        assert_eq!(linearizable(&refused, 1000), Ok(false));
    }
}
