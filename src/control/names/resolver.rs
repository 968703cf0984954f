//! Asks for the names of many addresses at once, and not for longer than somebody waits who looks at a table.
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use crossbeam_channel::{Receiver, Sender, unbounded};

/// Questions at once: a name server answers within a few milliseconds, and a thread waits for one answer at a time.
const THREADS: usize = 16;

/// How long a resolver may take.
#[derive(Clone, Copy, Debug)]
struct Patience {
    /// Until the next answer, whichever it is. One that is silent for longer is taken for dead: resolv.conf(5) has 5 s for each
    /// server and attempt.
    silence: Duration,
    /// For all questions there ever are.
    whole: Duration,
}

const PATIENCE: Patience = Patience {
    silence: Duration::from_secs(2),
    whole: Duration::from_secs(10),
};

type LookUp = dyn Fn(IpAddr) -> Option<String> + Send + Sync;
type Answer = (IpAddr, Option<String>);

/// Names of addresses, from the system's resolver. Threads that still wait when it is dropped end with the program.
pub struct Resolver {
    look_up: Arc<LookUp>,
    questions: Sender<IpAddr>,
    asked: Receiver<IpAddr>,
    answering: Sender<Answer>,
    answers: Receiver<Answer>,
    threads: usize,
    /// Questions without an answer.
    open: usize,
    silence: Duration,
    /// Says when there was time enough for everything; once it has, nobody is waited for any more.
    end: Receiver<Instant>,
    has_given_up: bool,
}

impl fmt::Debug for Resolver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Resolver")
            .field("threads", &self.threads)
            .field("open", &self.open)
            .finish_non_exhaustive()
    }
}

impl Resolver {
    /// By getnameinfo(3): /etc/hosts, DNS, or whatever nsswitch.conf(5) names.
    #[must_use]
    pub fn system() -> Self {
        Self::new(Arc::new(|address| dns_lookup::lookup_addr(&address).ok()), PATIENCE)
    }

    fn new(look_up: Arc<LookUp>, patience: Patience) -> Self {
        let (questions, asked) = unbounded();
        let (answering, answers) = unbounded();
        Self {
            look_up,
            questions,
            asked,
            answering,
            answers,
            threads: 0,
            open: 0,
            silence: patience.silence,
            end: crossbeam_channel::after(patience.whole),
            has_given_up: false,
        }
    }

    /// Asks for a name. Who has been silent for too long is not asked any more.
    pub(super) fn ask(&mut self, address: IpAddr) {
        if self.has_given_up || self.questions.send(address).is_err() {
            return;
        }
        self.open += 1;
        if self.threads < THREADS.min(self.open) && self.spawn().is_ok() {
            self.threads += 1;
        }
    }

    fn spawn(&self) -> std::io::Result<()> {
        let (asked, answering) = (self.asked.clone(), self.answering.clone());
        let look_up = Arc::clone(&self.look_up);
        let answer_all = move || {
            for address in asked {
                if answering.send((address, look_up(address))).is_err() {
                    return;
                }
            }
        };
        std::thread::Builder::new().spawn(answer_all).map(drop)
    }

    /// The answers to what was asked, as far as they come in time.
    pub(super) fn answers(&mut self) -> Vec<Answer> {
        let mut answers = Vec::new();
        while self.open > 0 && !self.has_given_up {
            crossbeam_channel::select! {
                recv(self.answers) -> answer => match answer {
                    Ok(answer) => {
                        answers.push(answer);
                        self.open -= 1;
                    }
                    Err(_) => self.has_given_up = true,
                },
                recv(self.end) -> _ => self.has_given_up = true,
                default(self.silence) => self.has_given_up = true,
            }
        }
        // What comes late is used where it is still of use.
        let late = self.answers.try_iter();
        answers.extend(late);
        answers
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

    use super::*;

    const SHORT: Patience = Patience {
        silence: Duration::from_millis(50),
        whole: Duration::from_secs(60),
    };

    fn address(last: u8) -> IpAddr {
        [10, 1, 0, last].into()
    }

    #[test]
    fn every_address_is_asked_for_by_a_few_threads() {
        let name = |address: IpAddr| Some(format!("host-{address}"));
        let mut resolver = Resolver::new(Arc::new(name), PATIENCE);
        (0..100).for_each(|last| resolver.ask(address(last)));
        let mut answers = resolver.answers();
        answers.sort();
        let expected: Vec<Answer> = (0..100)
            .map(|last| (address(last), Some(format!("host-10.1.0.{last}"))))
            .collect();
        assert_eq!(answers, expected);
        assert!(resolver.threads <= THREADS);
    }

    #[test]
    fn a_resolver_that_does_not_answer_is_given_up_and_asked_no_more() {
        let (_silent, never) = unbounded::<()>();
        let questions = Arc::new(AtomicUsize::new(0));
        let asked = Arc::clone(&questions);
        let dead = move |_| {
            asked.fetch_add(1, SeqCst);
            never.recv().ok().map(|()| String::new())
        };
        let mut resolver = Resolver::new(Arc::new(dead), SHORT);
        (0..100).for_each(|last| resolver.ask(address(last)));
        assert_eq!(resolver.answers(), []);
        let before = resolver.open;
        resolver.ask(address(200));
        assert_eq!((resolver.answers(), resolver.open), (Vec::new(), before));
        assert!(questions.load(SeqCst) <= THREADS, "each thread waits for one answer");
    }

    #[test]
    fn addresses_that_nobody_answers_for_do_not_hold_up_the_others() {
        let (_silent, never) = unbounded::<()>();
        let some = move |asked: IpAddr| match asked == address(7) {
            true => never.recv().ok().map(|()| String::new()),
            false => Some("named".to_owned()),
        };
        let mut resolver = Resolver::new(Arc::new(some), SHORT);
        (0..20).for_each(|last| resolver.ask(address(last)));
        assert_eq!(resolver.answers().len(), 19);
    }
}
