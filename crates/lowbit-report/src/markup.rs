//! HTML and SVG as a tree. Every text and every value of an attribute is escaped where it is written, and every element is closed: no name or
//! message that comes from a file can be markup.

use std::fmt::{self, Display};

use lowbit_train::escaped;

/// Elements of HTML without an end.
const VOID: [&str; 4] = ["meta", "img", "br", "hr"];

/// A part of an element.
enum Node {
    Text(String),
    Element(Element),
    /// A style sheet, which is the program's own.
    Style(&'static str),
}

/// An element.
pub(crate) struct Element {
    name: &'static str,
    attributes: Vec<(&'static str, String)>,
    children: Vec<Node>,
}

/// An element of this name, without anything in it.
pub(crate) fn el(name: &'static str) -> Element {
    Element { name, attributes: Vec::new(), children: Vec::new() }
}

/// An element of this name and class.
pub(crate) fn classed(name: &'static str, class: &str) -> Element {
    el(name).attr("class", class)
}

impl Element {
    pub(crate) fn attr(mut self, name: &'static str, value: impl Display) -> Self {
        self.attributes.push((name, value.to_string()));
        self
    }

    pub(crate) fn text(mut self, text: impl Display) -> Self {
        self.children.push(Node::Text(text.to_string()));
        self
    }

    pub(crate) fn child(mut self, child: Element) -> Self {
        self.children.push(Node::Element(child));
        self
    }

    pub(crate) fn children(mut self, children: impl IntoIterator<Item = Element>) -> Self {
        self.children.extend(children.into_iter().map(Node::Element));
        self
    }

    pub(crate) fn style(mut self, style: &'static str) -> Self {
        self.children.push(Node::Style(style));
        self
    }
}

impl Display for Element {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "<{}", self.name)?;
        for (name, value) in &self.attributes {
            write!(f, " {name}=\"")?;
            write_escaped(value, f)?;
            f.write_str("\"")?;
        }
        f.write_str(">")?;
        for child in &self.children {
            match child {
                Node::Text(text) => write_escaped(text, f)?,
                Node::Element(element) => element.fmt(f)?,
                Node::Style(style) => f.write_str(style)?,
            }
        }
        match VOID.contains(&self.name) {
            true => Ok(()),
            false => write!(f, "</{}>", self.name),
        }
    }
}

fn write_escaped(text: &str, f: &mut fmt::Formatter<'_>) -> fmt::Result {
    for c in escaped(text).chars() {
        match c {
            '&' => f.write_str("&amp;")?,
            '<' => f.write_str("&lt;")?,
            '>' => f.write_str("&gt;")?,
            '"' => f.write_str("&quot;")?,
            '\'' => f.write_str("&#39;")?,
            c => write!(f, "{c}")?,
        }
    }
    Ok(())
}

/// Bytes of a file as an address.
pub(crate) fn data_uri(media_type: &str, bytes: &[u8]) -> String {
    /// RFC 4648, section 4.
    const ALPHABET: &[u8; 64] = b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";
    let mut uri = format!("data:{media_type};base64,");
    for group in bytes.chunks(3) {
        let all = group.iter().fold(0u32, |all, &byte| all << 8 | u32::from(byte)) << (8 * (3 - group.len()));
        for place in 0..4 {
            match place <= group.len() {
                true => uri.push(char::from(ALPHABET[(all >> (18 - 6 * place)) as usize & 63])),
                false => uri.push('='),
            }
        }
    }
    uri
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_written_is_markup() {
        let hostile = "<script>'\"&\u{0}\u{202e}";
        let element = classed("a", hostile).text(hostile).child(el("br"));
        let escaped = "&lt;script&gt;&#39;&quot;&amp;\\u{0}\\u{202e}";
        assert_eq!(element.to_string(), format!("<a class=\"{escaped}\">{escaped}<br></a>"));
    }

    #[test]
    fn bytes_are_written_in_base_64() {
        let of = |text: &str| data_uri("x", text.as_bytes());
        let expected = ["", "Zg==", "Zm8=", "Zm9v", "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"];
        for (n, expected) in expected.iter().enumerate() {
            assert_eq!(of(&"foobar"[..n]), format!("data:x;base64,{expected}"));
        }
    }
}
