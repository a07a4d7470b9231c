//! What is said of a strategy where it is set, shown and explained: once, beside the strategy.

use crate::{
    Damping, Freezing, Hint, Joint, Progressive, Sharpness, SoftWeights, StochasticPrecision, TransitionRate,
    TwoStage,
};

/// A strategy that recipes can name. Its documentation, the keys of its section and the line that shows it are compared with this, or
/// made from it.
#[derive(Clone, Copy, Debug)]
pub struct About {
    /// Its [name](crate::Strategy::name).
    pub name: &'static str,
    /// Its name for people, as in "joint distillation".
    pub title: &'static str,
    /// What it changes of a training: "networks, losses".
    pub changes: &'static str,
    /// The table of a recipe in which it is set: "strategy.joint".
    pub section: &'static str,
    /// The keys of that table.
    pub keys: &'static [Key],
    /// Its file.
    pub file: &'static str,
}

/// A key of a recipe; all but its name in Markdown.
#[derive(Clone, Copy, Debug)]
pub struct Key {
    /// Its name in its table: `teacher.init`, or `[[students]]` for a list of tables.
    pub name: &'static str,
    /// What counts where it is absent.
    pub default: &'static str,
    /// What it takes.
    pub range: &'static str,
    /// What it does.
    pub effect: &'static str,
}

/// Those that come with lowbit, in the order in which they are composed.
pub const STRATEGIES: [About; 10] = [
    Progressive::ABOUT,
    TwoStage::ABOUT,
    StochasticPrecision::ABOUT,
    SoftWeights::ABOUT,
    Joint::ABOUT,
    Hint::ABOUT,
    Damping::ABOUT,
    TransitionRate::ABOUT,
    Freezing::ABOUT,
    Sharpness::ABOUT,
];

impl About {
    /// That of the strategy `name`, if it comes with lowbit.
    pub fn of(name: &str) -> Option<&'static Self> {
        STRATEGIES.iter().find(|about| about.name == name)
    }

    /// Its keys as a table of the documentation.
    pub fn table(&self) -> String {
        let row =
            |key: &Key| format!("| `{}` | {} | {} | {} |\n", key.name, key.default, key.range, key.effect);
        let rows: String = self.keys.iter().map(row).collect();
        format!("| key | default | range | |\n|---|---|---|---|\n{rows}")
    }

    /// Its row in the table of all strategies, whose first cell links to the `anchor` of its section.
    pub fn row(&self, anchor: &str) -> String {
        let recipe = match self.keys {
            [key] if self.section == "strategy" => format!("`strategy.{}`", key.name),
            _ => format!("`[{}]`", self.section),
        };
        let file = self.file.rsplit(['/', '\\']).next().unwrap_or(self.file);
        format!("| [{}](#{anchor}) | {recipe} | {} | `{file}` |\n", self.title, self.changes)
    }
}
