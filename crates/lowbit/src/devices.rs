//! `lowbit devices`: what this program can train on.

use serde::Serialize;

use crate::cli::DevicesArgs;
use crate::device::{DeviceName, Gpu, gpus};
use crate::exit_code::Code;
use crate::memory;
use crate::output::{self, counted};

#[derive(Serialize)]
struct Report {
    devices: Vec<Device>,
    /// Backends that another build has.
    not_compiled_in: Vec<&'static str>,
}

/// A device, as `--device` takes its name.
#[derive(Serialize)]
struct Device {
    name: String,
    kind: Kind,
    /// Whether a new training runs on it if nothing else is asked for.
    default: bool,
    /// The processor or the card, if it tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,
    /// Bytes of memory that a program can get on it now, or, of a GPU, has in all.
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    threads: Option<usize>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    instruction_sets: Vec<String>,
}

#[derive(Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
enum Kind {
    Cpu,
    Gpu,
}

pub fn run(args: &DevicesArgs) -> anyhow::Result<Code> {
    let report = report();
    match args.json.json {
        true => output::print_json(&report)?,
        false => output::print(&describe(&report))?,
    }
    Ok(Code::Success)
}

fn report() -> Report {
    let origin = crate::origin::here();
    let default = DeviceName::fastest().ok().map(|name| name.to_string());
    let mut devices = Vec::new();
    let mut not_compiled_in: Vec<&'static str> = DeviceName::names().collect();
    for name in DeviceName::compiled_in() {
        not_compiled_in.retain(|other| *other != name);
        let is_cpu = name.parse().is_ok_and(DeviceName::is_cpu);
        if is_cpu {
            devices.push(Device {
                name: name.into(),
                kind: Kind::Cpu,
                default: default.as_deref() == Some(name),
                model: origin.processor.clone(),
                memory: memory::room().map(|room| room.bytes),
                threads: Some(origin.n_threads),
                instruction_sets: origin.instruction_sets.clone(),
            });
        }
    }
    devices.extend(gpus().into_iter().map(|Gpu { name, model, memory }| Device {
        default: default.as_deref() == Some(name.as_str()),
        name,
        kind: Kind::Gpu,
        model,
        memory,
        threads: None,
        instruction_sets: Vec::new(),
    }));
    Report { devices, not_compiled_in }
}

fn describe(report: &Report) -> String {
    let columns = output::stdout_columns();
    let entry = |name: &str, text: &str| output::wrapped(&format!("{name:<8} "), text, columns);
    let mut lines = Vec::new();
    let mut has_told_cpu = false;
    for Device { name, kind, default, model, memory, threads, instruction_sets } in &report.devices {
        let mut facts = Vec::new();
        if *kind == Kind::Cpu && has_told_cpu {
            facts.push("the same CPU".into());
        } else {
            let model = model.as_deref().unwrap_or("model unknown");
            facts.push(format!("{} {model}", if *kind == Kind::Cpu { "CPU" } else { "GPU" }));
            facts.extend(threads.map(|threads| counted(threads as u64, "thread")));
            facts.extend(memory.map(|bytes| match kind {
                Kind::Cpu => format!("{} of memory to be had", memory::approximate(bytes)),
                Kind::Gpu => format!("{} of memory", memory::approximate(bytes)),
            }));
            if !instruction_sets.is_empty() {
                facts.push(format!("instruction sets {}", instruction_sets.join(" ")));
            }
            has_told_cpu |= *kind == Kind::Cpu;
        }
        if *default {
            facts.push("what `lowbit train` takes without --device".into());
        }
        lines.push(entry(name, &facts.join(", ")));
    }
    for name in &report.not_compiled_in {
        lines.push(entry(name, &format!("not in this program: build it with --features {name}")));
    }
    if !report.devices.iter().any(|device| device.kind == Kind::Gpu) && report.not_compiled_in.is_empty() {
        lines.push(entry("wgpu", "no GPU found: it needs a driver for Vulkan, Metal or DirectX"));
    }
    lines.join("\n")
}
