//! What threads, processes and forks do with shared words, in every order of their steps: loom runs the product's own rooms over its
//! atomics, which give whatever the memory model allows. Each rule has broken variants, made of the same pieces without one step, that
//! the checker must catch.
//!
//! An order may leave a thread that could go on twice; `LOOM_MAX_PREEMPTIONS` sets another number, `LOOM_MAX_DURATION` the seconds that
//! each model has.
#![allow(dead_code, unused_imports, reason = "the rooms of the product are here as a whole")]
#![allow(unsafe_code, reason = "values of a process are behind pointers")]
#![allow(clippy::unwrap_used, reason = "a test")]

#[path = "../../src/format.rs"]
mod format;
#[path = "../../src/hook.rs"]
mod hook;
#[path = "../../src/ledger.rs"]
mod ledger;
#[path = "../../src/sys/lineage.rs"]
mod lineage;
#[path = "../../src/session.rs"]
mod session;
#[path = "../../src/word.rs"]
mod word;

mod budgets;
mod death;
mod forks;
mod pages;
mod sessions;
mod sync;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

/// Runs a model in every order; returns in how many. The parts go in threads that the model spawns: loom does not move what its main
/// thread does first after a spawn.
fn explore(model: impl Fn() + Send + Sync + 'static) -> u64 {
    let orders = Arc::new(AtomicU64::new(0));
    let count = Arc::clone(&orders);
    let mut builder = loom::model::Builder::new();
    builder.preemption_bound.get_or_insert(2);
    builder.max_branches = 10_000;
    builder.checkpoint_interval = 1000; // when it looks at the time
    builder.check(move || {
        count.fetch_add(1, Ordering::Relaxed);
        model();
    });
    orders.load(Ordering::Relaxed)
}

/// The model's assertions hold.
fn holds(what: &str, model: impl Fn() + Send + Sync + 'static) {
    let start = Instant::now();
    let orders = explore(model);
    println!("{what}: {orders} orders, {:.1} s", start.elapsed().as_secs_f64());
}

/// The same, with a process that dies before its first step, its second and so on, until it does all of them. The model is called with
/// the number of steps, and says whether the process died.
fn holds_whenever_it_dies(what: &str, model: impl Fn(u32) -> bool + Send + Sync + 'static) {
    let (start, model) = (Instant::now(), Arc::new(model));
    let (mut orders, mut steps) = (0, 0);
    loop {
        let (more, dies) = explore_death(&model, steps);
        orders += more;
        if !dies {
            break;
        }
        steps += 1;
    }
    println!("{what}: dies before each of {steps} steps, {orders} orders, {:.1} s", start.elapsed().as_secs_f64());
}

/// In how many orders, and whether the process died in any.
fn explore_death(model: &Arc<impl Fn(u32) -> bool + Send + Sync + 'static>, steps: u32) -> (u64, bool) {
    let (died, model) = (Arc::new(AtomicBool::new(false)), Arc::clone(model));
    let dies = Arc::clone(&died);
    let orders = explore(move || {
        dies.fetch_or(model(steps), Ordering::Relaxed);
    });
    (orders, died.load(Ordering::Relaxed))
}

/// The checker catches a broken variant, and for the reason that it was built for.
fn breaks(what: &str, because: &str, model: impl Fn() + Send + Sync + 'static) {
    assert!(is_caught(what, because, || _ = explore(model)), "not caught: {what}");
}

/// The same, where its process dies before one of its steps.
fn breaks_when_it_dies(what: &str, because: &str, model: impl Fn(u32) -> bool + Send + Sync + 'static) {
    let model = Arc::new(model);
    let (mut steps, mut dies) = (0, true);
    while !is_caught(what, because, || dies = explore_death(&model, steps).1) {
        assert!(dies, "not caught: {what}");
        steps += 1;
    }
}

fn is_caught(what: &str, because: &str, check: impl FnOnce()) -> bool {
    let Err(panic) = catch_unwind(AssertUnwindSafe(check)) else { return false };
    let said = panic.downcast_ref::<String>().cloned().or_else(|| panic.downcast_ref::<&str>().map(ToString::to_string));
    assert!(said.as_ref().is_some_and(|said| said.contains(because)), "{what}: caught as {said:?}");
    println!("caught: {what}");
    true
}
