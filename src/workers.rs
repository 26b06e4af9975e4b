//! The threads that fetch beside the one that reads: started when there is something to do for them, gone when there has been nothing for
//! a while. One crew a process; a forked child starts with none.

use crate::log;
use crate::sync::{Condvar, Mutex};
use crate::sys::fork::PerProcess;
use crate::sys::thread;
use std::collections::VecDeque;
use std::mem;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// What a worker does. It calls the source, so nothing around it may catch what unwinds.
pub(crate) trait Job: Send + Sync {
    fn run(&self);
}

/// Demand goes before what may be wanted later.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Urgency {
    Demand,
    Ahead,
}

#[derive(Default)]
struct Crew {
    state: Mutex<State>,
    work: Condvar,
}

#[derive(Default)]
struct State {
    demand: VecDeque<Arc<dyn Job>>,
    ahead: VecDeque<Arc<dyn Job>>,
    threads: u32,
    idle: u32,
}

static CREW: PerProcess<Crew> = PerProcess::new();

/// A worker that has had nothing to do for so long goes home.
const PATIENCE: Duration = Duration::from_secs(2);

/// Has a job done by some worker, of which there are at most `most`. False where there is no thread to be had.
pub(crate) fn submit(job: Arc<dyn Job>, urgency: Urgency, most: u32) -> bool {
    let crew = CREW.get();
    let mut state = crew.state.lock();
    let waiting = (state.demand.len() + state.ahead.len()) as u32;
    if state.idle <= waiting && state.threads < most {
        state.threads += 1;
        drop(state);
        let started = thread::start(work);
        state = crew.state.lock();
        if let Err(error) = started {
            state.threads -= 1;
            if state.threads == 0 {
                log::warn(|| format!("no thread to read ahead with ({error})"));
                return false;
            }
        }
    }
    match urgency {
        Urgency::Demand => state.demand.push_back(job),
        Urgency::Ahead => state.ahead.push_back(job),
    }
    drop(state);
    crew.work.notify_one();
    true
}

/// Takes a job back that no worker has begun. True if it was still there.
pub(crate) fn withdraw(job: &Arc<dyn Job>) -> bool {
    let mut state = CREW.get().state.lock();
    let state = &mut *state;
    [&mut state.demand, &mut state.ahead].into_iter().any(|queue| {
        let found = queue.iter().position(|queued| Arc::ptr_eq(queued, job));
        let withdrawn = found.and_then(|at| queue.remove(at)).is_some();
        forget_room(queue);
        withdrawn
    })
}

fn take(queue: &mut VecDeque<Arc<dyn Job>>) -> Option<Arc<dyn Job>> {
    let job = queue.pop_front();
    forget_room(queue);
    job
}

/// An empty queue keeps its room, which leak checkers do not find in a map of ours.
fn forget_room(queue: &mut VecDeque<Arc<dyn Job>>) {
    if queue.is_empty() {
        *queue = VecDeque::new();
    }
}

/// A worker's life.
fn work() {
    /// Counts a thread out that a callback ends.
    struct Ended<'a>(&'a Crew);
    impl Drop for Ended<'_> {
        fn drop(&mut self) {
            self.0.state.lock().threads -= 1;
        }
    }
    let crew = CREW.get();
    while let Some(job) = crew.next() {
        let ended = Ended(crew);
        job.run();
        mem::forget(ended);
    }
}

impl Crew {
    fn next(&self) -> Option<Arc<dyn Job>> {
        let patient_until = Instant::now() + PATIENCE;
        let mut state = self.state.lock();
        loop {
            let State { demand, ahead, .. } = &mut *state;
            if let Some(job) = take(demand).or_else(|| take(ahead)) {
                return Some(job);
            }
            if Instant::now() >= patient_until {
                state.threads -= 1; // before anyone can count on it
                return None;
            }
            state.idle += 1;
            state = self.work.wait_for(state, PATIENCE);
            state.idle -= 1;
        }
    }
}
