//! Texts for people: what may come from a file or a shell, and the system's errors in the words of this program.

use std::fmt;
use std::io;
use std::path::Path;

/// A path as it is typed in a shell.
pub fn shell_quoted(path: &Path) -> String {
    let text = path.display().to_string();
    let is_plain = |c: char| c.is_alphanumeric() || "/._-+=:@%,".contains(c);
    match !text.is_empty() && text.chars().all(is_plain) {
        true => text,
        false => format!("'{}'", text.replace('\'', r"'\''")),
    }
}

/// An I/O error in the words of this program, where they are better than the system's.
pub(crate) fn explain(error: &io::Error) -> String {
    match error.kind() {
        // Not the system's: its message is ours.
        _ if error.get_ref().is_some() => error.to_string(),
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => "no space left on the disk".into(),
        io::ErrorKind::PermissionDenied => "permission denied".into(),
        io::ErrorKind::FileTooLarge => "larger files are not allowed (ulimit -f)".into(),
        io::ErrorKind::NotFound => "no such file or directory".into(),
        io::ErrorKind::NotADirectory => "not a directory".into(),
        io::ErrorKind::AlreadyExists => "there is a file of this name".into(),
        io::ErrorKind::ReadOnlyFilesystem => "the file system is read-only".into(),
        _ if cfg!(unix) && error.raw_os_error() == Some(EMFILE) => {
            "too many files are open: allow more (ulimit -n)".into()
        }
        _ => error.to_string(),
    }
}

/// The process has as many files open as it may have. That the whole system has (ENFILE) is another error.
const EMFILE: i32 = 24;

/// `text` as it can be shown, although it may come from a file: characters that [are not seen](is_unseen) are written out.
/// Line breaks and tabs stay.
pub fn escaped(text: &str) -> String {
    let escaped = |c: char| match c {
        '\n' | '\t' => c.to_string(),
        c if is_unseen(c) => c.escape_unicode().to_string(),
        c => c.to_string(),
    };
    text.chars().map(escaped).collect()
}

/// The same in one line.
pub(crate) fn one_line(text: &impl fmt::Display) -> String {
    escaped(&text.to_string()).replace('\n', "\\n").replace('\t', "\\t")
}

/// Whether a terminal obeys or hides a character instead of showing it: control characters, and those that Unicode calls format
/// characters and separators of lines, which have no width or turn the direction of the text.
pub fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
            | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0001}' | '\u{e0020}'..='\u{e007f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_limit_of_the_process_can_be_raised() {
        let is_advised = |code| explain(&io::Error::from_raw_os_error(code)).contains("ulimit -n");
        if cfg!(unix) {
            assert_eq!([23, 24].map(is_advised), [false, true]);
        }
    }

    #[test]
    fn what_is_not_seen_is_written_out() {
        let text = "no \t\u{1b}[31mé\r\n\u{9b}1m\u{202e}a\u{200b}b\u{feff}";
        let expected = "no \t\\u{1b}[31mé\\u{d}\n\\u{9b}1m\\u{202e}a\\u{200b}b\\u{feff}";
        assert_eq!(escaped(text), expected);
        assert_eq!(one_line(&"a\tb\nc\u{2028}d"), "a\\tb\\nc\\u{2028}d");
    }

    #[test]
    fn paths_are_quoted_for_a_shell() {
        let quoted = |path: &str| shell_quoted(Path::new(path));
        assert_eq!(quoted("runs/digits-preresnet8_w2a2.1"), "runs/digits-preresnet8_w2a2.1");
        assert_eq!(quoted("my runs/a"), "'my runs/a'");
        assert_eq!(quoted("it's $HOME"), r"'it'\''s $HOME'");
        assert_eq!(quoted(""), "''");
    }

    #[test]
    fn messages_keep_their_quotes() {
        assert_eq!(one_line(&"Tensor 'a' \"b\"\n\u{1b}é"), r#"Tensor 'a' "b"\n\u{1b}é"#);
    }
}
