//! Work that takes long and must not take the CPU from those who move packets.
use rustix::process::setpriority_process;

/// The niceness of such work. Beside a worker on one CPU it gets a tenth of it (110 to 1024, `sched_prio_to_weight`,
/// kernel/sched/core.c), and a worker that wakes up goes first; with 19 a reload would be starved on a busy host.
const NICENESS: i32 = 10;

/// Does the work on a thread of its own below the workers' priority, and returns when it is done. A thread cannot come back
/// from there without a capability (setpriority(2), `CAP_SYS_NICE`), so the one that asks stays as it is.
pub(super) fn run(work: &mut (dyn FnMut() + Send)) {
    let mut is_done = false;
    std::thread::scope(|scope| {
        let lowered = || {
            // For this thread alone: Linux has it so, against POSIX (setpriority(2), "C library/kernel differences").
            if let Err(error) = setpriority_process(None, NICENESS) {
                tracing::debug!("a reload is built at the priority of the workers: {error}");
            }
            work();
            is_done = true;
        };
        let builder = std::thread::Builder::new().name("builder".to_owned());
        if let Err(error) = builder.spawn_scoped(scope, lowered) {
            tracing::debug!("a reload is built without a thread of its own: {error}");
        }
    });
    if !is_done {
        work();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_work_is_done_below_the_priority_of_the_thread_that_asks_which_keeps_its_own() {
        let own = || rustix::process::getpriority_process(None).unwrap();
        let (before, mut during) = (own(), None);
        run(&mut || during = Some(own()));
        assert_eq!(during, Some(NICENESS.max(before)));
        assert_eq!(own(), before);
    }
}
