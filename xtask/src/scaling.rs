//! `cargo xtask scaling`: how long a step takes on many processes, by a model of the exchange and measured times of steps.

use std::f64::consts::PI;

use anyhow::ensure;
use clap::Args;

use crate::output::print;

/// What `cargo xtask scaling` is asked for.
#[derive(Args)]
pub struct ScalingArgs {
    /// Parameters of all networks of the training
    #[arg(long, default_value_t = 11.7e6)]
    parameters: f64,

    /// Milliseconds of a step of one process with its share of a batch, without an exchange
    #[arg(long, default_value_t = 82.4)]
    step: f64,

    /// Deviation of that time from step to step and process to process, as a share of it
    #[arg(long, default_value_t = 0.03)]
    deviation: f64,

    /// Processes of a machine, which share its link to the others
    #[arg(long, default_value_t = 1)]
    local: usize,

    /// Bytes of a value on its way: 4, or 2 for bf16
    #[arg(long, default_value_t = 4.0)]
    bytes: f64,

    /// Bytes a second that the host of a process reads from its device, adds up and writes back
    #[arg(long, default_value_t = 1.0e9)]
    host: f64,

    /// Most processes
    #[arg(long, default_value_t = 64)]
    ranks: usize,
}

/// A link between machines.
struct Link {
    name: &'static str,
    /// Seconds that a message takes at least.
    latency: f64,
    /// Bytes a second, in each direction.
    rate: f64,
}

const LINKS: [Link; 4] = [
    Link { name: "1 GbE", latency: 50e-6, rate: 0.118e9 },
    Link { name: "10 GbE", latency: 30e-6, rate: 1.18e9 },
    Link { name: "25 GbE", latency: 20e-6, rate: 2.9e9 },
    Link { name: "100 Gb InfiniBand", latency: 2e-6, rate: 12e9 },
];

/// Values that are exchanged at once, as the training has it.
const AT_ONCE: f64 = (1 << 22) as f64;

/// Bytes up to which Open MPI sends a message by TCP without asking first.
const EAGER: f64 = 65_536.0;

/// Bytes a second between two processes of a machine.
const LOCAL_RATE: f64 = 5e9;

/// Simulated steps.
const STEPS: usize = 400;

/// What is exchanged, and by whom.
struct Exchange {
    values: f64,
    bytes: f64,
    ranks: usize,
    local: usize,
    host: f64,
}

impl Exchange {
    /// Seconds by which it lengthens a step.
    ///
    /// The gradients go in parts, each by two rounds of messages, of which each takes one way, or three if it is large; the running
    /// statistics go by two rounds of small ones, what was found in the step by one.
    fn seconds(&self, link: &Link) -> f64 {
        let Self { values, bytes, ranks, local, host } = *self;
        if ranks == 1 {
            return 0.0;
        }
        let (size, n, local) = (values * bytes, ranks as f64, local.min(ranks) as f64);
        let parts = (values / AT_ONCE).ceil();
        let ways = if size / parts / n > EAGER { 3.0 } else { 1.0 };
        // Those of a machine add up first, each a piece, and have its link together for what goes between machines.
        let machines = n / local;
        let within = size / local * (local - 1.0) / LOCAL_RATE;
        let between = size * (machines - 1.0) / machines / link.rate;
        let latency = if machines > 1.0 { link.latency } else { 1e-6 };
        latency * (parts * 2.0 * ways + 3.0) + 2.0 * (within + between) + values * 4.0 / host
    }
}

/// Numbers that look as if drawn from a normal distribution, the same in each run.
struct Normal(u64);

impl Normal {
    fn uniform(&mut self) -> f64 {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((self.0 >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    }

    fn next(&mut self) -> f64 {
        let (radius, angle) = (self.uniform(), self.uniform());
        (-2.0 * radius.ln()).sqrt() * (2.0 * PI * angle).cos()
    }
}

/// Mean seconds until the last of `ranks` processes has computed its part of a step.
fn slowest(ranks: usize, step: f64, deviation: f64) -> f64 {
    let mut normal = Normal(1);
    let mut of_step = || -> f64 {
        let times = (0..ranks).map(|_| step * (1.0 + deviation * normal.next()).max(0.1));
        times.fold(0.0, f64::max)
    };
    (0..STEPS).map(|_| of_step()).sum::<f64>() / STEPS as f64
}

pub fn run(args: &ScalingArgs) -> anyhow::Result<()> {
    let ScalingArgs { parameters, step, deviation, local, bytes, host, ranks } = *args;
    ensure!(local > 0 && ranks > 0 && host > 0.0, "there is at least one process, and a host has a rate");
    let names: Vec<&str> = LINKS.iter().map(|link| link.name).collect();
    print(&format!("| processes | slowest, ms | {} |", names.join(" | ")))?;
    print(&format!("|---|---|{}", "---|".repeat(LINKS.len())))?;
    let counts = std::iter::successors(Some(1), |n| Some(n * 2)).take_while(|&n| n <= ranks);
    for n in counts {
        let compute = slowest(n, step / 1000.0, deviation);
        let alone = slowest(1, step / 1000.0, deviation);
        let exchange = Exchange { values: parameters, bytes, ranks: n, local, host };
        let cells = LINKS.iter().map(|link| {
            let seconds = exchange.seconds(link);
            format!(
                "{:.0} + {:.0} ms, {:.0} %",
                1e3 * compute,
                1e3 * seconds,
                100.0 * alone / (compute + seconds)
            )
        });
        print(&format!("| {n} | {:.1} | {} |", 1e3 * compute, cells.collect::<Vec<_>>().join(" | ")))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What was measured over a link of 10 ms and 1 Gbit/s, `xtask/two-machines/run.sh`, with parts of 4 MiB: milliseconds of the
    /// exchange of a step. The host's share was little there.
    #[test]
    fn the_model_is_near_what_was_measured() {
        let link = Link { name: "", latency: 10e-3, rate: 0.125e9 };
        let model = |values: f64, bytes: f64| {
            // The model's parts are larger than those that were measured: the same messages, once for each 4 MiB.
            let measured_parts = (values / (1 << 20) as f64).ceil();
            let parts = (values / AT_ONCE).ceil();
            let exchange = Exchange { values, bytes, ranks: 2, local: 1, host: f64::INFINITY };
            1e3 * (exchange.seconds(&link) + (measured_parts - parts) * 6.0 * link.latency)
        };
        for (values, bytes, measured) in
            [(77_562.0, 4.0, 102.2), (4_892_554.0, 4.0, 503.2), (4_892_554.0, 2.0, 421.8)]
        {
            let expected: f64 = model(values, bytes);
            assert!((expected - measured).abs() < 0.1 * measured, "{values}: {expected} and {measured}");
        }
    }

    /// One process exchanges nothing; on one machine nothing goes by the link; more wait for the slowest of more.
    #[test]
    fn more_processes_take_longer() {
        let of = |ranks, local| Exchange { values: 1e7, bytes: 4.0, ranks, local, host: 1e9 };
        assert_eq!(of(1, 1).seconds(&LINKS[0]), 0.0);
        assert!(of(8, 8).seconds(&LINKS[0]) < of(8, 1).seconds(&LINKS[0]));
        assert!(
            of(64, 8).seconds(&LINKS[1]) < 1.2 * of(64, 1).seconds(&LINKS[1]),
            "machines tell one another as much"
        );
        assert!(slowest(64, 0.1, 0.03) > slowest(2, 0.1, 0.03));
        assert!((slowest(5, 0.1, 0.0) - 0.1).abs() < 1e-9);
    }
}
