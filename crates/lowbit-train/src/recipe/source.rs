//! Where a recipe is written: in one text, or in several, of which each extends another.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::{Path, PathBuf, is_separator};

use lowbit_quantizers::{Method, Operand};
use toml::de::{DeTable, DeValue};
use toml::{Spanned, Table, Value};

use super::embedded::{EmbeddedRecipe, embedded};
use super::reader::{Problem, Problems};
use super::{Recipe, RecipeError, SCHEMA, read};
use crate::files::{MAX_TEXT, read_regular_text};

/// Most recipes that extend one another.
const MAX_DEPTH: usize = 16;

/// The key by which a recipe names the one that it extends.
const EXTENDS: &str = "extends";

/// Keys that are of one text alone, and are not taken over by those that extend it.
const OWN: [&str; 3] = ["schema", "name", "reference"];

/// A recipe as it is written, before it is checked: a text, with those that it extends.
#[derive(Clone, Debug)]
pub struct RecipeSource {
    /// Its path or its name.
    called: String,
    /// The same as messages call it.
    origin: String,
    /// The text itself, without those that it extends.
    text: String,
    /// All keys, of the text and of those that it extends.
    table: Table,
    places: Places,
    extends: Vec<String>,
}

/// Where the keys of a recipe stand, by dotted path.
type Places = BTreeMap<String, Place>;

/// Where a key stands.
#[derive(Clone, Debug)]
struct Place {
    /// The text, as messages call it: the recipe itself is called nothing.
    origin: Option<String>,
    /// The line from 1; of texts that come with the program, nobody sees one.
    line: Option<usize>,
}

impl Place {
    /// The place in words, if there is anything to say.
    fn words(&self) -> Option<String> {
        match (&self.origin, self.line) {
            (None, None) => None,
            (None, Some(line)) => Some(format!("line {line}")),
            (Some(origin), None) => Some(origin.clone()),
            (Some(origin), Some(line)) => Some(format!("{origin}, line {line}")),
        }
    }
}

/// One text.
struct Text<'a> {
    /// Its path or its name.
    called: String,
    text: &'a str,
    /// The file that it is in.
    file: Option<&'a Path>,
    is_embedded: bool,
}

impl RecipeSource {
    /// The embedded recipe `name`.
    ///
    /// # Errors
    /// [`RecipeError::Unknown`] if there is none.
    pub fn embedded(name: &str) -> Result<Self, RecipeError> {
        let recipe = find(name)?;
        let source = Self::new(&Text::embedded(recipe), &mut Vec::new())?;
        // Nobody has its texts before them.
        Ok(Self { places: Places::new(), ..source })
    }

    /// The recipe in a TOML `text`, which comes from `origin`. It can extend recipes that come with the program.
    ///
    /// # Errors
    /// [`RecipeError`] if it is no TOML, or cannot extend what it names.
    pub fn text(text: &str, origin: &str) -> Result<Self, RecipeError> {
        let text = Text { called: origin.into(), text, file: None, is_embedded: false };
        Self::new(&text, &mut Vec::new())
    }

    /// The recipe in the file at `path`. What it names is relative to its folder: a recipe that it extends, and runs whose weights
    /// it begins with.
    ///
    /// # Errors
    /// [`RecipeError`] if the file cannot be read, is no TOML, or cannot extend what it names.
    pub fn file(path: &Path) -> Result<Self, RecipeError> {
        let text = read_regular_text(path, MAX_TEXT)
            .map_err(|error| RecipeError::Unreadable { path: path.into(), message: error.to_string() })?;
        Self::new(&Text::in_file(path, &text), &mut Vec::new())
    }

    /// What it extends, the nearest first: paths of files, and names of recipes that come with the program.
    pub fn extends(&self) -> &[String] {
        &self.extends
    }

    /// The recipe, with `overrides` of the form `key=value`. A method that they set takes the nearest bits that it has: see
    /// [`own_bits`](Self::own_bits).
    ///
    /// # Errors
    /// [`RecipeError`] with every mistake in what is written and in the overrides.
    pub fn recipe(&self, overrides: &[String]) -> Result<Recipe, RecipeError> {
        let problems = Problems::default();
        let (mut table, mut places) = (self.table.clone(), self.places.clone());
        for text in overrides {
            match set(&mut table, text) {
                Ok(key) => {
                    remove(&mut places, &key);
                    places.insert(key, Place { origin: None, line: None });
                }
                Err(message) => problems.push(format!("setting {text:?}"), message),
            }
        }
        take_own_bits(&mut table, &self.table, overrides);
        let mut recipe = read(table, &problems);
        let problems = problems.into_vec();
        if !problems.is_empty() {
            let problems = problems.into_iter().map(|problem| placed(problem, &places)).collect();
            return Err(RecipeError::Invalid { origin: self.origin.clone(), problems });
        }
        if !recipe.owns_reference(&self.text, self.table.clone()) {
            recipe.reference = None;
        }
        Ok(recipe)
    }

    /// Which bits of `[quantization]` change because `overrides` set a method that has none of those written, in words: it takes the
    /// nearest that it has. Bits that `overrides` set stay.
    pub fn own_bits(&self, overrides: &[String]) -> Vec<String> {
        let mut table = self.table.clone();
        // A malformed one is a problem of the recipe.
        overrides.iter().for_each(|text| drop(set(&mut table, text)));
        take_own_bits(&mut table, &self.table, overrides)
    }

    /// Reads `text` and what it extends; `before` are those that extend it, in turn.
    fn new(text: &Text<'_>, before: &mut Vec<String>) -> Result<Self, RecipeError> {
        let mut table: Table = text.text.parse().map_err(|error: toml::de::Error| RecipeError::Syntax {
            origin: text.origin(),
            message: error.to_string().trim_end().into(),
        })?;
        if let Some(folder) = text.file.and_then(Path::parent) {
            place_init_paths(&mut table, folder);
        }
        let places = places(text, !before.is_empty());
        let mut source = Self {
            called: text.called.clone(),
            origin: text.origin(),
            text: text.text.into(),
            table,
            places,
            extends: Vec::new(),
        };
        let Some(named) = source.table.remove(EXTENDS) else { return Ok(source) };
        let place = source.places.remove(EXTENDS);
        let refused = |message: String| {
            let line = place.as_ref().and_then(|place| place.line);
            let line = line.map_or(String::new(), |line| format!(", line {line}"));
            RecipeError::Extends { place: format!("{}{line}", text.origin()), message }
        };
        let Value::String(named) = named else {
            return Err(refused(format!(
                "expected the name of a recipe, or the path of its file, got {named}"
            )));
        };
        before.push(text.identity());
        let base = text.base(&named, before).map_err(&refused)??;
        before.pop();
        if base.table.get("schema").and_then(Value::as_integer) != Some(SCHEMA as i64) {
            return Err(refused(format!("{} has no schema = {SCHEMA}, as every recipe", base.origin)));
        }
        source.extend(base);
        Ok(source)
    }

    /// Takes over what `base` has and this one has not.
    fn extend(&mut self, base: Self) {
        let Self { called, table: mut merged, places, extends, .. } = base;
        for key in OWN {
            merged.remove(key);
        }
        self.extends = std::iter::once(called).chain(extends).collect();
        let own = std::mem::take(&mut self.places);
        self.places = places.into_iter().filter(|(key, _)| !OWN.contains(&key.as_str())).collect();
        merge(&mut merged, std::mem::take(&mut self.table), "", &mut self.places);
        self.table = merged;
        self.places.extend(own);
    }
}

impl<'a> Text<'a> {
    fn embedded(recipe: &'a EmbeddedRecipe) -> Self {
        Self { called: recipe.name.clone(), text: &recipe.text, file: None, is_embedded: true }
    }

    fn in_file(path: &'a Path, text: &'a str) -> Self {
        Self { called: path.display().to_string(), text, file: Some(path), is_embedded: false }
    }

    /// As messages call it.
    fn origin(&self) -> String {
        if self.is_embedded { format!("recipe {}", self.called) } else { self.called.clone() }
    }

    /// By what it is known again in a circle.
    fn identity(&self) -> String {
        let path = self.file.map(|path| path.canonicalize().unwrap_or_else(|_| path.into()));
        path.map_or(self.origin(), |path| path.display().to_string())
    }

    /// The recipe that it names as what it extends; the outer error is of the name, the inner one of the recipe.
    fn base(
        &self,
        named: &str,
        before: &mut Vec<String>,
    ) -> Result<Result<RecipeSource, RecipeError>, String> {
        if before.len() >= MAX_DEPTH {
            return Err(format!("{MAX_DEPTH} recipes extend one another already: at most so many can"));
        }
        let is_path = named.ends_with(".toml") || named.contains(is_separator);
        if !is_path {
            let recipe = match find(named) {
                Ok(recipe) => recipe,
                Err(error) => return Err(error.to_string()),
            };
            return Ok(RecipeSource::new(&Text::embedded(recipe), before));
        }
        let Some(file) = self.file else {
            return Err(format!(
                "{named:?} is a file, and this text is in none: it can extend recipes that come with lowbit"
            ));
        };
        let path: PathBuf = match file.parent() {
            Some(folder) => folder.join(named),
            None => named.into(),
        };
        if named.starts_with('~') && !path.exists() {
            return Err(format!(
                "no shell replaces ~ in a recipe: write the path of {named:?} out, or ./{named} for a file of this name"
            ));
        }
        let text = match read_regular_text(&path, MAX_TEXT) {
            Ok(text) => text,
            Err(error) => return Err(format!("cannot read {}: {error}", path.display())),
        };
        let text = Text::in_file(&path, &text);
        let identity = text.identity();
        if before.contains(&identity) {
            return Err(format!("{} is this recipe, or one that extends it", path.display()));
        }
        Ok(RecipeSource::new(&text, before))
    }
}

impl EmbeddedRecipe {
    /// All its keys.
    pub(super) fn table(&self) -> Table {
        let source = RecipeSource::new(&Text::embedded(self), &mut Vec::new());
        source.expect("invariant: embedded recipes are TOML and extend one another").table
    }
}

fn find(name: &str) -> Result<&'static EmbeddedRecipe, RecipeError> {
    let recipe = embedded().iter().find(|recipe| recipe.name == name);
    recipe.ok_or_else(|| RecipeError::Unknown { name: name.into() })
}

/// Where the keys of `text` stand; `is_base` if another text extends it.
fn places(text: &Text<'_>, is_base: bool) -> Places {
    let mut places = Places::new();
    let document = DeTable::parse(text.text);
    let document = document.expect("invariant: a text that was read is TOML");
    let line_ends: Vec<usize> = text.text.match_indices('\n').map(|(offset, _)| offset).collect();
    let place = |offset: usize| Place {
        origin: is_base.then(|| text.origin()),
        line: (!text.is_embedded).then(|| 1 + line_ends.partition_point(|end| *end < offset)),
    };
    add_places(document.get_ref(), "", &place, &mut places);
    places
}

fn add_places(table: &DeTable<'_>, path: &str, place: &impl Fn(usize) -> Place, places: &mut Places) {
    for (key, value) in table.iter() {
        let path = joined(path, key.get_ref());
        places.insert(path.clone(), place(key.span().start));
        add_places_in(value, &path, place, places);
    }
}

fn add_places_in(
    value: &Spanned<DeValue<'_>>,
    path: &str,
    place: &impl Fn(usize) -> Place,
    places: &mut Places,
) {
    match value.get_ref() {
        DeValue::Table(table) => add_places(table, path, place, places),
        DeValue::Array(items) => {
            for (i, item) in items.iter().enumerate() {
                let path = format!("{path}[{i}]");
                places.insert(path.clone(), place(item.span().start));
                add_places_in(item, &path, place, places);
            }
        }
        _ => {}
    }
}

fn joined(path: &str, key: &str) -> String {
    if path.is_empty() { key.into() } else { format!("{path}.{key}") }
}

/// Whether the dotted `path` is `key`, or in it.
fn is_in(path: &str, key: &str) -> bool {
    path.strip_prefix(key).is_some_and(|rest| rest.is_empty() || rest.starts_with(['.', '[']))
}

fn remove(places: &mut Places, key: &str) {
    let from = places.range::<str, _>((Bound::Included(key), Bound::Unbounded));
    let alike = from.map(|(path, _)| path).take_while(|path| path.starts_with(key));
    let inside: Vec<String> = alike.filter(|path| is_in(path, key)).cloned().collect();
    for path in inside {
        places.remove(&path);
    }
}

/// `problem` with the place of its key, or of the table that the key would have to be in.
fn placed(problem: Problem, places: &Places) -> Problem {
    let mut path = problem.key.as_str();
    let place = loop {
        match places.get(path) {
            Some(place) => break place.words(),
            None => match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => break None,
            },
        }
    };
    Problem { place, ..problem }
}

/// Puts the keys of `changes` into `table`, which is at the dotted `path`: tables key by key, whatever else whole. A table of
/// another `kind` is whole too, as the keys of one kind mean nothing to another. The places of what is replaced are removed.
fn merge(table: &mut Table, changes: Table, path: &str, places: &mut Places) {
    for (key, change) in changes {
        let path = joined(path, &key);
        match (table.get_mut(&key), change) {
            (Some(Value::Table(table)), Value::Table(change)) if is_alike(table, &change) => {
                merge(table, change, &path, places);
            }
            (_, change) => {
                remove(places, &path);
                table.insert(key, change);
            }
        }
    }
}

fn is_alike(table: &Table, change: &Table) -> bool {
    let kind = |table: &Table| table.get("kind").cloned();
    kind(change).is_none_or(|changed| kind(table) == Some(changed))
}

/// Makes the paths of runs in a recipe's file relative to its `folder`. A path that no text can hold stays, to be refused
/// where it is opened.
fn place_init_paths(recipe: &mut Table, folder: &Path) {
    for keys in [&["init"][..], &["strategy", "joint", "teacher", "init"]] {
        let (last, parents) = keys.split_last().expect("invariant: a path has a last key");
        let parent = parents.iter().try_fold(&mut *recipe, |table, key| table.get_mut(*key)?.as_table_mut());
        if let Some(Value::String(init)) = parent.and_then(|table| table.get_mut(*last))
            // A home directory that no shell has put in is refused as it stands.
            && !init.is_empty() && !init.starts_with('~')
            && let Some(path) = folder.join(&*init).to_str()
        {
            *init = path.into();
        }
    }
}

/// Puts bits into `table` that a method of `overrides` defines, where it has none of those that are `written`. A granularity that is the one of
/// the method before gives way to that of the new one. Yields which bits changed, in words.
fn take_own_bits(table: &mut Table, written: &Table, overrides: &[String]) -> Vec<String> {
    let mut ignored = Table::new();
    let keys: Vec<String> = overrides.iter().filter_map(|text| set(&mut ignored, text).ok()).collect();
    let has = |key: &str| keys.iter().any(|set| is_in(&format!("quantization.{key}"), set));
    let Some(Value::Table(quantization)) = table.get_mut("quantization") else { return Vec::new() };
    let is_set = has("method") || has("weight_method");
    // A recipe that lowbit has written out names the granularity, too.
    if is_set && !has("weight_granularity") && names_its_own_granularity(written) {
        quantization.remove("weight_granularity");
    }
    let mut changes = Vec::new();
    for (operand, method_key, bits_key) in
        [(Operand::Weights, "weight_method", "weight_bits"), (Operand::Activations, "act_method", "act_bits")]
    {
        let named =
            quantization.get(method_key).or_else(|| quantization.get("method")).and_then(Value::as_str);
        let method = Method::ALL.iter().find(|method| Some(method.name()) == named);
        // Other numbers are full precision, or a mistake.
        let written =
            quantization.get(bits_key).and_then(Value::as_integer).filter(|bits| (1..=8).contains(bits));
        let (Some(method), Some(written)) = (method, written) else { continue };
        let defined = method.bits(operand);
        let own = written.clamp((*defined.start()).into(), (*defined.end()).into());
        if own != written && (has("method") || has(method_key)) && !has(bits_key) {
            changes.push(format!(
                "quantization.{bits_key} is {own}, not {written} as in the recipe: {method} has no {operand} of {written} bits"
            ));
            quantization.insert(bits_key.into(), Value::Integer(own));
        }
    }
    changes
}

/// Whether a recipe names the granularity that its method has without that.
fn names_its_own_granularity(recipe: &Table) -> bool {
    let text = |key: &str| recipe.get("quantization")?.get(key)?.as_str();
    let named = text("weight_method").or_else(|| text("method"));
    let method = Method::ALL.iter().find(|method| Some(method.name()) == named);
    method.is_some_and(|method| text("weight_granularity") == Some(&method.granularity().to_string()))
}

/// Puts `value` of `key=value` at the dotted `key`, which is returned. A value that is no TOML is taken as a text.
pub(super) fn set(table: &mut Table, text: &str) -> Result<String, String> {
    let malformed = || "is not of the form key=value, as in train.epochs=3".to_string();
    let (key, value) = text.split_once('=').ok_or_else(malformed)?;
    let value = match format!("value = {value}").parse::<Table>() {
        Ok(parsed) if parsed.len() > 1 => {
            return Err("has more than one key: give each a setting of its own".into());
        }
        Ok(mut parsed) => parsed.remove("value").ok_or_else(malformed)?,
        Err(_) => Value::String(value.trim().into()),
    };
    let parts: Vec<&str> = key.split('.').map(str::trim).collect();
    let Some((last, parents)) = parts.split_last().filter(|_| parts.iter().all(|part| !part.is_empty()))
    else {
        return Err(malformed());
    };
    if parts == [EXTENDS] {
        return Err("can stand in a recipe's file only".into());
    }
    let mut target = table;
    for part in parents {
        let entry = target.entry(*part).or_insert_with(|| Value::Table(Table::new()));
        if !entry.is_table() {
            *entry = Value::Table(Table::new());
        }
        target = entry.as_table_mut().expect("invariant: it was made a table");
    }
    target.insert((*last).into(), value);
    Ok(parts.join("."))
}
