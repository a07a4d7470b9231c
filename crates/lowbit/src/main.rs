//! The `lowbit` binary.
use std::sync::atomic::AtomicBool;
use lowbit_strategies::*;
struct P;
impl Observer for P {
    fn epoch(&mut self, m: &EpochMetrics, t: &EpochTiming) { println!("{} {:.1}s {:.0} img/s", serde_json::to_string(m).unwrap(), t.seconds, t.images_per_second); }
}
fn main() {
    let args: Vec<String> = std::env::args().collect();
    let recipe = Recipe::embedded(&args[1], &args[3..].to_vec()).unwrap_or_else(|e| panic!("{e}"));
    let stop = AtomicBool::new(false);
    let device = burn::tensor::Device::flex();
    let s = Session { device, device_name: "flex".into(), locations: lowbit_data::Locations::default_with(None), stop: &stop, observer: &mut P };
    match train(&recipe, args[2].as_ref(), s) { Ok(o) => println!("{o:?}"), Err(e) => println!("error: {e}") }
}
