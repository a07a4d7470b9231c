//! Files of a network with one of everything, whole and changed.

use serde_json::Value;

use super::*;
use crate::samples;

/// A file: its list of tensors, and their bytes.
struct Parsed {
    list: Value,
    data: Vec<u8>,
}

impl Parsed {
    fn of(bytes: &[u8]) -> Self {
        let n = u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize;
        Self { list: serde_json::from_slice(&bytes[8..8 + n]).unwrap(), data: bytes[8 + n..].to_vec() }
    }

    fn to_bytes(&self) -> Vec<u8> {
        let list = serde_json::to_vec(&self.list).unwrap();
        [&(list.len() as u64).to_le_bytes()[..], &list, &self.data].concat()
    }

    fn tensors(&self) -> impl Iterator<Item = (&String, &Value)> {
        self.list.as_object().unwrap().iter().filter(|(name, _)| *name != "__metadata__")
    }

    fn range(&self, name: &str) -> [usize; 2] {
        [0, 1].map(|i| self.list[name]["data_offsets"][i].as_u64().unwrap() as usize)
    }

    fn bytes(&self, name: &str) -> &[u8] {
        let [start, end] = self.range(name);
        &self.data[start..end]
    }

    /// The same with other bytes in a tensor of U8, which is renamed.
    fn with(&self, name: &str, new_name: &str, bytes: &[u8]) -> Self {
        let [start, end] = self.range(name);
        let data = [&self.data[..start], bytes, &self.data[end..]].concat();
        let mut list = self.list.clone();
        let object = list.as_object_mut().unwrap();
        for (_, tensor) in object.iter_mut().filter(|(other, _)| *other != "__metadata__") {
            for offset in tensor["data_offsets"].as_array_mut().unwrap() {
                let place = offset.as_u64().unwrap() as usize;
                if place >= end {
                    *offset = (place - end + start + bytes.len()).into();
                }
            }
        }
        let mut tensor = object.remove(name).unwrap();
        tensor["shape"] = vec![bytes.len()].into();
        tensor["data_offsets"] = vec![start, start + bytes.len()].into();
        object.insert(new_name.into(), tensor);
        Self { list, data }
    }

    fn description(&mut self, change: impl Fn(&mut Value)) {
        let entry = &mut self.list["__metadata__"][ENTRY];
        let mut description = serde_json::from_str(entry.as_str().unwrap()).unwrap();
        change(&mut description);
        *entry = description.to_string().into();
    }

    fn error(&self) -> String {
        PackedNetwork::from_bytes(&self.to_bytes()).unwrap_err().to_string()
    }
}

/// Codes of which one is far more frequent than the others: in zlib's format they have fewer bytes.
fn with_frequent_codes() -> PackedNetwork {
    let mut network = samples::small();
    let Weight::Codes(grid, codes) = &mut network.layers.get_mut("hidden").unwrap().weight else {
        panic!("it has codes")
    };
    let frequent: Vec<i32> = (0..378).map(|i| if i % 11 == 0 { 8 } else { 0 }).collect();
    *codes = grid.pack(&frequent, &[7, 54]).unwrap();
    network
}

#[test]
fn frequent_codes_are_compressed() {
    let network = with_frequent_codes();
    let bytes = network.to_bytes().unwrap();
    assert!(PackedNetwork::from_bytes(&bytes).unwrap() == network);
    let parsed = Parsed::of(&bytes);
    let names: Vec<_> = parsed.tensors().map(|(name, _)| name.as_str()).collect();
    assert!(names.contains(&"hidden.codes.zlib") && names.contains(&"fc.codes"), "{names:?}");
    let Weight::Codes(_, codes) = &network.layers["hidden"].weight else { panic!("it has codes") };
    assert!(parsed.bytes("hidden.codes.zlib").len() < codes.bytes().len());
    // What is not compressed is read too.
    let plain = parsed.with("hidden.codes.zlib", "hidden.codes", codes.bytes());
    assert!(PackedNetwork::from_bytes(&plain.to_bytes()).unwrap() == network);
}

/// However many are alike, bytes are never compressed beyond what a reader takes.
#[test]
fn what_is_compressed_is_within_the_bound() {
    for n in [1, 7, 64, 1000, 1 << 20] {
        for bytes in [vec![0; n], (0..n).map(|i| (i % 3) as u8).collect(), (0..n).map(|i| i as u8).collect()]
        {
            if let Some(fewer) = compressed(&bytes) {
                assert!(fewer.len() < n && fewer.len() * MOST_EXPANSION >= n);
                assert_eq!(decompressed(&fewer, n).unwrap(), bytes);
            }
        }
    }
    let zeros = compressed(&vec![0; 1 << 20]).unwrap();
    assert!(zeros.len() < 150_000, "{}", zeros.len());
}

#[test]
fn compressed_codes_of_any_origin_are_checked() {
    let parsed = Parsed::of(&with_frequent_codes().to_bytes().unwrap());
    let name = "hidden.codes.zlib";
    let good = parsed.bytes(name).to_vec();
    let n = decompressed(&good, 7 * 21).unwrap().len();
    let changed = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut bytes = good.clone();
        change(&mut bytes);
        parsed.with(name, name, &bytes).error()
    };
    let damaged = "\"hidden\": its tensor \"codes.zlib\" is damaged";
    // The checksum, the end, all.
    assert!(changed(&|bytes| *bytes.last_mut().unwrap() ^= 1).contains(damaged));
    assert!(changed(&|bytes| bytes.truncate(bytes.len() - 5)).contains(damaged));
    assert!(changed(&|bytes| bytes.fill(0xaa)).contains(damaged));
    let other = format!("\"hidden\": its tensor \"codes.zlib\" has other than the {n} bytes of its codes");
    assert!(changed(&|bytes| bytes.push(0)).contains(&other));
    for n in [n - 1, n + 1] {
        let bytes = compressed(&vec![0; n]).unwrap();
        assert!(parsed.with(name, name, &bytes).error().contains(&other));
    }
    // A few bytes that become many.
    let many = miniz_oxide::deflate::compress_to_vec_zlib(&[0; 1 << 16], 9);
    assert!(decompressed(&many, 1 << 16).unwrap_err().contains("have 65536 bytes, expected at most 8 times"));
    let expected = format!("its codes have {n} bytes, expected at most 8 times those of \"codes.zlib\", ");
    assert!(parsed.with(name, name, &good[..10]).error().contains(&(expected.clone() + "10")));
    assert!(parsed.with(name, name, &[]).error().contains(&(expected + "0")));
    // Codes that are none of the grid's five.
    let mut codes = vec![0; n];
    codes[0] = 7;
    let bytes = compressed(&codes).unwrap();
    assert!(
        parsed.with(name, name, &bytes).error().contains("\"hidden\": its weights: element 0 is no code: 7")
    );
}

#[test]
fn descriptions_of_any_origin_are_checked() {
    let check = |change: &dyn Fn(&mut Value), expected: &str| {
        let mut parsed = Parsed::of(&samples::small().to_bytes().unwrap());
        parsed.description(change);
        let error = parsed.error();
        assert!(error.contains(expected), "{error}");
    };
    check(&|all| all["layers"]["conv1"]["weight"] = 99.into(), "\"conv1\": its grid is number 99 of ");
    check(
        &|all| all["layers"]["nowhere"] = all["layers"]["conv1"].clone(),
        "\"nowhere\": its graph has no such",
    );
    check(&|all| all["layers"]["norm1"] = all["layers"]["conv1"].clone(), "\"norm1\": its graph has no such");
    check(&|all| all["grids"] = Value::Array(Vec::new()), "its grid is number 0 of 0");
    check(&|all| all["version"] = 1.into(), "of version 1, this program reads version 2");
    check(&|all| all["more"] = 1.into(), "its description: unknown field `more`");
}

#[test]
fn a_normalization_has_three_numbers_a_channel() {
    let parsed = Parsed::of(&samples::small().to_bytes().unwrap());
    assert_eq!(parsed.list["norm1.norm"]["shape"], serde_json::json!([3, 5]));
    let mut changed = Parsed { list: parsed.list.clone(), data: parsed.data.clone() };
    changed.list["norm1.norm"]["shape"] = serde_json::json!([5, 3]);
    assert!(changed.error().contains("\"norm1\": its tensor \"norm\" has the shape [5, 3], expected [3, 5]"));
    let [start, _] = parsed.range("norm1.norm");
    changed = Parsed { list: parsed.list, data: parsed.data };
    changed.data[start + 20..start + 24].copy_from_slice(&f32::INFINITY.to_le_bytes());
    assert!(changed.error().contains("\"norm1\": one of its factors is not finite"));
}

/// All bytes of the tensors belong to a layer.
#[test]
fn the_bytes_of_layers_are_those_of_the_file() {
    for network in [samples::small(), with_frequent_codes(), samples::small().in_full_precision()] {
        let parsed = Parsed::of(&network.to_bytes().unwrap());
        let layers = network.layer_bytes().unwrap();
        assert_eq!(layers.iter().map(LayerBytes::total).sum::<usize>(), parsed.data.len());
        let paths: Vec<&str> = layers.iter().map(|layer| layer.path.as_str()).collect();
        let nodes = network.graph.nodes().iter().map(|node| node.path.as_str());
        assert_eq!(paths, nodes.filter(|path| !path.is_empty()).collect::<Vec<_>>());
    }
    let layers = samples::small().layer_bytes().unwrap();
    let stem = LayerBytes { path: "stem".into(), weights: 540, biases: 20, ..LayerBytes::default() };
    let norm = LayerBytes { path: "norm1".into(), norms: 60, ..LayerBytes::default() };
    assert_eq!(layers[..2], [stem, norm]);
    // Codes of 8 bits, which are not compressed; a unit, and a unit and 255 thresholds.
    let fc = LayerBytes { path: "fc".into(), weights: 28, scales: 1028, ..LayerBytes::default() };
    assert!(layers.contains(&fc), "{layers:?}");
}
