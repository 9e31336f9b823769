//! Known-good histories pass, known-bad ones fail, and each class of anomaly is found when planted:
//! by hand, and in random histories of stores that break one rule.

use std::collections::BTreeMap;

use proptest::prelude::*;
use rand::rngs::StdRng;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};

use super::deadline::Stall;
use super::*;
use crate::history::{Action, End, Fault, Key, Mop, Op};

fn op(process: u64, action: Action, called: u64, returned: u64, end: End) -> Op {
    Op {
        process,
        node: 1,
        action,
        called,
        returned,
        end,
        error: None,
        deadline_ms: None,
    }
}

fn txn(process: u64, mops: Vec<Mop>, called: u64, returned: u64) -> Op {
    op(process, Action::Txn(mops), called, returned, End::Ok)
}

fn read(value: Option<i64>, called: u64, returned: u64) -> Op {
    op(
        called,
        Action::Read { key: 0, value },
        called,
        returned,
        End::Ok,
    )
}

fn write(value: i64, called: u64, returned: u64, end: End) -> Op {
    op(
        called,
        Action::Write { key: 0, value },
        called,
        returned,
        end,
    )
}

fn cas(from: i64, to: i64, called: u64, returned: u64, end: End) -> Op {
    op(
        called,
        Action::Cas { key: 0, from, to },
        called,
        returned,
        end,
    )
}

fn registers(ops: &[Op]) -> Validity {
    register::check(ops, register::LIMIT).validity()
}

use Mop::{Append, List, Read, Write};

fn delete(called: u64, returned: u64, end: End) -> Op {
    op(called, Action::Delete { key: 0 }, called, returned, end)
}

fn create(value: i64, won: bool, called: u64, returned: u64, end: End) -> Op {
    let action = Action::Create { key: 0, value, won };
    op(called, action, called, returned, end)
}

fn put(value: i64, called: u64, returned: u64, end: End) -> Op {
    let action = Action::Add { key: 0, value };
    op(called, action, called, returned, end)
}

fn remove(value: i64, called: u64, returned: u64, end: End) -> Op {
    let action = Action::Remove { key: 0, value };
    op(called, action, called, returned, end)
}

fn lists(values: &[i64], called: u64, returned: u64) -> Op {
    let values = values.to_vec();
    let action = Action::Members { key: 0, values };
    op(called, action, called, returned, End::Ok)
}

#[test]
fn a_stale_read_after_an_acknowledged_write_is_not_linearizable() {
    let history = [
        write(1, 0, 10, End::Ok),
        write(2, 20, 30, End::Ok),
        read(Some(1), 40, 50),
    ];
    let verdict = register::check(&history, 1000);
    assert!(verdict.has("nonlinearizable"));
    assert_eq!(registers(&history[..2]), Validity::Valid);
}

#[test]
fn concurrent_writes_may_take_either_order_but_reads_must_agree() {
    let mut history = vec![
        write(1, 0, 30, End::Ok),
        write(2, 0, 30, End::Ok),
        read(Some(2), 40, 50),
    ];
    assert_eq!(registers(&history), Validity::Valid);
    history.push(read(Some(1), 60, 70));
    assert_eq!(registers(&history), Validity::Invalid);
}

#[test]
fn an_unknown_write_may_take_effect_late_or_never_but_a_refused_one_not_at_all() {
    let late = [
        write(1, 0, 10, End::Info),
        read(None, 20, 30),
        read(Some(1), 40, 50),
    ];
    assert_eq!(registers(&late), Validity::Valid);
    assert_eq!(registers(&late[..2]), Validity::Valid);
    let twice = [
        late.to_vec(),
        vec![write(2, 60, 70, End::Ok), read(Some(1), 80, 90)],
    ]
    .concat();
    assert_eq!(registers(&twice), Validity::Invalid);
    let refused = [write(1, 0, 10, End::Fail), read(Some(1), 20, 30)];
    assert_eq!(registers(&refused), Validity::Invalid);
}

#[test]
fn a_compare_and_set_needs_what_it_compares_with() {
    let good = [
        write(1, 0, 10, End::Ok),
        cas(1, 2, 20, 30, End::Ok),
        read(Some(2), 40, 50),
    ];
    assert_eq!(registers(&good), Validity::Valid);
    let two_winners = [
        write(1, 0, 10, End::Ok),
        cas(1, 2, 20, 60, End::Ok),
        cas(1, 3, 20, 60, End::Ok),
    ];
    assert_eq!(registers(&two_winners), Validity::Invalid);
    let unknown_winner = [
        write(1, 0, 10, End::Ok),
        cas(1, 2, 20, 60, End::Info),
        cas(2, 3, 20, 60, End::Ok),
    ];
    assert_eq!(registers(&unknown_winner), Validity::Valid);
}

#[test]
fn what_is_deleted_is_gone_until_it_is_written_again() {
    let mut history = vec![
        write(1, 0, 10, End::Ok),
        delete(20, 30, End::Ok),
        read(None, 40, 50),
        write(2, 60, 70, End::Ok),
        read(Some(2), 80, 90),
    ];
    assert_eq!(registers(&history), Validity::Valid);
    history.push(read(None, 100, 110));
    assert_eq!(registers(&history), Validity::Invalid);
    let stale = [history[..2].to_vec(), vec![read(Some(1), 40, 50)]].concat();
    assert_eq!(registers(&stale), Validity::Invalid);
    let refused = [
        write(1, 0, 10, End::Ok),
        delete(20, 30, End::Fail),
        read(None, 40, 50),
    ];
    assert_eq!(registers(&refused), Validity::Invalid);
    let unknown = [
        write(1, 0, 10, End::Ok),
        delete(20, 30, End::Info),
        read(Some(1), 40, 50),
        read(None, 60, 70),
    ];
    assert_eq!(registers(&unknown), Validity::Valid);
    let twice = [unknown.to_vec(), vec![read(Some(1), 80, 90)]].concat();
    assert_eq!(registers(&twice), Validity::Invalid);
}

/// What `If-None-Match: *` is for.
#[test]
fn of_those_who_create_what_is_absent_one_wins() {
    let one = [
        create(1, true, 0, 50, End::Ok),
        create(2, false, 0, 50, End::Ok),
        read(Some(1), 60, 70),
    ];
    assert_eq!(registers(&one), Validity::Valid);
    let two = [
        create(1, true, 0, 50, End::Ok),
        create(2, true, 0, 50, End::Ok),
    ];
    assert_eq!(registers(&two), Validity::Invalid);
    let usurped = [
        create(1, true, 0, 10, End::Ok),
        create(2, false, 20, 30, End::Ok),
        read(Some(2), 40, 50),
    ];
    assert_eq!(registers(&usurped), Validity::Invalid);
    let refused = [create(1, false, 0, 10, End::Fail), read(Some(1), 20, 30)];
    assert_eq!(registers(&refused), Validity::Invalid);
}

#[test]
fn who_does_not_create_lost_to_somebody_who_may_have_been_told_nothing() {
    let to_nobody = [create(1, false, 0, 10, End::Ok), read(None, 20, 30)];
    assert_eq!(registers(&to_nobody), Validity::Invalid);
    assert_eq!(registers(&to_nobody[..1]), Validity::Invalid);
    let to_the_unknown = [
        create(1, false, 0, 10, End::Info),
        create(2, false, 20, 30, End::Ok),
        read(Some(1), 40, 50),
    ];
    assert_eq!(registers(&to_the_unknown), Validity::Valid);
    // Also where nobody read what it lost to: an unknown write, too.
    assert_eq!(registers(&to_the_unknown[..2]), Validity::Valid);
    let to_a_write = [
        write(1, 0, 10, End::Info),
        create(2, false, 20, 30, End::Ok),
    ];
    assert_eq!(registers(&to_a_write), Validity::Valid);
    let after_it_was_gone = [
        write(1, 0, 10, End::Ok),
        delete(20, 30, End::Info),
        create(2, true, 40, 50, End::Ok),
    ];
    assert_eq!(registers(&after_it_was_gone), Validity::Valid);
}

/// Else each of them doubles what there is to try.
#[test]
fn unknown_outcomes_that_are_alike_cost_little() {
    let mut history = vec![write(1, 0, 10, End::Ok)];
    for nth in 0..20 {
        history.push(delete(20 + nth, 50, End::Info));
        history.push(create(100 + nth as i64, false, 20 + nth, 50, End::Info));
    }
    history.push(read(None, 60, 70));
    history.push(create(2, false, 80, 90, End::Ok));
    assert_eq!(
        register::check(&history, 10_000).validity(),
        Validity::Valid
    );
    history.push(read(Some(3), 100, 110));
    assert_eq!(
        register::check(&history, 10_000).validity(),
        Validity::Invalid
    );
}

#[test]
fn the_evidence_of_a_stale_read_is_no_more_than_it_takes() {
    let mut history = Vec::new();
    for n in 0..40 {
        let at = u64::try_from(n).unwrap() * 100;
        history.push(write(n, at, at + 10, End::Ok));
        history.push(read(Some(n), at + 20, at + 30));
    }
    history.push(read(Some(7), 4100, 4110));
    let verdict = register::check(&history, 100_000);
    let evidence = &verdict.anomalies[0].evidence;
    assert!(evidence.len() <= 3, "{evidence:#?}");
}

#[test]
fn dirty_writes_are_g0() {
    let history = [
        txn(1, vec![Append(1, 1), Append(2, 1)], 0, 100),
        txn(2, vec![Append(1, 2), Append(2, 2)], 0, 100),
        txn(3, vec![List(1, vec![1, 2]), List(2, vec![2, 1])], 200, 210),
    ];
    let verdict = append::check(&history);
    assert!(verdict.has("G0"), "{verdict:#?}");
}

#[test]
fn an_aborted_read_is_g1a() {
    let mut history = [
        txn(1, vec![Append(1, 1)], 0, 10),
        txn(2, vec![List(1, vec![1])], 20, 30),
    ];
    assert_eq!(append::check(&history).validity(), Validity::Valid);
    history[0].end = End::Fail;
    assert!(append::check(&history).has("G1a"));
    history[0].end = End::Info;
    assert_eq!(append::check(&history).validity(), Validity::Valid);
}

#[test]
fn an_intermediate_read_is_g1b() {
    let history = [
        txn(1, vec![Append(1, 1), Append(1, 2)], 0, 100),
        txn(2, vec![List(1, vec![1])], 0, 100),
        txn(3, vec![List(1, vec![1, 2])], 200, 210),
    ];
    assert!(append::check(&history).has("G1b"));
}

#[test]
fn circular_information_flow_is_g1c() {
    let history = [
        txn(1, vec![Append(1, 1), List(2, vec![1])], 0, 100),
        txn(2, vec![Append(2, 1), List(1, vec![1])], 0, 100),
    ];
    let verdict = append::check(&history);
    assert!(verdict.has("G1c"), "{verdict:#?}");
    assert!(!verdict.has("G0"));
}

#[test]
fn read_skew_is_g_single() {
    let history = [
        txn(1, vec![Append(1, 1), Append(2, 1)], 0, 100),
        txn(2, vec![List(1, vec![1]), List(2, vec![])], 0, 100),
        txn(3, vec![List(1, vec![1]), List(2, vec![1])], 200, 300),
    ];
    let verdict = append::check(&history);
    assert!(verdict.has("G-single"), "{verdict:#?}");
    let evidence = &verdict.anomalies[0].evidence;
    assert_eq!(evidence.len(), 4, "two transactions, two reasons");
}

#[test]
fn write_skew_is_g2_item() {
    let history = [
        txn(1, vec![List(1, vec![]), Append(2, 1)], 0, 100),
        txn(2, vec![List(2, vec![]), Append(1, 1)], 0, 100),
        txn(3, vec![List(1, vec![1]), List(2, vec![1])], 200, 300),
    ];
    let verdict = append::check(&history);
    assert!(verdict.has("G2-item"), "{verdict:#?}");
    assert!(!verdict.has("G-single"));
}

#[test]
fn a_stale_read_is_serializable_and_not_strictly() {
    let history = [
        txn(1, vec![Append(1, 1)], 0, 10),
        txn(2, vec![List(1, vec![])], 20, 30),
        txn(3, vec![List(1, vec![1])], 40, 50),
    ];
    let verdict = append::check(&history);
    assert!(verdict.has("G-single-realtime"), "{verdict:#?}");
    assert!(!verdict.has("G-single"));
}

#[test]
fn disagreeing_lists_duplicates_strangers_and_lost_appends_are_told_apart() {
    let a = txn(1, vec![Append(1, 1)], 0, 50);
    let b = txn(2, vec![Append(1, 2)], 0, 50);
    let sees = |list: &[i64], called| txn(called, vec![List(1, list.to_vec())], called, called + 5);
    let disagree = [a.clone(), b.clone(), sees(&[1, 2], 10), sees(&[2], 20)];
    assert!(append::check(&disagree).has("incompatible-order"));
    let twice = [a.clone(), sees(&[1, 1], 60)];
    assert!(append::check(&twice).has("duplicate-elements"));
    let stranger = [a.clone(), sees(&[1, 9], 60)];
    assert!(append::check(&stranger).has("unexpected-element"));
    let lost = [a, b, sees(&[2], 60)];
    assert!(append::check(&lost).has("lost-append"));
    let blind = [txn(1, vec![Append(1, 1), List(1, vec![])], 0, 5)];
    assert!(append::check(&blind).has("internal"));
}

#[test]
fn register_transactions_show_the_same_anomalies() {
    let lost_update = [
        txn(1, vec![Write(1, 1)], 0, 10),
        txn(2, vec![Read(1, Some(1)), Write(1, 2)], 20, 90),
        txn(3, vec![Read(1, Some(1)), Write(1, 3)], 20, 90),
        txn(4, vec![Read(1, Some(3))], 100, 110),
    ];
    assert_eq!(wr::check(&lost_update).validity(), Validity::Invalid);
    let skew = [
        txn(1, vec![Write(1, 1), Write(2, 1)], 0, 100),
        txn(2, vec![Read(1, Some(1)), Read(2, None)], 0, 100),
    ];
    assert!(wr::check(&skew).has("G-single"));
    let write_skew = [
        txn(1, vec![Read(1, None), Write(2, 1)], 0, 100),
        txn(2, vec![Read(2, None), Write(1, 1)], 0, 100),
    ];
    assert!(wr::check(&write_skew).has("G2-item"));
    let circular = [
        txn(1, vec![Write(1, 1), Read(2, Some(1))], 0, 100),
        txn(2, vec![Write(2, 1), Read(1, Some(1))], 0, 100),
    ];
    assert!(wr::check(&circular).has("G1c"));
    let intermediate = [
        txn(1, vec![Write(1, 1), Write(1, 2)], 0, 100),
        txn(2, vec![Read(1, Some(1))], 0, 100),
    ];
    assert!(wr::check(&intermediate).has("G1b"));
    let mut aborted = [
        txn(1, vec![Write(1, 1)], 0, 10),
        txn(2, vec![Read(1, Some(1))], 20, 30),
    ];
    assert_eq!(wr::check(&aborted).validity(), Validity::Valid);
    aborted[0].end = End::Fail;
    assert!(wr::check(&aborted).has("G1a"));
    let stale = [
        txn(1, vec![Write(1, 1)], 0, 10),
        txn(2, vec![Write(1, 2)], 20, 30),
        txn(3, vec![Read(1, Some(1))], 40, 50),
    ];
    assert_eq!(wr::check(&stale).validity(), Validity::Invalid);
    let blind = [txn(1, vec![Write(1, 1), Read(1, None)], 0, 5)];
    assert!(wr::check(&blind).has("internal"));
}

#[test]
fn a_bank_that_makes_or_loses_money_is_found() {
    let balances = |a, b, at| {
        let action = Action::Balances(vec![(0, a), (1, b)]);
        op(at, action, at, at + 5, End::Ok)
    };
    let transfer = |end, at| {
        let action = Action::Transfer {
            from: 0,
            to: 1,
            amount: 3,
        };
        op(at, action, at, at + 5, end)
    };
    let check = |ops: &[Op]| bank::check(ops, 2, 10);
    let good = [
        transfer(End::Ok, 0),
        transfer(End::Info, 0),
        balances(7, 13, 10),
    ];
    assert_eq!(check(&good).validity(), Validity::Valid);
    assert!(check(&[balances(7, 14, 0)]).has("wrong-total"));
    assert!(check(&[balances(-1, 21, 0)]).has("negative-balance"));
    assert!(check(&[transfer(End::Ok, 0), balances(10, 10, 10)]).has("lost-transfer"));
    assert!(check(&[transfer(End::Fail, 0), balances(7, 13, 10)]).has("lost-transfer"));
}

#[test]
fn a_counter_that_repeats_loses_adds_or_goes_back_is_found() {
    let increment = |value, end, at| op(at, Action::Increment { key: 0, value }, at, at + 5, end);
    let count = |value, at| op(at, Action::Count { key: 0, value }, at, at + 5, End::Ok);
    let good = [
        increment(1, End::Ok, 0),
        increment(0, End::Info, 0),
        count(1, 10),
        count(2, 20),
        increment(3, End::Ok, 30),
    ];
    assert_eq!(counter::check(&good).validity(), Validity::Valid);
    let twice = [increment(1, End::Ok, 0), increment(1, End::Ok, 0)];
    assert!(counter::check(&twice).has("duplicate-increment"));
    assert!(counter::check(&[increment(1, End::Ok, 0), count(0, 10)]).has("lost-increment"));
    assert!(counter::check(&[increment(1, End::Fail, 0), count(1, 10)]).has("extra-increment"));
    let back = [
        increment(0, End::Info, 0),
        increment(0, End::Info, 0),
        count(2, 10),
        count(1, 20),
    ];
    assert!(counter::check(&back).has("counter-went-back"));
}

#[test]
fn a_set_that_loses_or_invents_is_found() {
    let add = |value, end, at| op(at, Action::Add { key: 0, value }, at, at + 5, end);
    let members = |values: &[i64], at| {
        let values = values.to_vec();
        op(at, Action::Members { key: 0, values }, at, at + 5, End::Ok)
    };
    let good = [
        add(1, End::Ok, 0),
        add(2, End::Info, 0),
        members(&[1], 10),
        members(&[1, 2], 20),
    ];
    assert_eq!(set::check(&good).validity(), Validity::Valid);
    assert!(set::check(&[add(1, End::Ok, 0), members(&[], 10)]).has("lost-element"));
    assert!(set::check(&[add(1, End::Fail, 0), members(&[1], 10)]).has("refused-add-present"));
    assert!(set::check(&[members(&[1], 10)]).has("unexpected-element"));
    let flicker = [add(1, End::Info, 0), members(&[1], 10), members(&[], 20)];
    assert!(set::check(&flicker).has("lost-element"));
    assert!(set::check(&[members(&[1], 10), add(1, End::Ok, 20)]).has("future-read"));
}

#[test]
fn a_queue_that_loses_repeats_or_forgets_its_takers_is_found() {
    let put = |value, end, at| op(at, Action::Enqueue { key: 0, value }, at, at + 5, end);
    let take = |value, end, at, until| op(at, Action::Dequeue { key: 0, value }, at, until, end);
    let got = |value, at| take(Some(value), End::Ok, at, at + 5);
    let good = [
        put(1, End::Ok, 0),
        put(2, End::Ok, 10),
        got(1, 20),
        got(2, 30),
    ];
    assert_eq!(queue::check(&good).validity(), Validity::Valid);
    assert!(queue::check(&[put(1, End::Ok, 0), got(1, 10), got(1, 20)]).has("delivered-twice"));
    assert!(queue::check(&[put(1, End::Ok, 0)]).has("lost-element"));
    let perhaps = [put(1, End::Ok, 0), take(None, End::Info, 10, 20)];
    assert_eq!(queue::check(&perhaps).validity(), Validity::Valid);
    assert!(queue::check(&[put(1, End::Fail, 0), got(1, 10)]).has("refused-put-delivered"));
    assert!(queue::check(&[got(1, 10)]).has("unexpected-element"));
    let overtaken = [
        put(1, End::Ok, 0),
        put(2, End::Ok, 10),
        got(2, 20),
        got(1, 30),
    ];
    assert!(queue::check(&overtaken).has("overtaken"));
    let asleep = [put(1, End::Ok, 0), take(None, End::Ok, 10, 20), got(1, 30)];
    assert!(queue::check(&asleep).has("slept-through"));
}

#[test]
fn what_outlives_its_time_goes_early_or_comes_back_is_found() {
    let milli = 1_000_000;
    let set = |end| {
        let action = Action::Expiring {
            key: 0,
            value: 1,
            ttl_ms: 100,
        };
        op(0, action, 0, milli, end)
    };
    let at = |value, ms: u64| read(value, ms * milli, ms * milli + 1);
    let check = |ops: &[Op]| ttl::check(ops, Some(20));
    let good = [set(End::Ok), at(Some(1), 50), at(None, 150)];
    assert_eq!(check(&good).validity(), Validity::Valid);
    assert!(check(&[set(End::Ok), at(Some(1), 150)]).has("outlived"));
    assert!(check(&[set(End::Ok), at(None, 50)]).has("expired-early"));
    let back = [set(End::Ok), at(None, 105), at(Some(1), 110)];
    assert!(check(&back).has("resurrected"));
    assert!(ttl::check(&back, None).has("resurrected"));
    let early = [set(End::Ok), at(None, 50)];
    assert_eq!(ttl::check(&early, None).validity(), Validity::Valid);
    assert!(check(&[set(End::Fail), at(Some(1), 50)]).has("refused-write-read"));
}

#[test]
fn an_operation_that_ends_after_its_deadline_is_late_unless_its_node_was_silenced() {
    let milli = 1_000_000;
    let mut slow = read(None, 0, 300 * milli);
    slow.deadline_ms = Some(100);
    let history = [slow];
    assert!(deadline::check(&history, &[], &[]).has("late"));
    let fault = Fault {
        name: "pause".into(),
        detail: String::new(),
        silenced: vec![1],
        began: 0,
        ended: milli,
    };
    assert!(!deadline::check(&history, &[fault], &[]).has("late"));
    let stall = Stall {
        began: 0,
        ended: milli,
        late: 200 * milli,
    };
    assert!(!deadline::check(&history, &[], &[stall]).has("late"));
}

/// A rule that a planted store breaks.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Breaks {
    Nothing,
    /// Reads see the store as it was some transactions ago.
    StaleReads,
    /// A transaction's reads are of one moment, its writes of another.
    Snapshots,
    /// What was acknowledged is sometimes not applied.
    LosesWrites,
    /// What was refused is sometimes applied.
    AppliesRefused,
    /// Others see the middle of a transaction.
    Tears,
}

/// A random history of transactions over a few keys, run one after the other by a store that breaks
/// one rule; calls overlap as they do in life.
fn transactions(seed: u64, lists: bool, breaks: Breaks) -> Vec<Op> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut state: BTreeMap<Key, Vec<i64>> = BTreeMap::new();
    let mut states = vec![state.clone()];
    let mut ops = Vec::new();
    let mut next = 0;
    for nth in 0..200u64 {
        let before = state.clone();
        let seen = match breaks {
            Breaks::StaleReads if random.random_bool(0.2) => {
                states[states.len().saturating_sub(6)].clone()
            }
            Breaks::Snapshots => states[states.len().saturating_sub(1 + nth as usize % 3)].clone(),
            Breaks::Tears if random.random_bool(0.6) => {
                // Half of the keys as before the last transaction.
                let old = &states[states.len().saturating_sub(2)];
                let mut torn = state.clone();
                for key in 0..2 {
                    torn.insert(key, old.get(&key).cloned().unwrap_or_default());
                }
                torn
            }
            _ => state.clone(),
        };
        let mut view = seen;
        let mut mops = Vec::new();
        for _ in 0..random.random_range(1..5) {
            let key = random.random_range(0..4);
            let list = view.entry(key).or_default();
            if random.random_bool(0.5) {
                mops.push(if lists {
                    List(key, list.clone())
                } else {
                    Read(key, list.last().copied())
                });
            } else {
                next += 1;
                list.push(next);
                state.entry(key).or_default().push(next);
                mops.push(if lists {
                    Append(key, next)
                } else {
                    Write(key, next)
                });
            }
        }
        let mut end = match random.random_range(0..10) {
            0 => End::Info,
            1 => End::Fail,
            _ => End::Ok,
        };
        if nth > 197 {
            end = End::Ok;
        }
        match (end, breaks) {
            (End::Fail, Breaks::AppliesRefused) => {}
            (End::Fail, _) => state = before,
            (End::Info, _) if random.random_bool(0.5) => state = before,
            (End::Ok, Breaks::LosesWrites) if random.random_bool(0.1) => state = before,
            _ => {}
        }
        states.push(state.clone());
        // The point it takes effect at is in the middle.
        let at = 1000 + nth * 100;
        let (called, returned) = (
            at - random.random_range(1..400),
            at + random.random_range(1..400),
        );
        ops.push(op(nth, Action::Txn(mops), called, returned, end));
    }
    let all = (0..4)
        .map(|key| {
            let list = state.get(&key).cloned().unwrap_or_default();
            if lists {
                List(key, list)
            } else {
                Read(key, list.last().copied())
            }
        })
        .collect();
    ops.push(txn(999, all, 1_000_000, 1_000_010));
    ops
}

#[test]
fn a_store_that_breaks_one_rule_is_found_by_its_histories() {
    for (name, breaks) in [
        ("stale reads", Breaks::StaleReads),
        ("snapshots", Breaks::Snapshots),
        ("lost writes", Breaks::LosesWrites),
        ("refused and applied", Breaks::AppliesRefused),
        ("torn reads", Breaks::Tears),
    ] {
        let found = (0..20)
            .filter(|seed| {
                !append::check(&transactions(*seed, true, breaks))
                    .anomalies
                    .is_empty()
            })
            .count();
        // A broken rule may leave no trace: a tear that nobody looked at.
        assert!(
            found >= 17,
            "{name}: {found} of 20 found in list transactions"
        );
        let found = (0..20)
            .filter(|seed| {
                !wr::check(&transactions(*seed, false, breaks))
                    .anomalies
                    .is_empty()
            })
            .count();
        assert!(
            found >= 17,
            "{name}: {found} of 20 found in register transactions"
        );
    }
}

/// A random linearizable history of one register.
fn register_history(seed: u64, length: i64) -> Vec<Op> {
    let mut random = StdRng::seed_from_u64(seed);
    let mut state = None;
    let mut ops = Vec::new();
    for nth in 0..length {
        let at = 1000 + u64::try_from(nth).unwrap() * 100;
        let (called, returned) = (
            at - random.random_range(1..500),
            at + random.random_range(1..500),
        );
        let mut end = *[End::Ok, End::Ok, End::Ok, End::Ok, End::Info, End::Fail]
            .choose(&mut random)
            .unwrap();
        let happens = end == End::Ok || (end == End::Info && random.random_bool(0.5));
        let action = match (random.random_range(0..6), state) {
            (0, _) => Action::Write { key: 0, value: nth },
            (1, Some(from)) => Action::Cas {
                key: 0,
                from,
                to: nth,
            },
            (2, _) => Action::Delete { key: 0 },
            (3, _) => Action::Create {
                key: 0,
                value: nth,
                won: end == End::Ok && state.is_none(),
            },
            _ => Action::Read {
                key: 0,
                value: state,
            },
        };
        match action {
            Action::Write { value, .. } if happens => state = Some(value),
            Action::Cas { to, .. } if happens => state = Some(to),
            Action::Delete { .. } if happens => state = None,
            Action::Create { value, .. } if happens => state = state.or(Some(value)),
            Action::Read { .. } => end = End::Ok,
            _ => {}
        }
        ops.push(op(
            u64::try_from(nth).unwrap(),
            action,
            called,
            returned,
            end,
        ));
    }
    ops
}

#[test]
fn a_changed_answer_makes_a_register_history_impossible() {
    for seed in 0..50 {
        let mut history = register_history(seed, 40);
        let at = 20_000_000;
        history.push(read(Some(77_777), at, at + 1));
        assert_eq!(registers(&history), Validity::Invalid, "seed {seed}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(60))]

    #[test]
    fn serial_list_transactions_pass(seed: u64) {
        let verdict = append::check(&transactions(seed, true, Breaks::Nothing));
        prop_assert_eq!(verdict.anomalies, vec![]);
    }

    #[test]
    fn serial_register_transactions_pass(seed: u64) {
        let verdict = wr::check(&transactions(seed, false, Breaks::Nothing));
        prop_assert_eq!(verdict.anomalies, vec![]);
    }

    #[test]
    fn linearizable_register_histories_pass(seed: u64) {
        prop_assert_eq!(registers(&register_history(seed, 120)), Validity::Valid);
    }
}

#[test]
fn a_listing_has_what_was_put_and_not_what_was_deleted() {
    let good = [
        put(1, 0, 10, End::Ok),
        put(2, 0, 100, End::Ok),
        put(3, 0, 100, End::Info),
        lists(&[1], 20, 30),
        lists(&[1, 2], 20, 30),
        remove(1, 40, 60, End::Ok),
        lists(&[1, 2, 3], 50, 55),
        lists(&[2, 3], 50, 55),
        lists(&[2, 3], 70, 80),
        remove(3, 110, 120, End::Info),
        lists(&[2, 3], 130, 140),
        lists(&[2], 130, 140),
        remove(2, 150, 160, End::Fail),
        lists(&[2], 170, 180),
    ];
    assert_eq!(
        listing::check(&good),
        Verdict {
            checked: good.len(),
            ..Verdict::default()
        }
    );
}

#[test]
fn a_listing_that_is_not_of_its_time_is_found() {
    let put_1 = put(1, 0, 10, End::Ok);
    let cases: [(&str, Vec<Op>); 10] = [
        ("lost-object", vec![lists(&[], 20, 30)]),
        (
            "lost-object",
            vec![remove(1, 20, 30, End::Fail), lists(&[], 40, 50)],
        ),
        (
            "lost-object",
            vec![lists(&[], 20, 30), remove(1, 40, 50, End::Ok)],
        ),
        (
            "lost-object",
            vec![
                put(2, 0, 10, End::Info),
                lists(&[1, 2], 20, 30),
                lists(&[1], 40, 50),
            ],
        ),
        (
            "came-back",
            vec![remove(1, 20, 30, End::Ok), lists(&[1], 40, 50)],
        ),
        (
            "came-back",
            vec![
                remove(1, 20, 30, End::Info),
                lists(&[], 40, 50),
                lists(&[1], 60, 70),
            ],
        ),
        ("unexpected-object", vec![lists(&[1, 7], 20, 30)]),
        (
            "refused-put-listed",
            vec![put(2, 0, 10, End::Fail), lists(&[1, 2], 20, 30)],
        ),
        (
            "future-listing",
            vec![lists(&[1, 2], 20, 30), put(2, 40, 50, End::Ok)],
        ),
        ("listed-twice", vec![lists(&[1, 1], 20, 30)]),
    ];
    for (class, mut history) in cases {
        history.insert(0, put_1.clone());
        let verdict = listing::check(&history);
        let classes: Vec<&str> = verdict.anomalies.iter().map(|a| a.class.as_str()).collect();
        assert_eq!(classes, [class], "{history:?}");
    }
}
