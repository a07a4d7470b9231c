//! The recipes that come with the binary.

/// A recipe whose text is part of the program.
#[derive(Clone, Copy, Debug)]
pub struct EmbeddedRecipe {
    /// Name, also of its file.
    pub name: &'static str,
    /// TOML text; the comment at its head gives command, hardware, time and accuracy.
    pub text: &'static str,
}

impl EmbeddedRecipe {
    /// First line of the comment at the head of the recipe.
    pub fn summary(&self) -> &'static str {
        self.text.lines().next().unwrap_or_default().trim_start_matches('#').trim()
    }
}

/// The recipe that `lowbit train` trains without being given one.
pub const DEFAULT: &str = "digits-preresnet8-w2a2";

macro_rules! embed {
    ($($path:literal),* $(,)?) => {
        /// All embedded recipes, sorted by name.
        pub const EMBEDDED: &[EmbeddedRecipe] = &[$(EmbeddedRecipe {
            name: file_stem($path),
            text: include_str!(concat!("../../recipes/", $path)),
        }),*];
    };
}

embed!(
    "cifar100/cifar100-preresnet20-w2a2.toml",
    "digits/digits-preresnet8-fp32.toml",
    "digits/digits-preresnet8-w2a2.toml",
    "fashion-mnist/fashion-mnist-preresnet8-fp32.toml",
    "fashion-mnist/fashion-mnist-preresnet8-w2a2.toml",
);

/// `a/b.toml` to `b`.
const fn file_stem(path: &'static str) -> &'static str {
    let bytes = path.as_bytes();
    let mut start = 0;
    let mut i = 0;
    while i < bytes.len() {
        if bytes[i] == b'/' {
            start = i + 1;
        }
        i += 1;
    }
    let (_, name) = path.split_at(start);
    let (stem, _toml) = name.split_at(name.len() - ".toml".len());
    stem
}
