//! Seeded simulations in virtual time: clients that call on a schedule, servers with places, service times and faults, and
//! what the balancer makes of it. The rules of others stand beside ours: they see the same calls.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};

use super::*;
use crate::table::Endpoint;

const MS: Duration = Duration::from_millis(1);
const SECOND: Duration = Duration::from_secs(1);

/// Ours, or how somebody else chooses among two drawn by chance.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Rule {
    Ours(Policy),
    /// Fewest open calls (Envoy's LEAST_REQUEST).
    TwoLeastOpen,
    /// Peak EWMA × (open + 1) (Finagle, Linkerd).
    TwoPeakEwma,
    /// EWMA × (open + 1)³ (C3).
    TwoCubic,
    /// Below the 80th percentile of open calls the fastest, else the fewest open (Prequal's hot and cold).
    TwoHotCold,
}

const OTHERS: [Rule; 4] = [Rule::TwoLeastOpen, Rule::TwoPeakEwma, Rule::TwoCubic, Rule::TwoHotCold];

#[derive(Clone)]
struct Server {
    slots: usize,
    /// Mean; each call's is between half and one and a half of it, or, if it `varies`, exponential.
    takes: Duration,
    varies: bool,
    /// Share of its calls that fail, at once.
    fails: f64,
    /// It answers nothing.
    black_hole: bool,
    /// Share of its calls in which it stands still, and for how long in the mean.
    pauses: f64,
    pause: Duration,
}

const WELL: Server = Server {
    slots: 4,
    takes: Duration::from_millis(5),
    varies: true,
    fails: 0.0,
    black_hole: false,
    pauses: 0.0,
    pause: Duration::ZERO,
};

struct Sim {
    rule: Rule,
    rng: fastrand::Rng,
    now: Instant,
    service: Rc<ServiceLoad>,
    pods: Vec<Rc<Reach>>,
    servers: Vec<Server>,
    busy: Vec<usize>,
    queues: Vec<VecDeque<usize>>,
    calls: Vec<Call>,
    ends: BinaryHeap<Reverse<(Instant, usize)>>,
    ewma: Vec<(f64, Option<Instant>)>,
}

struct Call {
    pod: usize,
    server: usize,
    sent: Instant,
    fails: bool,
    picked: Option<Picked>,
    latency: Option<Duration>,
}

fn listing(policy: Policy, endpoints: usize) -> Arc<Service> {
    let endpoint = |n: usize| {
        let addr = EndpointAddr::new(([10, 1, (n / 250) as u8, (n % 250) as u8], 50051).into());
        Endpoint { addr, identity: n.to_string().into(), place: None }
    };
    tests::listing(policy, (0..endpoints).map(endpoint))
}

impl Sim {
    fn new(rule: Rule, servers: Vec<Server>, pods: usize, seed: u64) -> Self {
        let mut rng = fastrand::Rng::with_seed(seed);
        let policy = if let Rule::Ours(policy) = rule { policy } else { Policy::RoundRobin };
        let now = Instant::now();
        Self {
            rule,
            service: ServiceLoad::new(listing(policy, servers.len()), &mut rng),
            rng,
            now,
            pods: (0..pods).map(|_| Rc::default()).collect(),
            busy: vec![0; servers.len()],
            queues: vec![VecDeque::new(); servers.len()],
            ewma: vec![(0.0, None); servers.len()],
            servers,
            calls: Vec::new(),
            ends: BinaryHeap::new(),
        }
    }

    /// What all servers together serve, calls a second.
    fn capacity(&self) -> f64 {
        self.servers.iter().map(|server| server.slots as f64 / server.takes.as_secs_f64()).sum()
    }

    /// Calls come by chance at this rate.
    fn run(&mut self, rate: f64, calls: usize) {
        for _ in 0..calls {
            let gap = -(1.0 - self.rng.f64()).ln() / rate;
            self.pass(Duration::from_secs_f64(gap));
            self.call();
        }
    }

    fn run_for(&mut self, rate: f64, time: Duration) {
        self.run(rate, (rate * time.as_secs_f64()) as usize);
    }

    /// So many calls are open all the time, each followed by another.
    fn run_closed(&mut self, open: usize, calls: usize) {
        let mut begun = 0;
        while begun < calls {
            let now_open: u32 = self.service.endpoints().iter().map(|it| it.open()).sum();
            if (now_open as usize) < open {
                self.call();
                begun += 1;
            } else if let Some(&Reverse((at, _))) = self.ends.peek() {
                self.pass(at - self.now);
            }
        }
    }

    fn pass(&mut self, time: Duration) {
        let until = self.now + time;
        while let Some(&Reverse((at, call))) = self.ends.peek()
            && at <= until
        {
            self.ends.pop();
            self.now = at;
            self.end(call);
        }
        self.now = until;
    }

    fn call(&mut self) {
        let pod = self.rng.usize(..self.pods.len());
        let picked = self.pick(pod).expect("an endpoint");
        let endpoints = self.service.endpoints();
        let server = endpoints.iter().position(|it| Rc::ptr_eq(it, picked.endpoint())).unwrap();
        let call = self.calls.len();
        let fails = self.rng.f64() < self.servers[server].fails;
        self.calls.push(Call { pod, server, sent: self.now, fails, picked: Some(picked), latency: None });
        if fails {
            // A fault answers at once.
            self.ends.push(Reverse((self.now + MS / 10, call)));
        } else if self.busy[server] < self.servers[server].slots {
            self.serve(call);
        } else {
            self.queues[server].push_back(call);
        }
    }

    fn serve(&mut self, call: usize) {
        let server = self.calls[call].server;
        self.busy[server] += 1;
        let Server { takes, varies, black_hole, pauses, pause, .. } = self.servers[server];
        let by_chance = -(1.0 - self.rng.f64()).ln();
        let factor = if varies { by_chance } else { 0.5 + self.rng.f64() };
        let mut end = self.now + takes.mul_f64(factor);
        if self.rng.f64() < pauses {
            end += pause.mul_f64(by_chance);
        }
        if !black_hole {
            self.ends.push(Reverse((end, call)));
        }
    }

    fn end(&mut self, call: usize) {
        let Call { pod, server, sent, fails, .. } = self.calls[call];
        let latency = self.now - sent;
        self.calls[call].latency = Some(latency);
        let picked = self.calls[call].picked.take().unwrap();
        let outcome = if fails { Outcome::Down } else { Outcome::Answered };
        self.learn(server, latency);
        if matches!(self.rule, Rule::Ours(_)) {
            let endpoint = picked.endpoint();
            self.service.answered(self.now, endpoint, latency, outcome);
            self.pods[pod].ended(self.now, &self.service, endpoint, sent, outcome, &mut self.rng);
        }
        drop(picked);
        if !fails {
            self.busy[server] -= 1;
            if let Some(next) = self.queues[server].pop_front() {
                self.serve(next);
            }
        }
    }

    /// The mean of others' rules: it jumps to a peak and forgets in ten seconds.
    fn learn(&mut self, server: usize, latency: Duration) {
        let (mean, last) = &mut self.ewma[server];
        let latency = latency.as_secs_f64();
        let passed = last.replace(self.now).map_or(0.0, |last| (self.now - last).as_secs_f64());
        let keep = (-passed / 10.0).exp();
        *mean = if latency > *mean && self.rule == Rule::TwoPeakEwma {
            latency
        } else {
            *mean * keep + latency * (1.0 - keep)
        };
    }

    fn pick(&mut self, pod: usize) -> Option<Picked> {
        let reach = Rc::clone(&self.pods[pod]);
        if let Rule::Ours(_) = self.rule {
            if !reach.is_clear()
                && let Some(endpoint) = reach.trial(self.now, &self.service)
            {
                return Some(Picked::new(&endpoint));
            }
            return reach.pick(self.now, &self.service, &mut self.rng, |endpoint| reach.standing(endpoint));
        }
        let endpoints = self.service.endpoints();
        let a = self.rng.usize(..endpoints.len());
        let b = (a + 1 + self.rng.usize(..endpoints.len() - 1)) % endpoints.len();
        let open = |i: usize| endpoints[i].open() as f64;
        let (mean_a, mean_b) = (self.ewma[a].0, self.ewma[b].0);
        let a_is_better = match self.rule {
            Rule::TwoLeastOpen => open(a) <= open(b),
            Rule::TwoPeakEwma => mean_a * (open(a) + 1.0) <= mean_b * (open(b) + 1.0),
            Rule::TwoCubic => mean_a * (open(a) + 1.0).powi(3) <= mean_b * (open(b) + 1.0).powi(3),
            Rule::TwoHotCold => {
                let mut all: Vec<u32> = endpoints.iter().map(|it| it.open()).collect();
                all.sort_unstable();
                let hot = all[all.len() * 4 / 5] as f64;
                match (open(a) >= hot.max(1.0), open(b) >= hot.max(1.0)) {
                    (false, false) => mean_a <= mean_b,
                    (true, true) => open(a) <= open(b),
                    (a_is_hot, _) => !a_is_hot,
                }
            }
            Rule::Ours(_) => unreachable!(),
        };
        Some(Picked::new(&endpoints[if a_is_better { a } else { b }]))
    }

    fn shares(&self, since: usize) -> Vec<usize> {
        let mut shares = vec![0; self.servers.len()];
        self.calls[since..].iter().for_each(|call| shares[call.server] += 1);
        shares
    }

    /// Of the calls from `since` on, those without an answer as slow as can be; ms.
    fn percentile(&self, since: usize, percent: f64) -> f64 {
        let wait = |call: &Call| call.latency.unwrap_or(self.now - call.sent).as_secs_f64() * 1000.0;
        let mut all: Vec<f64> = self.calls[since..].iter().map(wait).collect();
        all.sort_by(f64::total_cmp);
        all[((all.len() - 1) as f64 * percent / 100.0) as usize]
    }

    fn failed(&self, since: usize) -> usize {
        self.calls[since..].iter().filter(|call| call.fails).count()
    }
}

fn spread(shares: &[usize]) -> f64 {
    *shares.iter().max().unwrap() as f64 / (*shares.iter().min().unwrap()).max(1) as f64
}

/// Max/min of closed loads on equal servers that pause by chance, in the mean: as many calls as are open at the end may be out
/// of turn.
fn mean_spread(policy: Policy, servers: &[Server], pods: usize, open: usize, calls: usize) -> f64 {
    let shares = |seed| {
        let mut sim = Sim::new(Rule::Ours(policy), servers.to_vec(), pods, seed);
        sim.run_closed(open, calls);
        spread(&sim.shares(0))
    };
    (1..=10).map(shares).sum::<f64>() / 10.0
}

mod promises;
